"""Samples in, a data set out: WebDataset shards, one index a split, dataset.json. Whole or not at all."""

import hashlib
import json
import re
import shutil
import tarfile
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import webdataset as wds

from ktse_dist.data.index import FORMAT, Entry, write_index
from ktse_dist.data.palette import voc_palette
from ktse_dist.errors import UserError

SHARD_BYTES = 64_000_000
KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
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
    return re.sub(r"/+", "/", re.sub(r"[^A-Za-z0-9_/-]", "_", stem)).strip("/")


def write_split(folder: Path, split: str, samples: Iterable[Sample], classes: int, shard_bytes: int) -> dict[str, Any]:
    """Shards and index of one split in `folder`; returns its entry of dataset.json. Memory: the index entries.

    UserError for no samples at all, a key that is taken or not as `key_of` makes them, a label outside the classes.
    """
    # absolute, since webdataset takes "scheme:..." for a URL; the pattern is a %-format
    pattern = str(folder.resolve()).replace("%", "%%") + f"/{split}-%05d.tar"
    with wds.ShardWriter(pattern, maxcount=10**9, maxsize=shard_bytes, mtime=0, encoder=False, verbose=0) as writer:
        for sample in checked(samples, split, classes):
            about = json.dumps({"labels": list(sample.labels), "source": sample.source}, sort_keys=True).encode()
            record = {"__key__": sample.key, "jpg": sample.jpeg, "json": about}
            writer.write(record | ({"mask.png": sample.mask} if sample.mask is not None else {}))
    shards = sorted(folder.glob(f"{split}-*.tar"))
    entries = [entry for number, shard in enumerate(shards) for entry in read_shard(shard, number)]
    file = folder / f"{split}.index"
    write_index(file, entries, classes)
    counts = Counter(entry.shard for entry in entries)
    return {
        "samples": len(entries),
        "index": file.name,
        "index_sha256": digest(file),
        "shards": [
            {"name": shard.name, "bytes": shard.stat().st_size, "samples": counts[number], "sha256": digest(shard)}
            for number, shard in enumerate(shards)
        ],
    }


def checked(samples: Iterable[Sample], split: str, classes: int) -> Iterator[Sample]:
    """The samples as they come; what would be lost or mistaken in a shard is refused."""
    keys: set[str] = set()
    for sample in samples:
        if not KEY.fullmatch(sample.key):
            raise UserError(
                f"{split}: {sample.key!r} is no key; allowed are letters, digits and _ / -; rename the file"
            )
        if sample.key in keys:
            raise UserError(f"{split}: two pictures have the key '{sample.key}' ({sample.source}); rename one of them")
        outside = [label for label in sample.labels if not 0 <= label < classes]
        if outside:
            raise UserError(
                f"{split}: {sample.key} has label {outside[0]}; allowed are 0 to {classes - 1}; mend its tags"
            )
        keys.add(sample.key)
        yield sample
    if not keys:
        raise UserError(f"{split}: no pictures; a split needs at least one")


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
    about = {"format": FORMAT, "classes": list(classes), "palette": voc_palette(len(classes) + 1), "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(about | more, indent=1, sort_keys=True) + "\n")


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
