"""Samples in, a data set out: WebDataset shards, one index a split, dataset.json. Whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

import webdataset as wds

from ktse_dist.data.index import EXTENSIONS, FORMAT, KEY, Entry, Shard, encode_index, join_indexes
from ktse_dist.data.palette import voc_palette
from ktse_dist.errors import UserError

SHARD_BYTES = 64_000_000
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEMBERS = {extension: member for member, extension in EXTENSIONS.items()}


class Sample(NamedTuple):
    """One picture: JPEG bytes, 0-based class ids, mask PNG bytes or None, and where it came from."""

    key: str
    jpeg: bytes
    labels: Sequence[int]
    mask: bytes | None
    source: str


def key_of(path: str) -> str:
    """A relative path as a key: no extension, no dots, nothing that a tar or an HTML page could take amiss."""
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", path)
    return re.sub(r"/+", "/", re.sub(r"[^A-Za-z0-9_/-]", "_", stem)).strip("/")


def write_split(folder: Path, split: str, samples: Iterable[Sample], classes: int, shard_bytes: int) -> dict[str, Any]:
    """Shards and index of one split in `folder`; returns its entry of dataset.json. Memory: one shard's index entries.

    UserError for no samples at all, a key that is taken or not as `key_of` makes them, a label outside the classes.
    """
    shards, parts = [], []
    for number, group in groupby(numbered(samples, shard_bytes), key=itemgetter(0)):
        file = folder / f"{split}-{number:05d}.tar"
        parts.append(file.with_suffix(".part"))
        shards.append(write_shard(file, parts[-1], (sample for _, sample in group), classes))
    entry = finish_split(folder, split, shards, parts)
    for part in parts:
        part.unlink()
    return entry


def numbered(samples: Iterable[Sample], shard_bytes: int) -> Iterator[tuple[int, Sample]]:
    """Each sample with the number of its shard: the next one begins when `shard_bytes` of content are reached."""
    number, size = 0, 0
    for sample in samples:
        if size >= shard_bytes:
            number, size = number + 1, 0
        yield number, sample
        size += len(sample.jpeg) + len(about(sample)) + len(sample.mask or b"")


def write_shard(file: Path, part: Path, samples: Iterable[Sample], classes: int) -> Shard:
    """One shard and its part of the index, each under another name until it is whole and on the disk.

    The part is an index of its own, of this shard alone. UserError for what a shard cannot keep.
    """
    building = file.with_name(f".{file.name}.unfinished")
    with building.open("wb") as stream:
        with wds.TarWriter(stream, mtime=0, encoder=False) as tar:
            keys: set[str] = set()
            for sample in samples:
                check(sample, keys, classes)
                keys.add(sample.key)
                record = {"__key__": sample.key, "jpg": sample.jpeg, "json": about(sample)}
                tar.write(record | ({"mask.png": sample.mask} if sample.mask is not None else {}))
        on_disk(stream)
    entries = list(read_shard(building, 0))
    whole = Shard(file.name, building.stat().st_size, len(entries), digest(building))
    write_whole(part, encode_index(entries, classes))
    building.rename(file)
    return whole


def about(sample: Sample) -> bytes:
    return json.dumps({"labels": list(sample.labels), "source": sample.source}, sort_keys=True).encode()


def write_whole(file: Path, content: bytes) -> None:
    """The whole file or none of it, whatever happens."""
    building = file.with_name(f".{file.name}.unfinished")
    with building.open("wb") as stream:
        stream.write(content)
        on_disk(stream)
    building.rename(file)


def on_disk(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def finish_split(folder: Path, split: str, shards: Sequence[Shard], parts: Sequence[Path]) -> dict[str, Any]:
    """The split's index of its shards' parts; returns its entry of dataset.json. Shards without a sample are left out.

    UserError for no samples at all, or two with one key.
    """
    filled = [(shard, part) for shard, part in zip(shards, parts, strict=True) if shard.samples]
    if not filled:
        raise UserError(f"{split}: no pictures; a split needs at least one")
    file = folder / f"{split}.index"
    twice = join_indexes(file, [part for _, part in filled])
    if twice:
        raise UserError(f"{split}: two pictures have the key '{twice}'; rename one of them")
    return {
        "samples": sum(shard.samples for shard, _ in filled),
        "index": file.name,
        "index_sha256": digest(file),
        "shards": [shard._asdict() for shard, _ in filled],
    }


def check(sample: Sample, taken: set[str], classes: int) -> None:
    """What would be lost or mistaken in a shard, whose other keys are `taken`, is refused."""
    if not KEY.fullmatch(sample.key):
        raise UserError(f"{sample.key!r} is no key; allowed are letters, digits and _ / -; rename {sample.source}")
    if sample.key in taken:
        raise UserError(f"two pictures have the key '{sample.key}' ({sample.source}); rename one of them")
    outside = [label for label in sample.labels if not 0 <= label < classes]
    if outside:
        raise UserError(f"{sample.key} has label {outside[0]}; allowed are 0 to {classes - 1}; mend its tags")


def read_shard(shard: Path, number: int) -> Iterator[Entry]:
    """What lies where in a written shard: the index describes the file, not what was meant to be written."""
    with tarfile.open(shard) as tar:
        members: dict[str, tuple[int, int, int]] = {}
        key, labels = "", []
        for item in tar:
            name, _, kind = item.name.partition(".")
            if key and name != key:
                yield Entry(key, number, members["image"], members["json"], members.get("mask"), labels)
                members = {}
            content = tar.extractfile(item).read()
            key, members[MEMBERS[kind]] = name, (item.offset_data, item.size, zlib.crc32(content))
            labels = json.loads(content)["labels"] if kind == "json" else labels
            tar.members = []  # tarfile remembers every header otherwise
        if key:
            yield Entry(key, number, members["image"], members["json"], members.get("mask"), labels)


@contextmanager
def disk_may_be_full(out: Path) -> Iterator[None]:
    """UserError in place of the system's error, when there is no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); make room and run the same command again"
        ) from None


@contextmanager
def new_dataset(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends well, and goes away otherwise.

    Its name is its own, so several processes may make the same data set: the first to end wins. UserError for the
    others, and for a folder that cannot be made.
    """
    taken = UserError(f"{out}: exists already; remove it or give another folder")
    if out.exists():
        raise taken
    building = out.with_name(f".{out.name}.unfinished-{uuid.uuid4().hex[:8]}")
    try:
        building.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); give a folder that you may write to") from None
    try:
        with disk_may_be_full(out):
            yield building
        try:
            building.rename(out)
        except OSError:
            if out.exists():
                raise taken from None
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_about(folder: Path, classes: Sequence[str], splits: dict[str, Any], **more: Any) -> None:
    """dataset.json; `more` are entries of the packer's own."""
    whole = {"format": FORMAT, "classes": list(classes), "palette": voc_palette(len(classes) + 1), "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(whole | more, indent=1, sort_keys=True) + "\n")


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
