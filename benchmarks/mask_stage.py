"""The mask stage on pictures of 500x375: the CRF with one process and with two; CAMs and CRF as `ktse masks` makes them
against a plain loop in fp32 that stores CAM files (published_masks.py).

Stickers, enlarged, seen by the network of a finished `ktse train` (its data set has their classes), or by an untrained
one, whose noisy masks take more of the disk. Both ways take turns in rounds, each with other pictures; figures are
medians of the rounds' ratios, printed only after both ways gave the same masks.
    python benchmarks/mask_stage.py [--run runs/demo] [--quick] [--save FILE.json]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from published_masks import Picture, store_cams, store_masks
from torch import nn

from ktse_dist import models
from ktse_dist.config.method import Network as Settings
from ktse_dist.config.stages import Masks
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.pack.compose import compose_some
from ktse_dist.data.pack.drawings import classes
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.pool import ordered_map
from ktse_dist.inference.generate import Part, SeedSource, mask_part
from ktse_dist.inference.multiscale import network_of
from ktse_dist.inference.refine import Refined, Task, refine
from ktse_dist.mask_work import trained_model
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.setup import fast_precision

HEIGHT, WIDTH, ALPHA, ROUNDS, PROCESSES = 375, 500, 6.0, 5, 2
PRECISIONS = {"fp32": "fp32", "shipped": fast_precision(use_gpu=False)}
TARGETS = {"crf_two_x": {"min": 1.7}, "stage_x": {"min": 1.5}, "disk_x": {"min": 50}}
SAME = {"crf": 1.0, "fp32": 0.999, "shipped": 0.99}  # least share of pixels with the label of the plain way

Network = tuple[nn.Module, nn.Module]  # backbone and head


class Round(NamedTuple):
    """Seconds of the plain way (or one process) and of ours (or two); share of the pixels with the same label."""

    plain: float
    ours: float
    same: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, help="a run of the stickers whose network is taken")
    parser.add_argument("--quick", action="store_true", help="fewer pictures, under 3 minutes on 2 cores")
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args(arguments)
    pictures = {"crf": 40, "stage": 10} if options.quick else {"crf": 200, "stage": 100}
    with tempfile.TemporaryDirectory() as folder:
        index = pack(Path(folder) / "data", max(pictures.values()))
        network = trained_model(RunFolder(options.run).model)[:2] if options.run else untrained()
        crf = crf_rounds(network, index, pictures["crf"] // ROUNDS)
        stage = stage_rounds(network, index, pictures["stage"] // ROUNDS, Path(folder))
        stored = {way: size(Path(folder) / way) for way in ("plain", *PRECISIONS)}
    result = report({"crf": crf, **stage}, stored, pictures)
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("benchmark", "device", "figures", "targets", "holds")}))


def pack(place: Path, pictures: int) -> Index:
    with new_dataset(place) as building:
        splits = {"train": write_split(building, "train", enlarged(pictures), len(classes()), 10**9)}
        splits["val"] = write_split(building, "val", enlarged(1), len(classes()), 10**9)
        write_about(building, classes(), splits)
    return Index.open(place, "train")


def enlarged(count: int) -> Iterator[Sample]:
    for number in range(count):
        picture = compose_some(0, "train", [number])[0]
        rgb = cv2.resize(simplejpeg.decode_jpeg(picture.jpeg), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        yield Sample(f"{number:05}", simplejpeg.encode_jpeg(rgb, 90), picture.labels, None, "stickers")


def crf_rounds(network: Network, index: Index, few: int) -> list[Round]:
    """The CRF of `few` pictures a round, by one process and by two."""
    source = SeedSource(network_of(*network), index, Masks(scales=(0.5,)), "pillow")
    rounds = []
    for start in range(0, ROUNDS * few, few):
        seeds = [source.seed(row) for row in range(start, start + few)]
        tasks = [*source.tasks(iter(seeds), (ALPHA,))]
        (one, plain), (two, ours) = (timed(all_refined, tasks, processes) for processes in (1, PROCESSES))
        rounds.append(Round(plain, ours, float(one == two)))
    return rounds


def all_refined(tasks: list[Task], processes: int) -> list[list[Refined]]:
    return list(ordered_map(refine, tasks, processes))


def stage_rounds(network: Network, index: Index, few: int, folder: Path) -> dict[str, list[Round]]:
    """CAMs and CRF of `few` pictures a round, ours in fp32 and as shipped; leaves all files in FOLDER/WAY."""
    plain, masks = folder / "plain", Masks(processes=PROCESSES)
    plain.mkdir()
    ways = {way: network_of(*network, bf16=precision == "bf16") for way, precision in PRECISIONS.items()}
    sources = {way: SeedSource(cams, index, masks, "pillow") for way, cams in ways.items()}
    rounds: dict[str, list[Round]] = {way: [] for way in ways}
    for start in range(0, ROUNDS * few, few):
        part = Part(f"train-{start:05}", list(range(start, start + few)))
        reader = sources["fp32"].reader
        pictures = [Picture(index.key(row), reader.picture(row), tags(index, row)) for row in part.rows]
        _, cams = timed(store_cams, *network, pictures, masks.scales, plain)
        _, refined = timed(store_masks, pictures, plain, ALPHA, np.asarray(index.palette, np.uint8), plain)
        for way, source in sources.items():
            _, streamed = timed(mask_part, source, ALPHA, part, folder / way, lambda: None)
            same = agreement(folder / way / f"{part.name}.tar", plain)
            rounds[way].append(Round(cams + refined, streamed, same))
    return rounds


def untrained() -> Network:
    torch.manual_seed(0)
    backbone, head = models.build(Settings(weights="none"), len(classes()))
    return backbone.eval(), head.eval()


def tags(index: Index, row: int) -> np.ndarray:
    return np.flatnonzero(index.labels([row])[0])


def agreement(shard: Path, plain: Path) -> float:
    """Share of the pixels that have the same label in a mask shard and in the loop's files."""
    same = []
    with tarfile.open(shard) as tar:
        for member in tar:
            key, kind, _ = member.name.split(".")
            if kind == "mask":
                ours, theirs = decode_mask(tar.extractfile(member).read()), Image.open(plain / f"{key}.png")
                same.append((ours == np.asarray(theirs)).mean())
    return float(np.mean(same))


def timed(call: Callable, *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    found = call(*arguments)
    return found, time.perf_counter() - start


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def report(rounds: dict[str, list[Round]], stored: dict[str, int], pictures: dict[str, int]) -> dict[str, Any]:
    same = {way: min(r.same for r in some) for way, some in rounds.items()}
    figures: dict[str, float] = {}
    if all(same[way] >= least for way, least in SAME.items()):
        names = {"crf": "crf_two_x", "fp32": "stage_fp32_x", "shipped": "stage_x"}
        figures = {names[way]: statistics.median(r.plain / r.ours for r in some) for way, some in rounds.items()}
        figures["disk_x"] = stored["plain"] / stored["shipped"]
    else:
        print(f"NOT PRINTED: share of pixels with the same label {same}, allowed are {SAME} or more")
    return {
        "benchmark": "mask_stage",
        "device": f"cpu {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "figures": {name: round(value, 2) for name, value in figures.items()},
        "targets": TARGETS,
        "holds": all(figures.get(name, 0) >= target["min"] for name, target in TARGETS.items()),
        "pictures": pictures,
        "precision": PRECISIONS,
        "rounds": {way: [r._asdict() for r in some] for way, some in rounds.items()},
        "bytes": stored,
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
