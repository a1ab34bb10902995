"""The binary index of a split: where every member lies, its checksum, and the tags. Memory-mapped.

`{split}.index`, little endian: MAGIC, then int64 counts (samples, classes, bytes of keys), then one RECORD a sample,
then all keys as UTF-8, then ceil(classes/8) bytes of packed tag bits a sample. Names, colours and shards stand in
dataset.json.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np

from ktse_dist.errors import UserError

if TYPE_CHECKING:
    from ktse_dist.data.remote_set import RemoteSet

FORMAT = 1
MAGIC = b"KTSEIDX1"
_MEMBER = [("offset", "<u4"), ("size", "<u4"), ("crc32", "<u4")]
RECORD = np.dtype([("shard", "<u4"), ("image", _MEMBER), ("json", _MEMBER), ("mask", _MEMBER), ("key_end", "<u4")])
SHOWN = 80  # letters of a key that is none
HEADER = len(MAGIC) + 3 * 8
SPLITS = ("train", "val")
ATTRIBUTION = "ATTRIBUTION.md"
KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")  # names files and members of tars, stands in HTML
EXTENSIONS = {"image": "jpg", "json": "json", "mask": "mask.png"}  # a member is named KEY.EXTENSION
SHARD_NAME, SPLIT_NAME = re.compile(r"[\w-]+\.tar"), re.compile(r"[\w-]+")


class Shard(NamedTuple):
    name: str
    bytes: int
    samples: int
    sha256: str


class Index:
    """One split of a packed data set. samples: structured array with RECORD's fields; a mask size of 0 means none."""

    def __init__(self, path: Path, split: str, about: dict[str, Any], remote: Union["RemoteSet", None] = None):
        """path: the data set's folder, of a remote one its copy; about: its dataset.json. Use `open`."""
        entry = about["splits"][split]
        self.path, self.split, self.remote = path, split, remote
        self.classes: list[str] = about["classes"]
        self.palette: list[list[int]] = about["palette"]
        self.shards = [Shard(**shard) for shard in entry["shards"]]
        self._about = about
        self._map()

    @classmethod
    def open(cls, place: Union[Path, "RemoteSet"], split: str) -> "Index":
        """UserError for a folder that is no data set, another format, or an index that does not fit dataset.json."""
        about = read_dataset(place) if isinstance(place, Path) else place.about
        if split not in about["splits"]:
            where = place if isinstance(place, Path) else place.remote
            raise UserError(f"{where}: no split '{split}'; it has {', '.join(about['splits'])}")
        return cls(place, split, about) if isinstance(place, Path) else cls(place.path, split, about, place)

    def __reduce__(self) -> tuple:
        about = (self.path, self.split, self._about, self.remote)
        return _mapped, (*about, len(self))  # another process maps the file itself

    def first(self, count: int | None) -> "Index":
        """The first `count` pictures alone; None: all of them."""
        if count is None or count >= len(self):
            return self
        part = copy(self)
        part.samples = self.samples[:count]
        held = np.bincount(part.samples["shard"].astype(np.int64))
        part.shards = [shard._replace(samples=int(n)) for shard, n in zip(self.shards, held, strict=False)]
        return part

    @property
    def place(self) -> str:
        """Where the data set is, for people."""
        return str(self.remote.remote if self.remote else self.path)

    def attribution(self) -> str | None:
        """Who made the pictures, where the data set says so."""
        if self.remote:
            return self.remote.text(ATTRIBUTION)
        file = self.path / ATTRIBUTION
        return file.read_text() if file.is_file() else None

    def _map(self) -> None:
        if self.remote:
            self.remote.fetch_index(self.split)
        file = self.path / f"{self.split}.index"
        if not file.is_file():
            raise UserError(f"{file}: missing; pack the data set again")
        content = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
        if len(content) < HEADER or content[: len(MAGIC)].tobytes() != MAGIC:
            raise UserError(f"{file}: not an index of ktse; pack the data set again")
        count, classes, key_bytes = (int(n) for n in content[len(MAGIC) : HEADER].view("<i8"))
        keys = HEADER + count * RECORD.itemsize
        tags = keys + key_bytes
        if count < 1 or key_bytes < 0:
            raise UserError(f"{file}: holds no pictures; pack the data set again")
        if classes != len(self.classes) or len(content) != tags + count * -(-classes // 8):
            raise UserError(f"{file}: its size does not fit its header or dataset.json; pack the data set again")
        self.samples = content[HEADER:keys].view(RECORD)
        self._keys, self._tags = content[keys:tags], content[tags:].reshape(count, -1)

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, row: int) -> str:
        """The name of a picture; of a foreign index any text, so `check_keys` comes before it names a file."""
        ends = self.samples["key_end"]
        return self._keys[int(ends[row - 1]) if row else 0 : int(ends[row])].tobytes().decode(errors="backslashreplace")

    def odd_key(self) -> str | None:
        """The first key that `ktse pack` would not have written, if any."""
        return next((key for key in map(self.key, range(len(self))) if not KEY.fullmatch(key)), None)

    def check_keys(self) -> None:
        """UserError for an index with a key that `ktse pack` would not have written."""
        odd = self.odd_key()
        if odd is not None:
            file = self.path / f"{self.split}.index"
            allowed = "allowed are letters, digits and _ / -"
            raise UserError(f"{file}: {odd[:SHOWN]!r} is no key; {allowed}; pack the data set again")

    def labels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tags of some rows: float32 [n,C], 0 or 1."""
        bits = np.unpackbits(self._tags[np.asarray(rows, np.int64)], axis=1, count=len(self.classes))
        return bits.astype(np.float32)

    @property
    def shard_sizes(self) -> np.ndarray:
        """How many samples each shard has: int64 [S]; the index names them shard by shard (`check_files`)."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @cached_property
    def sha256(self) -> str:
        with (self.path / f"{self.split}.index").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check_files(self) -> None:
        """UserError for an index that is not the one of dataset.json, or a shard that is missing or of another size."""
        file = self.path / f"{self.split}.index"
        if self.sha256 != self._about["splits"][self.split].get("index_sha256"):
            raise UserError(f"{file}: not the index that dataset.json names (sha256); pack the data set again")
        self._check_rows(file)
        for shard in () if self.remote else self.shards:  # a remote shard is checked when it comes
            path = self.path / shard.name
            found = path.stat().st_size if path.is_file() else None
            if found != shard.bytes:
                what = "missing" if found is None else f"{found:,} bytes, expected are {shard.bytes:,}"
                raise UserError(f"{path}: {what}; copy the whole data set, or pack it again")

    def _check_rows(self, file: Path) -> None:
        """An index may bear the right hash and still be another set's, or made to harm."""
        sizes = [shard.samples for shard in self.shards]
        known = min(sizes, default=-1) >= 0 and sum(sizes) == len(self)  # before a repeat of so many takes memory
        if not known or not np.array_equal(self.samples["shard"], np.repeat(np.arange(len(sizes)), sizes)):
            raise UserError(f"{file}: its rows do not fit the shards of dataset.json; pack the data set again")
        ends = self.samples["key_end"]
        if (ends[1:] < ends[:-1]).any() or int(ends[-1]) != len(self._keys):
            raise UserError(f"{file}: its keys do not follow each other; pack the data set again")


