"""A random part of a picture at one size, and the same part of its masks (docs/method.md 4)."""

import math
from typing import NamedTuple

import cv2
import numpy as np

from ktse_dist.data import keyed

ASPECT = (3 / 4, 4 / 3)  # width over height
ATTEMPTS = 10  # draws for a region that fits; then the largest one in the middle
MIRROR, PLACE = range(2)  # what a draw is for; the attempts follow


class Region(NamedTuple):
    top: int
    left: int
    height: int
    width: int
    mirror: bool


def draw_region(key: int, size: tuple[int, int], area: tuple[float, float]) -> Region:
    """The region that belongs to one key: a share `area` (least, most) of a picture of `size` (height, width)."""
    mirror = keyed.word_below(keyed.word(key, MIRROR), 2) == 1
    for attempt in range(ATTEMPTS):
        share, aspect, y, x = (unit(keyed.word(key, PLACE, attempt, use)) for use in range(4))
        pixels = size[0] * size[1] * (area[0] + (area[1] - area[0]) * share)
        ratio = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** aspect
        height, width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < height <= size[0] and 0 < width <= size[1]:
            top, left = int(y * (size[0] - height + 1)), int(x * (size[1] - width + 1))
            return Region(top, left, height, width, mirror)
    return middle(size, mirror)


def middle(size: tuple[int, int], mirror: bool) -> Region:
    """The largest region of an allowed aspect, centred."""
    height, width = size
    ratio = min(max(width / height, ASPECT[0]), ASPECT[1])
    inner = (min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio))))
    return Region((height - inner[0]) // 2, (width - inner[1]) // 2, *inner, mirror)


def unit(word: int) -> float:
    """0 <= number < 1."""
    return (word >> 11) / 2**53


def cut_picture(picture: np.ndarray, region: Region, side: int) -> np.ndarray:
    """uint8 [H,W,3] -> [side,side,3], bilinear; by area where it would skip pixels."""
    shrink = max(region.height, region.width) / side
    return _cut(picture, region, side, cv2.INTER_AREA if shrink > 2 else cv2.INTER_LINEAR)


def cut_map(values: np.ndarray, region: Region, side: int) -> np.ndarray:
    """uint8 [H,W] -> [side,side], the nearest pixel's."""
    return _cut(values, region, side, cv2.INTER_NEAREST_EXACT)


def _cut(pixels: np.ndarray, region: Region, side: int, how: int) -> np.ndarray:
    part = pixels[region.top : region.top + region.height, region.left : region.left + region.width]
    resized = cv2.resize(part, (side, side), interpolation=how)
    return cv2.flip(resized, 1) if region.mirror else resized
