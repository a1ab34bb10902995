"""One shard looked at, in a worker process: sizes of pictures, what masks show, and everything that is wrong. Free of
torch."""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import simplejpeg

from ktse_dist.data.decode import MAX_SIDE, BadSample, check_size, decode_jpeg, decode_mask
from ktse_dist.data.index import Index, Shard
from ktse_dist.data.palette import IGNORE
from ktse_dist.data.verify import Members, Problem, Problems, check_members, check_shard, member_name, tar_members

HEAD = 1 << 16  # bytes in which a JPEG's size stands, unless large notes precede it
MOST_LETTERS = 200  # told of wrong labels


@dataclass
class Findings:
    """What was found in some pictures; `add` joins those of others. Its size does not grow with the data.

    widths, heights [MAX_SIDE + 1]: pictures of each size.    values, pixels [256]: pictures whose mask has a value, and
    its pixels.    masks: pictures with one.    contradictions: pictures whose mask shows a class that their tags lack.
    """

    pictures: int = 0
    masks: int = 0
    contradictions: int = 0
    widths: np.ndarray = field(default_factory=lambda: np.zeros(MAX_SIDE + 1, np.int64))
    heights: np.ndarray = field(default_factory=lambda: np.zeros(MAX_SIDE + 1, np.int64))
    values: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    problems: Problems = field(default_factory=Problems)

    def add(self, other: "Findings") -> None:
        self.pictures += other.pictures
        self.masks += other.masks
        self.contradictions += other.contradictions
        self.problems.join(other.problems)
        for mine, its in zip(self._arrays(), other._arrays(), strict=True):
            mine += its

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.widths, self.heights, self.values, self.pixels


def examine(index: Index, verify: bool, names: dict[str, str], number: int) -> Findings:
    """Shard `number` of a split. verify: every byte and every member; else only sizes and masks.

    names: all shards by their sha256. Damage is among the findings; nothing is raised for it.
    """
    rows = np.flatnonzero(index.samples["shard"] == number)
    findings, name = Findings(pictures=len(rows)), index.shards[number].name
    if not (index.path / name).is_file():
        findings.problems.add(Problem(name, None, "missing; copy the whole data set, or pack it again"))
        return findings
    try:
        _examine(index, index.shards[number], rows, names if verify else None, findings)
    except OSError as error:
        findings.problems.add(Problem(name, None, f"cannot be read ({error.strerror})"))
    return findings


def _examine(index: Index, shard: Shard, rows: np.ndarray, names: dict[str, str] | None, findings: Findings) -> None:
    path, members = index.path / shard.name, None
    if names is not None:
        wrong, is_another = check_shard(path, shard, names)
        findings.problems.extend(wrong)
        if is_another:
            return  # every one of its members would be a problem of its own
        members = tar_members(path)
        findings.problems.extend([*members.problems, *check_members(index, shard.name, rows, members)])
    with path.open("rb") as file:
        look = _Look(index, file, shard.name, members, findings)
        for row in rows.tolist():
            look.at(row)


def _decoded(decode: Callable[[bytes], np.ndarray], content: bytes, member: str) -> np.ndarray:
    try:
        return decode(content)
    except BadSample as error:
        raise BadSample(f"its {member} is {error}") from None


class _Look:
    """Goes from picture to picture of an open shard."""

    def __init__(self, index: Index, file: BinaryIO, shard: str, members: Members | None, findings: Findings):
        self.index, self.file, self.shard, self.members, self.findings = index, file, shard, members, findings
        self.bytes = os.fstat(file.fileno()).st_size
        self.size: tuple[int, int] | None = None  # of the picture looked at: height, width

    def at(self, row: int) -> None:
        self.size = None
        for part in (self._picture, self._tags, self._truth):
            try:
                part(row)
            except BadSample as error:
                self.findings.problems.add(Problem(self.shard, self.index.key(row), str(error)))

    def _picture(self, row: int) -> None:
        if self.members:
            content = self._read(row, "image")
            if content is None:
                return
            height, width = _decoded(decode_jpeg, content, "image").shape[:2]
        else:
            height, width = self._header(row)
        self.size = height, width
        self.findings.heights[height] += 1
        self.findings.widths[width] += 1

    def _header(self, row: int) -> tuple[int, int]:
        """The size of a JPEG from its head; the checksum, which needs all of it, stays unseen."""
        offset, size, _ = self.index.samples["image"][row].tolist()
        try:
            try:
                height, width, *_ = simplejpeg.decode_jpeg_header(self._bytes(offset, min(size, HEAD)))
            except ValueError:  # large notes precede the size
                height, width, *_ = simplejpeg.decode_jpeg_header(self._bytes(offset, size))
        except ValueError as error:
            raise BadSample(f"its image is not a JPEG ({error})") from None
        check_size(height, width)
        return height, width

    def _tags(self, row: int) -> None:
        content = self._read(row, "json") if self.members else None
        if content is None:
            return
        try:
            told = json.loads(content)
        except (ValueError, RecursionError):
            raise BadSample("its json is not JSON") from None
        labels, tags = told.get("labels") if isinstance(told, dict) else None, self._labels(row)
        if not (isinstance(labels, list) and all(type(label) is int for label in labels)):
            raise BadSample("its json has no list of labels")
        if sorted(labels) != tags:
            found, expected = (str(numbers)[:MOST_LETTERS] for numbers in (labels, tags))
            raise BadSample(f"its json has the labels {found}, the index {expected}")

    def _truth(self, row: int) -> None:
        content = self._read(row, "mask") if self.index.samples["mask"]["size"][row] else None
        if content is None:
            return
        mask = _decoded(decode_mask, content, "mask")
        if self.size and mask.shape != self.size:
            (height, width), (tall, wide) = self.size, mask.shape
            raise BadSample(f"its mask has {wide}x{tall} pixels, its picture {width}x{height}")
        pixels = np.bincount(mask.ravel(), minlength=256)
        self._count(row, pixels)

    def _count(self, row: int, pixels: np.ndarray) -> None:
        present = np.flatnonzero(pixels)
        classes = len(self.index.classes)
        outside = present[(present > classes) & (present != IGNORE)].tolist()
        if outside:
            raise BadSample(f"its mask has the value {outside[0]}; allowed are 0 to {classes} and {IGNORE}")
        self.findings.masks += 1
        self.findings.pixels += pixels
        self.findings.values[present] += 1
        shown = set((present[(present > 0) & (present != IGNORE)] - 1).tolist())
        self.findings.contradictions += not shown <= set(self._labels(row))

    def _labels(self, row: int) -> list[int]:
        return np.flatnonzero(self.index.labels([row])[0]).tolist()

    def _read(self, row: int, member: str) -> bytes | None:
        """A member from where it lies; None for one that is missing, which check_members told."""
        offset, size, crc = self.index.samples[member][row].tolist()
        if self.members:
            place = self.members.places.get(member_name(self.index.key(row), member))
            if place is None and self.members.whole:
                return None
            offset = place[0] if place else offset
        content = self._bytes(offset, size)
        if not size or zlib.crc32(content) != crc:
            raise BadSample(f"its {member} is {'damaged (crc32)' if size else 'missing'}")
        return content

    def _bytes(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(min(size, self.bytes))  # a damaged index may ask for 4 GB
