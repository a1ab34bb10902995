"""Is a data set what its dataset.json says? Everything that can be told without decoding a picture."""

import contextlib
import hashlib
import itertools
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ktse_dist.data.index import EXTENSIONS, Index, Shard, hash64

LISTED = 100  # problems kept; the others are only counted
# what tarfile raises for headers that lie about sizes, are cut short or stand in each other without end
TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, IndexError, RecursionError, MemoryError)
Place = tuple[int, int]  # where a member's bytes begin, and how many they are


class Problem(NamedTuple):
    """What is wrong with a file of the data set, or with one picture in it."""

    file: str
    key: str | None
    what: str


class Problems:
    """The first LISTED problems, and how many there are."""

    def __init__(self) -> None:
        self.listed: list[Problem] = []
        self.count = 0

    def add(self, problem: Problem) -> None:
        self.listed += [problem] if self.count < LISTED else []
        self.count += 1

    def extend(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.add(problem)

    def join(self, others: "Problems") -> None:
        self.listed += others.listed[: LISTED - len(self.listed)]
        self.count += others.count


class Members(NamedTuple):
    """A shard by its own headers. whole: they could be read to the mark of its end."""

    places: dict[str, Place]
    whole: bool
    problems: list[Problem]


def check_files(path: Path, about: dict[str, Any]) -> Iterator[Problem]:
    """Shards that dataset.json names twice or not at all; files that are missing are `examine`'s to tell."""
    named = Counter(shard["name"] for entry in about["splits"].values() for shard in entry["shards"])
    for name, times in named.items():
        if times > 1:
            yield Problem("dataset.json", None, f"names {name} {times} times")
    for file in sorted(path.glob("*.tar")):
        if file.name not in named:
            yield Problem(file.name, None, "an extra shard that dataset.json does not name")
    if len(set(about["classes"])) != len(about["classes"]):
        yield Problem("dataset.json", None, "a class stands there twice")


def check_index(index: Index, entry: dict[str, Any]) -> Iterator[Problem]:
    """The split's index against its entry of dataset.json: sha256, counts, keys."""
    file = f"{index.split}.index"
    if index.sha256 != entry.get("index_sha256"):
        yield Problem(file, None, "not the index that dataset.json names (sha256)")
    if entry.get("samples") != len(index):
        told, found = entry.get("samples"), len(index)
        yield Problem("dataset.json", None, f"wrong count: {told} pictures of {index.split}, its index has {found}")
    numbers = np.asarray(index.samples["shard"])
    counts = np.bincount(numbers[numbers < len(index.shards)], minlength=len(index.shards))
    for shard, found in zip(index.shards, counts.tolist(), strict=True):
        if found != shard.samples:
            yield Problem("dataset.json", None, f"wrong count: {shard.samples} in {shard.name}, the index has {found}")
    for row in np.flatnonzero(numbers >= len(index.shards)).tolist():
        yield Problem(file, index.key(row), f"lies in shard {numbers[row]} of {len(index.shards)}")
    if len(index.shards) and (np.diff(numbers.astype(np.int64)) < 0).any():
        yield Problem(file, None, "its pictures are not in the order of the shards")
    yield from _keys_that_stand_twice(index)


def is_readable(index: Index) -> bool:
    """Whether every key is one; of an index that fails this only its sha256 is worth a check."""
    return index.odd_key() is None


def _keys_that_stand_twice(index: Index) -> Iterator[Problem]:
    hashes = np.fromiter((hash64(index.key(row)) for row in range(len(index))), np.uint64, len(index))
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    for row in np.sort(first[counts > 1]).tolist():
        yield Problem(f"{index.split}.index", index.key(row), "stands there more than once")


def check_shard(path: Path, shard: Shard, names: dict[str, str]) -> tuple[list[Problem], bool]:
    """The file against dataset.json, and whether it is another of the shards. names: all of them by their sha256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    if found == shard.sha256 and size == shard.bytes:
        return [], False
    if found == shard.sha256:
        what = f"wrong count: {shard.bytes:,} bytes in {shard.name}, the file has {size:,}"
        return [Problem("dataset.json", None, what)], False
    if found in names:
        what = f"holds what dataset.json calls {names[found]} (sha256); are they swapped?"
        return [Problem(shard.name, None, what)], True
    told = "" if size == shard.bytes else f": {size:,} bytes, expected are {shard.bytes:,}"
    return [Problem(shard.name, None, f"not the shard that dataset.json names (sha256){told}")], False


def tar_members(path: Path) -> Members:
    """Where the members of a shard lie by its own headers, as far as these can be read."""
    places: dict[str, Place] = {}
    problems = []
    end = 0
    with contextlib.suppress(*TAR_ERRORS), tarfile.open(path, "r:") as tar:  # what could be read is kept
        for item in tar:
            if tar.offset <= end:
                break  # a size below 0 leads back, for ever
            if item.name in places:
                problems.append(Problem(path.name, item.name, "stands in the shard more than once"))
            places[item.name] = (item.offset_data, item.size)
            end = tar.offset
    end = min(end, path.stat().st_size)
    with path.open("rb") as file:
        file.seek(end)
        whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    if not whole:
        problems.append(Problem(path.name, None, f"truncated or damaged: no member can be read from byte {end:,} on"))
    return Members(places, whole, problems)


def member_name(key: str, member: str) -> str:
    return f"{key}.{EXTENSIONS[member]}"


def check_members(index: Index, shard: str, rows: np.ndarray, members: Members) -> Iterator[Problem]:
    """The index's members of one shard against those that lie there."""
    expected: set[str] = set()
    moved = []
    for row, member in itertools.product(rows.tolist(), EXTENSIONS):
        offset, size, _ = index.samples[member][row].tolist()
        if not size:
            continue
        name = member_name(index.key(row), member)
        expected.add(name)
        if name not in members.places:
            if members.whole:
                yield Problem(shard, name, "a missing member")
        elif members.places[name] != (offset, size):
            moved.append(name)
    if moved:
        others = f"; so do {len(moved) - 1:,} others" if len(moved) > 1 else ""
        yield Problem(shard, moved[0], f"lies elsewhere than the index says{others}")
    for name in members.places:
        if name not in expected:
            yield Problem(shard, name, "an extra member, which the index does not have")
