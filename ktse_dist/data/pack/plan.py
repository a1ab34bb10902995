"""Which pictures go into which shard: a pure function of the sorted list of names and file sizes.

A shard ends where its files reach `shard_bytes` and a name comes by whose hash says so, on average a sixteenth later,
at the latest at twice the size. So a picture that is added, removed or changed moves few ends: the shards after the
next end are the same as before, and need not be written again. Each shard has a digest of all that its bytes depend on.
"""

import hashlib
from array import array
from collections.abc import Container, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from ktse_dist.data.index import hash64
from ktse_dist.data.pack.picture import Planned
from ktse_dist.data.pack.source import Item, Source
from ktse_dist.data.pack.writer import key_of
from ktse_dist.errors import UserError

VERSION = 1  # of what is made of a picture: one more whenever the same files give other bytes


class PlannedShard(NamedTuple):
    """The split's next `pictures` pictures. files: digest of names, files, tags, masks, classes; digest: keys, too."""

    pictures: int
    files: str
    digest: str


class Plan(NamedTuple):
    """clashes: hashes of keys that several names have. Memory: 8 bytes a picture while it is made, then little."""

    shards: list[PlannedShard]
    clashes: frozenset[int]


def make_plan(source: Source, split: str, shard_bytes: int) -> Plan:
    """UserError for a split without pictures."""
    hashes, rows, start = array("Q"), 0, 0
    cuts: list[tuple[int, int, str]] = []
    size, digest = 0, _begin(source)
    for item, bytes_, mtime_ns in stamped(source, split):
        hashes.append(hash64(key_of(item.name)))
        digest.update(_fingerprint(item, bytes_, mtime_ns))
        rows, size = rows + 1, size + max(bytes_, 0)
        if _ends_here(hashes[-1], max(bytes_, 0), size, shard_bytes):
            cuts.append((start, rows, digest.hexdigest()))
            start, size, digest = rows, 0, _begin(source)
    if rows > start:
        cuts.append((start, rows, digest.hexdigest()))
    if not rows:
        raise UserError(f"{split}: no pictures in {source.kind} data; a split needs at least one")
    return _with_clashes(cuts, np.frombuffer(hashes, np.uint64))


def planned(source: Source, split: str, plan: Plan, wanted: Container[int]) -> Iterator[tuple[int, Planned]]:
    """The pictures of the wanted shards, each with its shard's number; where several have one key, all bear a hash.

    UserError where the source is another than when the plan was made.
    """
    rows = stamped(source, split)
    for number, shard in enumerate(plan.shards):
        digest = _begin(source)
        for item, bytes_, mtime_ns in islice(rows, shard.pictures):
            digest.update(_fingerprint(item, bytes_, mtime_ns))
            if number in wanted:
                yield number, Planned(item, _key(item.name, plan.clashes), bytes_, mtime_ns)
        if digest.hexdigest() != shard.files:
            raise UserError(f"{split}: files changed while they were packed; run the same command again, it goes on")


def _key(name: str, clashes: frozenset[int]) -> str:
    key = key_of(name)
    if hash64(key) not in clashes:
        return key
    return f"{key}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def stamped(source: Source, split: str) -> Iterator[tuple[Item, int, int]]:
    """Each item with size and time of its file, -1 where there is none."""
    before = None
    for item in source.items(split):
        assert before is None or before < item.name, f"{source.kind}: {item.name!r} after {before!r}"
        before = item.name
        try:
            found = item.path.stat()
        except OSError:
            yield item, -1, -1
        else:
            yield item, found.st_size, found.st_mtime_ns


def _begin(source: Source) -> "hashlib._Hash":
    return hashlib.sha256(repr((VERSION, source.kind, list(source.classes))).encode())


def _fingerprint(item: Item, bytes_: int, mtime_ns: int) -> bytes:
    return repr((item.name, bytes_, mtime_ns, item.labels, item.source, item.mask)).encode()


def _ends_here(name_hash: int, file_bytes: int, size: int, shard_bytes: int) -> bool:
    marked = name_hash * shard_bytes < 16 * file_bytes << 64
    return size >= 2 * shard_bytes or (size >= shard_bytes and marked)


def _with_clashes(cuts: list[tuple[int, int, str]], hashes: np.ndarray) -> Plan:
    """A key depends on the whole split: names elsewhere may clash with it, so that belongs to a shard's digest."""
    ordered = np.sort(hashes)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    shards = []
    for start, end, digest in cuts:
        here = np.flatnonzero(np.isin(hashes[start:end], twice)) if len(twice) else np.empty(0, np.int64)
        whole = hashlib.sha256(digest.encode() + here.astype("<i8").tobytes()).hexdigest()
        shards.append(PlannedShard(end - start, digest, whole))
    return Plan(shards, frozenset(twice.tolist()))
