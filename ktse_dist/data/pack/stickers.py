"""The embedded data set: drawings over procedural scenes, made on your machine and the same on every one."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ktse_dist.data.index import ATTRIBUTION, SPLITS, Index, read_dataset
from ktse_dist.data.pack.compose import Picture, compose_some
from ktse_dist.data.pack.drawings import attribution, classes
from ktse_dist.data.pack.writer import SHARD_BYTES, Sample, new_dataset, write_about, write_split
from ktse_dist.data.pool import ordered_map
from ktse_dist.errors import UserError

VERSION = 1  # of the pictures: one more whenever the same seed gives other pictures
CHUNK = 8  # pictures a worker makes at a time


def pack_stickers(
    out: Path,
    train: int = 1500,
    val: int = 300,
    seed: int = 0,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the stickers data set to the folder `out`; nothing to do where it is already.

    Every picture depends on (seed, split, its number) alone: `workers` (default: one a CPU; 1 works in this process)
    changes nothing but the time, and a smaller set is the beginning of a larger one. UserError if `out` holds
    anything else.
    """
    recipe = {"train": train, "val": val, "seed": seed, "version": VERSION}
    check_numbers(recipe | {"workers": 1 if workers is None else workers})
    if out.exists() and is_stickers(out, recipe):
        return
    try:
        build(out, recipe, workers or os.cpu_count() or 1, shard_bytes)
    except UserError:
        if not (out.exists() and is_stickers(out, recipe)):  # where it is, another process was faster
            raise


def build(out: Path, recipe: dict[str, int], workers: int, shard_bytes: int) -> None:
    total = recipe["train"] + recipe["val"]
    with new_dataset(out) as folder, tqdm(total=total, desc="stickers", unit="picture") as progress:
        splits = {}
        for split in SPLITS:
            samples = make_samples(recipe["seed"], split, recipe[split], workers, progress)
            splits[split] = write_split(folder, split, samples, len(classes()), shard_bytes)
        (folder / ATTRIBUTION).write_text(attribution())
        write_about(folder, classes(), splits, stickers=recipe)


def check_numbers(given: dict[str, int]) -> None:
    for name, least in (("train", 1), ("val", 1), ("seed", 0), ("workers", 1)):
        if given[name] < least:
            raise UserError(f"--{name}: {given[name]} is too small; allowed is {least} or more")


def is_stickers(out: Path, recipe: dict[str, int]) -> bool:
    """Whether `out` holds exactly this data set, whole; UserError for anything else."""
    try:
        found = read_dataset(out).get("stickers") if (out / "dataset.json").is_file() else None
        if found == recipe:
            for split in SPLITS:
                Index.open(out, split).check_files()
            return True
    except UserError as damage:
        what = str(damage).rpartition("; ")[0]  # they can be made again, which other data cannot
        raise UserError(f"{what}; remove {out}, the same command then packs it anew") from None
    what = f"other stickers ({found})" if found else "something else"
    raise UserError(f"{out}: holds {what}, wanted is {recipe}; remove it, or give another folder")


def make_samples(seed: int, split: str, count: int, workers: int, progress: tqdm) -> Iterator[Sample]:
    """The split's samples in order; a few chunks per worker are in memory at a time."""
    chunks = (range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
    processes = 0 if workers == 1 else workers
    number = 0
    for pictures in ordered_map(partial(compose_some, seed, split), chunks, processes):
        for picture in pictures:
            yield sample_of(f"{split}_{number:06d}", picture)
            number += 1
        progress.update(len(pictures))


def sample_of(key: str, picture: Picture) -> Sample:
    return Sample(key, picture.jpeg, picture.labels, picture.mask, "stickers: " + " ".join(picture.files))
