"""Samples in, a data set out: WebDataset shards, one index a split, dataset.json. Whole or not at all."""

import hashlib
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import webdataset as wds

from ktse_dist.data.index import FORMAT, Entry, write_index
from ktse_dist.data.palette import voc_palette
from ktse_dist.errors import UserError

SHARD_BYTES = 64_000_000
MEMBERS = {"jpg": "image", "json": "json", "mask.png": "mask"}


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
    return re.sub(r"[^A-Za-z0-9_/-]", "_", stem).strip("/")


def write_split(folder: Path, split: str, samples: Iterable[Sample], classes: int, shard_bytes: int) -> dict[str, Any]:
    """Shards and index of one split in `folder`; returns its entry of dataset.json. Memory: the index entries."""
    pattern = str(folder / f"{split}-%05d.tar")
    with wds.ShardWriter(pattern, maxcount=10**9, maxsize=shard_bytes, mtime=0, encoder=False, verbose=0) as writer:
        for sample in samples:
            about = json.dumps({"labels": list(sample.labels), "source": sample.source}, sort_keys=True).encode()
            record = {"__key__": sample.key, "jpg": sample.jpeg, "json": about}
            writer.write(record | ({"mask.png": sample.mask} if sample.mask is not None else {}))
    shards = sorted(folder.glob(f"{split}-*.tar"))
    entries = [entry for number, shard in enumerate(shards) for entry in read_shard(shard, number)]
    file = folder / f"{split}.index"
    write_index(file, entries, classes)
    counts = [sum(entry.shard == number for entry in entries) for number in range(len(shards))]
    return {
        "samples": len(entries),
        "index": file.name,
        "index_sha256": digest(file),
        "shards": [
            {"name": shard.name, "bytes": shard.stat().st_size, "samples": count, "sha256": digest(shard)}
            for shard, count in zip(shards, counts, strict=True)
        ],
    }


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
        if key:
            yield Entry(key, number, members["image"], members["json"], members.get("mask"), labels)


@contextmanager
def new_dataset(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends well, and goes away otherwise."""
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or give another folder")
    building = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_about(folder: Path, classes: Sequence[str], splits: dict[str, Any], **more: Any) -> None:
    about = {"format": FORMAT, "classes": list(classes), "palette": voc_palette(len(classes) + 1), "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(about | more, indent=1, sort_keys=True) + "\n")


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
