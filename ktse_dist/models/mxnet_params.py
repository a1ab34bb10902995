"""Reader of mxnet's `.params` files, without mxnet: a list of named dense arrays, little-endian.

    u64 0x112, u64 reserved, u64 count, the arrays, u64 count, the names (u64 length and UTF-8 each)

An array is a magic number, its shape, its device (two i32), its type (i32) and the numbers. The layouts differ in the
head: V2 and V3 have an i32 storage type (0 is dense) before the shape; a shape is a u32 count of i64 dimensions; files
of 2016 have no magic, and a count of u32 dimensions stands in its place. No length is believed before it is compared
with what is left of the file, so no file makes the reader allocate more than its own size.
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ktse_dist.errors import UserError

MAGIC = (0x112).to_bytes(8, "little")
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")  # by mxnet's type number
STORAGE = {1: "row_sparse", 2: "csr"}
DEVICES = (1, 2, 3, 5)  # CPU, GPU, pinned and shared CPU memory
MAX_DIMENSIONS = 32
MAX_NAME = 4096  # bytes
SMALLEST_ARRAY = 20  # bytes: one dimension, device and type in the oldest layout
FETCH = "the file is damaged or another kind: fetch it again and compare its size"


def read_params(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of everything in the file, in its order; names keep mxnet's `arg:` and `aux:`.

    Raises UserError, naming what was found, for everything that is not such a file to its last byte.
    """
    with path.open("rb") as file:
        source = _Source(path, file)
        if source.take(8, "the magic number") != MAGIC:
            raise source.error("it does not begin with mxnet's magic number 0x112")
        source.take(8, "the reserved number")
        arrays = [_array(source, number) for number in range(source.count("arrays", SMALLEST_ARRAY))]
        names = list(_names(source))
        if len(names) != len(arrays):
            raise source.error(f"{len(arrays)} arrays and {len(names)} names", "save a dictionary")
        if source.left:
            raise source.error(f"{source.left} bytes follow its last name; nothing may")
        found = dict(zip(names, arrays, strict=True))
        if len(found) != len(arrays):
            raise source.error("two arrays have the same name")
        return found


class _Source:
    """An open file that hands out only what it has."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.left = os.fstat(file.fileno()).st_size

    def error(self, found: str, mend: str = FETCH) -> UserError:
        return UserError(f"{self.path}: as mxnet .params: {found}; {mend}")

    def need(self, size: int, what: str) -> None:
        if size > self.left:
            raise self.error(f"{what} would take {size:,} bytes, and {self.left:,} are left")
        self.left -= size

    def take(self, size: int, what: str) -> bytes:
        self.need(size, what)
        return self.file.read(size)

    def numbers(self, layout: str, what: str) -> tuple[int, ...]:
        layout = f"<{layout}"
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))

    def count(self, what: str, smallest: int) -> int:
        """How many things follow, each of at least `smallest` bytes."""
        (count,) = self.numbers("Q", f"the number of {what}")
        if count * smallest > self.left:
            raise self.error(f"it claims {count:,} {what}, and {self.left:,} bytes are left")
        return count


def _array(source: _Source, number: int) -> np.ndarray:
    what = f"array {number}"
    shape = _shape(source, what)
    device, _ = source.numbers("ii", f"the device of {what}")
    if device not in DEVICES:
        raise source.error(f"{what} has device type {device}; allowed are {', '.join(map(str, DEVICES))}")
    (kind,) = source.numbers("i", f"the type of {what}")
    if not 0 <= kind < len(DTYPES):
        raise source.error(f"{what} has type number {kind}; allowed are 0 to {len(DTYPES) - 1} ({', '.join(DTYPES)})")
    dtype, elements = np.dtype(DTYPES[kind]).newbyteorder("<"), math.prod(shape)
    source.need(elements * dtype.itemsize, f"{what}, {DTYPES[kind]} {list(shape)},")
    return np.fromfile(source.file, dtype, elements).reshape(shape)


def _shape(source: _Source, what: str) -> tuple[int, ...]:
    (magic,) = source.numbers("I", f"the head of {what}")
    if magic in (V2, V3):
        (storage,) = source.numbers("i", f"the storage type of {what}")
        if storage:
            kind = STORAGE.get(storage, f"unknown ({storage})")
            raise source.error(f"{what} has storage type {kind}", "allowed is dense: save it with tostype('default')")
    if magic in (V1, V2, V3):
        (dimensions,) = source.numbers("I", f"the shape of {what}")
    else:
        dimensions = magic
    smallest = 0 if magic == V3 else 1  # before numpy's shapes, no dimensions meant no value
    if not smallest <= dimensions <= MAX_DIMENSIONS:
        raise source.error(
            f"{what} has {dimensions:,} dimensions or an unknown layout; allowed are {smallest} to {MAX_DIMENSIONS}"
        )
    shape = source.numbers(f"{dimensions}{'q' if magic in (V1, V2, V3) else 'I'}", f"the shape of {what}")
    if any(size < 1 for size in shape):
        raise source.error(f"{what} has shape {list(shape)}; dimensions are at least 1")
    return shape


def _names(source: _Source) -> Iterator[str]:
    for _ in range(source.count("names", smallest=8)):
        (length,) = source.numbers("Q", "the length of a name")
        if length > MAX_NAME:
            raise source.error(f"a name claims {length:,} bytes; at most {MAX_NAME} are allowed")
        name = source.take(length, "a name")
        try:
            yield name.decode()
        except UnicodeDecodeError:
            raise source.error(f"the name {name[:40]!r} is not UTF-8") from None