def _mapped(path: Path, split: str, about: dict[str, Any], remote: Union["RemoteSet", None], count: int) -> Index:
    return Index(path, split, about, remote).first(count)


def read_dataset(path: Path) -> dict[str, Any]:
    """dataset.json of a packed data set."""
    file = path / "dataset.json"
    if not file.is_file():
        raise UserError(
            f"{path}: no dataset.json there; give a folder that `ktse pack` wrote, or make one with it; "
            "of a data set that was moved write the new place into its run's config.yaml (data, path)"
        )
    return parse_dataset(file.read_bytes(), str(file))


def parse_dataset(content: bytes, file: str) -> dict[str, Any]:
    """file: what errors call it."""
    try:
        about = json.loads(content)
    except (ValueError, RecursionError):
        raise UserError(f"{file}: not JSON; pack the data set again") from None
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise UserError(f"{file}: format {found}, this version of ktse reads {FORMAT}; pack the data set again")
    if not _well_formed(about):
        raise UserError(f"{file}: parts are missing or of a wrong kind; pack the data set again")
    return about


def _well_formed(about: dict[str, Any]) -> bool:
    """Classes, their colours and that of the background, and splits and shards that are plain names.

    So a data set never points outside its folder.
    """
    classes, palette, splits = about.get("classes"), about.get("palette"), about.get("splits")
    if not (isinstance(classes, list) and isinstance(palette, list) and isinstance(splits, dict)):
        return False
    if len(palette) != len(classes) + 1 or not all(map(_is_colour, palette)):
        return False
    if not all(map(SPLIT_NAME.fullmatch, splits)):
        return False
    entries = [entry.get("shards") if isinstance(entry, dict) else None for entry in splits.values()]
    return all(isinstance(name, str) for name in classes) and all(
        isinstance(shards, list) and all(map(_is_shard, shards)) for shards in entries
    )


