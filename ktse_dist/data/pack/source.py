"""What a data set is to the packer: pictures in a fixed order, each with tags and perhaps a mask. Free of torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ktse_dist.data.decode import BadSample, decode_mask

MAX_FILE_BYTES = 200_000_000
MaskMaker = Callable[[int, int], np.ndarray]  # (height, width) of the upright picture -> uint8 [H,W]


class Item(NamedTuple):
    """One picture of a source.

    name: path within the source, of which the key is made. path: the file. labels: 0-based class ids, ascending.
    source: where it came from, kept in the shard. mask: makes the ground truth in a worker process (class + 1,
    0 background, 255 ignore); a small frozen dataclass whose repr says everything that the mask depends on, since the
    packer knows by it whether a finished shard is still right. None: no ground truth.
    """

    name: str
    path: Path
    labels: tuple[int, ...]
    source: str
    mask: MaskMaker | None


class Source(Protocol):
    """A data set as it lies on the disk. Errors of the user's are UserErrors that name the file."""

    kind: str
    classes: Sequence[str]

    def items(self, split: str) -> Iterator[Item]:
        """The split's pictures sorted by name, the same at every call."""


@dataclass(frozen=True)
class MaskFile:
    """A mask that lies in a PNG file, grey or palette, whose values are passed through. Make it with `at`."""

    path: Path
    bytes: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path) -> "MaskFile":
        """FileNotFoundError where there is none."""
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns)

    def __call__(self, height: int, width: int) -> np.ndarray:
        """uint8 [height,width]. BadSample names the file that is no such mask, or of another size."""
        if self.bytes > MAX_FILE_BYTES:
            raise BadSample(f"{self.path}: {self.bytes:,} bytes; allowed are at most {MAX_FILE_BYTES:,}")
        try:
            mask = decode_mask(self.path.read_bytes())
        except (BadSample, OSError) as error:
            raise BadSample(f"{self.path}: {error}") from None
        if mask.shape != (height, width):
            raise BadSample(f"{self.path}: {mask.shape[1]}x{mask.shape[0]} pixels, its picture has {width}x{height}")
        return mask
