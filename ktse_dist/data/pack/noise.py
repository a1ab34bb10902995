"""Noise for textures: a few tiles made once a process, of which every picture takes drawn windows.

The tiles depend on constants alone, so a window is a pure function of what the picture's generator draws.
"""

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 640
SPREAD = 42  # standard deviation of a tile in grey levels, about 128


class Kind(NamedTuple):
    """cells: coarsest grid across the tile, down and across; octaves finer grids follow, each `gain` as strong."""

    seed: int
    cells: tuple[float, float]
    octaves: int
    gain: float


KINDS = {
    "cloud": Kind(1, (10, 5), 6, 0.55),
    "blade": Kind(2, (16, 26), 6, 0.85),
    "leaf": Kind(3, (14, 14), 6, 0.85),
    "wave": Kind(4, (34, 6), 6, 0.7),
    "grain": Kind(5, (40, 5), 5, 0.7),
    "stone": Kind(6, (40, 40), 5, 0.95),
    "dune": Kind(7, (12, 7), 6, 0.6),
    "speckle": Kind(8, (4, 4), 8, 1.15),
    "plaster": Kind(9, (6, 6), 5, 0.6),
}


@cache
def _tile(name: str) -> np.ndarray:
    kind = KINDS[name]
    rng = np.random.default_rng([kind.seed, SIDE])
    total = np.zeros((SIDE, SIDE), np.float32)
    for octave in range(kind.octaves):
        rows, columns = (min(SIDE, max(2, round(cells * 2**octave))) for cells in kind.cells)
        grid = rng.standard_normal((rows, columns), dtype=np.float32)
        total += kind.gain**octave * cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + SPREAD * total / total.std(), 0, 255).astype(np.uint8)


def field(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """A window of the tile, mirrored by chance and up to a quarter larger or smaller: uint8 [height,width]."""
    zoom = rng.uniform(0.75, 1.25)
    rows, columns = min(SIDE, round(height * zoom)), min(SIDE, round(width * zoom))
    top, left = rng.integers(SIDE - rows + 1), rng.integers(SIDE - columns + 1)
    window = _tile(name)[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        window = cv2.flip(window, 1)
    return cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR)


@cache
def _sensor() -> np.ndarray:
    return np.random.default_rng([0, SIDE]).standard_normal((SIDE, SIDE, 3), dtype=np.float32)


def add_sensor_noise(rng: np.random.Generator, picture: np.ndarray, strength: float) -> np.ndarray:
    """Independent noise on every pixel and channel; strength: standard deviation in grey levels."""
    height, width = picture.shape[:2]
    top, left = rng.integers(SIDE - height + 1), rng.integers(SIDE - width + 1)
    window = _sensor()[top : top + height, left : left + width]
    return cv2.add(picture, window * np.float32(strength), dtype=cv2.CV_8U)