def _is_colour(colour: Any) -> bool:
    return isinstance(colour, list) and len(colour) == 3 and all(type(n) is int and 0 <= n <= 255 for n in colour)


def _is_shard(shard: Any) -> bool:
    if not (isinstance(shard, dict) and set(shard) == set(Shard._fields)):
        return False
    kinds = Shard.__annotations__
    return all(type(shard[name]) is kinds[name] for name in kinds) and bool(SHARD_NAME.fullmatch(shard["name"]))


class Entry(NamedTuple):
    """What the index holds of one sample: (offset, size, crc32) of each member, None for a missing mask."""

    key: str
    shard: int
    image: tuple[int, int, int]
    json: tuple[int, int, int]
    mask: tuple[int, int, int] | None
    labels: Sequence[int]


def encode_index(entries: Sequence[Entry], classes: int) -> bytes:
    """The index of a few samples, those of one shard."""
    records = np.zeros(len(entries), RECORD)
    tags = np.zeros((len(entries), classes), np.uint8)
    keys = [entry.key.encode() for entry in entries]
    for row, entry in enumerate(entries):
        records[row] = (entry.shard, entry.image, entry.json, entry.mask or (0, 0, 0), 0)
        tags[row, list(entry.labels)] = 1
    records["key_end"] = np.cumsum([len(key) for key in keys])
    counts = np.array([len(entries), classes, sum(map(len, keys))], "<i8")
    parts = (MAGIC, counts.tobytes(), records.tobytes(), b"".join(keys), np.packbits(tags, axis=1).tobytes())
    return b"".join(parts)


def join_indexes(file: Path, parts: Sequence[Path]) -> str | None:
    """Write the index of a split from those of its shards, in order; returns a key that stands there twice, if any.

    Memory: one part, and 8 bytes a sample.
    """
    counts = [_counts(part) for part in parts]
    with file.open("wb") as stream:
        total = np.sum(counts, axis=0) * (1, 0, 1) + (0, counts[0][1], 0)
        stream.write(MAGIC + total.astype("<i8").tobytes())
        key_bytes = 0
        for number, part in enumerate(parts):
            records = _section(part, 0).view(RECORD)
            records["shard"] = number
            records["key_end"] += key_bytes
            key_bytes += counts[number][2]
            stream.write(records.tobytes())
        for section in (1, 2):
            for part in parts:
                stream.write(_section(part, section).tobytes())
    return _found_twice(parts)


def _found_twice(parts: Sequence[Path]) -> str | None:
    hashes = np.fromiter((hash64(key) for part in parts for key in _keys(part)), np.uint64)
    ordered = np.sort(hashes)
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    return next((key for part in parts for key in _keys(part) if twice and hash64(key) in twice), None)


def _keys(part: Path) -> Iterator[str]:
    keys, start = _section(part, 1).tobytes(), 0
    for end in _section(part, 0).view(RECORD)["key_end"].tolist():
        yield keys[start:end].decode()
        start = end


def hash64(text: str) -> int:
    """The same for the same text everywhere, evenly spread over 0 to 2**64 - 1."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _counts(part: Path) -> list[int]:
    """Samples, classes, bytes of keys."""
    with part.open("rb") as stream:
        return np.frombuffer(stream.read(HEADER)[len(MAGIC) :], "<i8").tolist()


def _section(part: Path, section: int) -> np.ndarray:
    """Records, keys or packed tag bits of an index that we wrote ourselves: uint8, a copy."""
    count, classes, key_bytes = _counts(part)
    sizes = [count * RECORD.itemsize, key_bytes, count * -(-classes // 8)]
    return np.fromfile(part, np.uint8, sizes[section], offset=HEADER + sum(sizes[:section]))
