"""Any source in, a data set out: in parallel, in constant memory, and going on where a killed packer stopped."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ktse_dist.data.index import SPLITS
from ktse_dist.data.pack.picture import Made, Planned, make_some
from ktse_dist.data.pack.plan import Plan, make_plan, planned
from ktse_dist.data.pack.source import Source
from ktse_dist.data.pack.work_folder import Finished, WorkFolder, finish, work_folder
from ktse_dist.data.pack.writer import SHARD_BYTES, Sample, finish_split, write_about, write_shard
from ktse_dist.data.pool import WorkerDied, ordered_map
from ktse_dist.errors import UserError

CHUNK = 8  # pictures a worker makes at a time
AHEAD = 12  # chunks that a worker may be ahead, so that it has work while a shard is being closed
SKIPPED = "skipped.txt"

Row = tuple[int, Planned, Made]  # number of the shard, and a picture for it


class Packed(NamedTuple):
    """Pictures of each split, how many of them all are no copies of their file, and how many were left out."""

    samples: dict[str, int]
    encoded: int
    skipped: int


def pack(
    source: Source,
    out: Path,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    skip_bad: bool = False,
) -> Packed | None:
    """Write the source as a packed data set to the folder `out`; None where it was finished already.

    The bytes depend on the source alone: not on `workers` (default: one a CPU; 1 works in this process), nor on where
    an earlier call was killed: finished shards whose files have not changed are kept. A picture that cannot be used is
    a UserError that names it, or with `skip_bad` is left out and listed in skipped.txt.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers: {workers} is too small; allowed is 1 or more")
    processes = 0 if workers == 1 else workers or os.cpu_count() or 1
    with work_folder(out) as work:
        if work is None:
            return None
        plans = {split: make_plan(source, split, shard_bytes) for split in SPLITS}
        total = sum(shard.pictures for plan in plans.values() for shard in plan.shards)
        with tqdm(total=total, desc=source.kind, unit="picture") as progress:
            shards = {
                split: pack_split(source, split, plan, work, processes, skip_bad, progress)
                for split, plan in plans.items()
            }
        packed = describe(source, work, shards)
        finish(work, out)
    return packed


def pack_split(
    source: Source, split: str, plan: Plan, work: WorkFolder, processes: int, skip_bad: bool, progress: tqdm
) -> list[Finished]:
    """All shards of the split: those that are there, and those that have to be made."""
    found = {number: work.finished(split, number, shard.digest) for number, shard in enumerate(plan.shards)}
    done = {number: shard for number, shard in found.items() if shard and (skip_bad or not shard.skipped)}
    progress.update(sum(plan.shards[number].pictures for number in done))
    wanted = found.keys() - done.keys()
    rows = made(planned(source, split, plan, wanted), len(source.classes), processes) if wanted else ()
    for number, group in groupby(rows, key=itemgetter(0)):
        work.forget(split, number)
        done[number] = pack_shard(work, split, number, group, len(source.classes), skip_bad, progress)
        work.note(split, number, plan.shards[number].digest, done[number])
    return [done[number] for number in sorted(done)]


def pack_shard(
    work: WorkFolder, split: str, number: int, rows: Iterable[Row], classes: int, skip_bad: bool, progress: tqdm
) -> Finished:
    skipped: list[list[str]] = []
    encoded = 0

    def samples() -> Iterator[Sample]:
        nonlocal encoded
        for _, picture, result in rows:
            progress.update()
            if not result.why_not:
                encoded += not result.copied
                yield Sample(picture.key, result.jpeg, picture.item.labels, result.mask, picture.item.source)
            elif skip_bad:
                skipped.append([picture.item.name, result.why_not])
            else:
                raise UserError(f"{result.why_not}; mend it, or leave all such pictures out with --skip-bad")

    shard = write_shard(work.file(split, number), work.part(split, number), samples(), classes)
    return Finished(shard, skipped, encoded)


def made(pictures: Iterator[tuple[int, Planned]], classes: int, processes: int) -> Iterator[Row]:
    """Each picture with what became of it, in order; a bounded number of them is in memory."""
    sent: deque[tuple[int, list[Planned]]] = deque()

    def sending() -> Iterator[list[Planned]]:
        for number, group in groupby(pictures, key=itemgetter(0)):
            while chunk := [picture for _, picture in islice(group, CHUNK)]:
                sent.append((number, chunk))
                yield chunk

    try:
        for results in ordered_map(partial(make_some, classes), sending(), processes, AHEAD * max(processes, 1)):
            number, chunk = sent.popleft()
            for picture, result in zip(chunk, results, strict=True):
                yield number, picture, result
    except WorkerDied as died:
        raise UserError(f"{died}; the same command goes on") from None


def describe(source: Source, work: WorkFolder, shards: dict[str, list[Finished]]) -> Packed:
    """Indexes, dataset.json and the list of what was left out."""
    splits = {}
    for split, finished in shards.items():
        parts = [work.part(split, number) for number in range(len(finished))]
        splits[split] = finish_split(work.set, split, [each.shard for each in finished], parts)
    write_about(work.set, source.classes, splits, source=source.kind)
    skipped = [(split, *pair) for split, finished in shards.items() for each in finished for pair in each.skipped]
    if skipped:
        lines = [" ".join(f"{split} {name}: {why}".split()) + "\n" for split, name, why in skipped]
        (work.set / SKIPPED).write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    indexes = {entry["index"] for entry in splits.values()}
    tars = {shard["name"] for entry in splits.values() for shard in entry["shards"]}
    work.keep_only(indexes | tars | {"dataset.json"} | ({SKIPPED} if skipped else set()))
    encoded = sum(each.encoded for finished in shards.values() for each in finished)
    return Packed({split: entry["samples"] for split, entry in splits.items()}, encoded, len(skipped))
