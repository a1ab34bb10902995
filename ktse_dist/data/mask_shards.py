"""Masks as shards: one tar for each picture shard, same name and order, and an index to read them by row.

DIR/train-00000.tar       `{key}.conf.png`, `{key}.mask.png` of each picture; any WebDataset reader reads it
DIR/train.masks.npy       RECORD for each row of the picture index (size 0: this picture has no mask)
DIR/train.masks.json      format version, sha256 of the picture index, per shard its name, bytes and sha256
"""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import webdataset as wds

from ktse_dist.data.index import Index
from ktse_dist.data.mask_settings import masks_command
from ktse_dist.data.palette import IGNORE
from ktse_dist.errors import UserError
from ktse_dist.files import atomic, read_json

FORMAT = 1
PNG, END_OF_TAR = b"\x89PNG\r\n\x1a\n", bytes(1024)
_MEMBER = [("offset", "<u4"), ("size", "<u4"), ("crc32", "<u4")]
RECORD = np.dtype([("mask", _MEMBER), ("conf", _MEMBER)])
Member = Literal["mask", "conf"]


class MaskFiles(NamedTuple):
    """One picture's masks, encoded by formats.encode_mask and formats.encode_confidence."""

    key: str
    mask: bytes
    conf: bytes


def says_nothing(mask: np.ndarray) -> bool:
    """Whether a mask stands for a picture that could not be read: 255 everywhere."""
    return bool((mask == IGNORE).all())


def write_mask_shard(path: Path, pictures: Iterable[MaskFiles]) -> None:
    """Write one shard. It appears under its name only when complete, so an existing shard need not be made again."""
    with atomic(path) as file, wds.TarWriter(file, mtime=0, encoder=False) as tar:
        for picture in pictures:
            tar.write({"__key__": picture.key, "mask.png": picture.mask, "conf.png": picture.conf})


def write_mask_index(directory: Path, index: Index) -> None:
    """Index the shards that `directory` holds for `index`; shards and pictures without masks are allowed.

    A picture that the index does not have at this place: UserError.
    """
    records = np.zeros(len(index), RECORD)
    row_shards = np.asarray(index.samples["shard"])
    shards = []
    for number, shard in enumerate(index.shards):
        path = directory / shard.name
        if path.exists():
            rows = {index.key(row): row for row in np.flatnonzero(row_shards == number).tolist()}
            _index_shard(path, rows, records)
            shards.append({"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)})
    with atomic(directory / f"{index.split}.masks.npy") as file:
        np.save(file, records)
    about = {"format": FORMAT, "pictures": index.sha256, "shards": shards}
    with atomic(directory / f"{index.split}.masks.json") as file:
        file.write(json.dumps(about, indent=1).encode())


def _index_shard(path: Path, rows: dict[str, int], records: np.ndarray) -> None:
    damaged = f"{path}: damaged; delete it, the same command then makes it again"
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, name, _ = member.name.rsplit(".", 2)
                if key not in rows:
                    raise UserError(
                        f"{path} has a mask of '{key}', which its picture shard lacks: delete it, make it again"
                    )
                content = tar.extractfile(member).read()
                if not is_whole_png(content):
                    raise UserError(damaged)
                records[name][rows[key]] = (member.offset_data, member.size, zlib.crc32(content))
    except (tarfile.TarError, ValueError, EOFError):
        raise UserError(damaged) from None
    if not ends_as_a_tar(path):  # tarfile takes one that was cut between two members for whole
        raise UserError(damaged)


def ends_as_a_tar(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(END_OF_TAR)))
        return file.read() == END_OF_TAR


def is_whole_png(content: bytes) -> bool:
    """Whether the checksum of every chunk is right, up to the last one."""
    at, kind = len(PNG), b""
    while content.startswith(PNG) and at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
            return False
        kind, at = content[at + 4 : at + 8], end
    return kind == b"IEND" and at == len(content)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class MaskIndex:
    """Masks by the row numbers of the picture index they belong to."""

    def __init__(self, directory: Path, index: Index):
        """Open the masks of `index` in `directory`. Missing, or made for other pictures: UserError."""
        self._directory, self._index = directory, index
        path = directory / f"{index.split}.masks.json"
        if not path.exists():
            missing = f"has no masks of split '{index.split}' ({path.name} is missing)"
            raise UserError(f"{directory} {missing}; make them: {masks_command(directory)}")
        mend = "delete it and give the ktse masks command of its run again"
        about = read_json(path, mend, needs=("format", "pictures"))
        if (about["format"], about["pictures"]) != (FORMAT, index.sha256):
            other = f"made for other pictures than those of {index.path}"
            raise UserError(f"{path}: {other}; delete {directory} to make its masks anew")
        self._records = _read_records(path.with_suffix(".npy"), len(index), mend)

    def has(self, row: int) -> bool:
        """Whether this picture has a mask."""
        return bool(self._records["mask"]["size"][row])

    def read(self, row: int, member: Member) -> bytes:
        """The PNG bytes of a picture's mask or confidence. None there, or damaged: UserError."""
        if not self.has(row):
            raise UserError(f"{self._directory} has no mask of '{self._index.key(row)}': make masks of all pictures")
        record = self._records[member][row]
        path = self._directory / self._index.shards[self._index.samples["shard"][row]].name
        try:
            with open(path, "rb") as file:
                file.seek(int(record["offset"]))
                content = file.read(int(record["size"]))
        except FileNotFoundError:
            raise UserError(f"{path}: not there; make it again: {masks_command(self._directory)}") from None
        if zlib.crc32(content) != record["crc32"]:
            anew = f"delete the shard and make it again: {masks_command(self._directory)}"
            raise UserError(f"{path}: {member} of '{self._index.key(row)}' is damaged; {anew}")
        return content


def _read_records(path: Path, pictures: int, mend: str) -> np.ndarray:
    try:
        records = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged ({error}); {mend}") from None
    if records.dtype != RECORD or len(records) < pictures:  # an index of the first pictures alone has fewer
        raise UserError(f"{path}: damaged, not of {pictures} pictures; {mend}")
    return records
