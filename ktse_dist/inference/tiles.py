"""A picture that is too large for a network at once, seen in tiles whose maps are put together (masks.max_pixels).

Exact where the network sees no further than OVERLAP; else what lies beyond a tile is missing at the tile's own rim.
"""

from collections.abc import Callable
from math import isqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

OVERLAP = 192  # pixels on each side of a tile that only give context
ALIGN = (
    32  # pixels; a tile starts, and lacks to the picture's end, a multiple, so that every stride meets the same pixels
)


class Span(NamedTuple):
    """A tile along one axis: pixels start to end are seen, of which cells first to last of the whole map are kept."""

    start: int
    end: int
    first: int
    last: int


def tiled(see: Callable[[np.ndarray], Tensor], rgb: np.ndarray, stride: int, max_pixels: int) -> Tensor:
    """The map [C, ceil(H/stride), ceil(W/stride)] of rgb uint8 [H,W,3]; `see` gives that of a tile [h,w,3]."""
    tall, wide = largest(*rgb.shape[:2], max_pixels)
    rows = []
    for y in spans(rgb.shape[0], tall, stride):
        row = []
        for x in spans(rgb.shape[1], wide, stride):
            seen = see(rgb[y.start : y.end, x.start : x.end])
            top, left = y.first - y.start // stride, x.first - x.start // stride
            row.append(seen[:, top : top + y.last - y.first, left : left + x.last - x.first])
        rows.append(torch.cat(row, dim=2))
    return torch.cat(rows, dim=1)


def largest(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) that a tile may have: squares, unless the picture is narrower than one."""
    side = isqrt(max_pixels)
    if min(height, width) >= side:
        return side, side
    return (height, max_pixels // height) if height < width else (max_pixels // width, width)


def spans(length: int, most: int, stride: int) -> list[Span]:
    """Tiles of about one size, of at most `most` pixels, that cover an axis."""
    if length <= most:
        return [Span(0, length, 0, -(-length // stride))]
    count = -(-length // ((most - 2 * OVERLAP) // ALIGN * ALIGN - ALIGN))
    core = -(-length // (count * ALIGN)) * ALIGN
    found = []
    for first in range(0, length, core):
        start, last = max(0, first - OVERLAP), min(length, first + core)
        end = min(length, last + OVERLAP)
        end += (length - end) % ALIGN
        found.append(Span(start, end, first // stride, -(-last // stride)))
    return found
