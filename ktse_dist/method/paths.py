"""Which pixels IRN compares, and which lie between two of them (docs/method.md 3). Free of torch."""

from functools import cache
from math import ceil
from typing import NamedTuple

Offset = tuple[int, int]  # y, x


class Path(NamedTuple):
    """The straight way from a pixel to `end`, as offsets from that pixel.

    pixels: those nearer than 1 to the line, both ends among them, the far end first.
    """

    end: Offset
    pixels: tuple[Offset, ...]


@cache
def paths(radius: int) -> tuple[Path, ...]:
    """Ways to all pixels nearer than `radius` in one half of the plane, so that no pair is met twice.

    Shorter ways come first, as in the published code: 34 for radius 5, 152 for radius 10.
    """
    across = range(1 - radius, radius)
    ends = [(0, x) for x in range(1, radius)]
    ends += [(y, x) for y in range(1, radius) for x in across if y * y + x * x < radius**2]
    return tuple(sorted(map(path, ends), key=lambda way: len(way.pixels)))


def path(end: Offset) -> Path:
    columns = range(min(0, end[1]), max(0, end[1]) + 1)
    near = [
        (y, x) for y in range(end[0] + 1) for x in columns if (end[0] * x - end[1] * y) ** 2 < end[0] ** 2 + end[1] ** 2
    ]
    return Path(end, tuple(sorted(near, key=lambda p: -abs(p[0]) - abs(p[1]))))


def margin(radius: int) -> int:
    """How far a pixel must be from the lower and the side borders for all its ways to stay inside."""
    return ceil(radius) - 1
