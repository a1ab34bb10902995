"""Procedural scenes to put drawings on: textures, horizons, light, and clutter that belongs to no class.

A texture is a field of noise read through a ramp of colours, all in 8 bits: that is what makes it fast.
"""

from collections.abc import Callable

import cv2
import numpy as np

from ktse_dist.data.pack.noise import field

Rng = np.random.Generator
Colour = tuple[int, int, int]


def ramp(rng: Rng, *colours: Colour, jitter: float = 16) -> np.ndarray:
    """A colour for each of 256 levels, uint8 [256,1,3]: the given ones from dark to bright, all shifted alike."""
    stops = np.array(colours, np.float32) + rng.uniform(-jitter, jitter, 3).astype(np.float32)
    levels = np.linspace(0, 255, len(colours))
    table = np.stack([np.interp(np.arange(256), levels, channel) for channel in stops.T], axis=1)
    return np.clip(table, 0, 255).astype(np.uint8)[:, None]


def paint(levels: np.ndarray, table: np.ndarray) -> np.ndarray:
    return cv2.applyColorMap(levels, table)


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row [height,1] and column [1,width] numbers."""
    return np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)[None]


def cell_levels(rng: Rng, rows: np.ndarray, columns: np.ndarray, spread: float) -> np.ndarray:
    """One drawn level for each cell of a pattern (a brick, a plank): float32, given the cells' numbers."""
    table = rng.uniform(-spread, spread, 1024).astype(np.float32)
    return table[(rows * 37 + columns * 101) % 1024]


def shifted(levels: np.ndarray, change: np.ndarray | float) -> np.ndarray:
    return np.clip(levels + change, 0, 255).astype(np.uint8)


def sky(rng: Rng, height: int, width: int) -> np.ndarray:
    slope = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    blue = paint(slope, ramp(rng, (84, 142, 220), (150, 192, 236), (205, 222, 240)))
    picture = np.repeat(blue, width, axis=1)
    if rng.random() < 0.7:
        cover = cv2.LUT(field(rng, "cloud", height, width), _cloud_cover(rng.uniform(120, 165)))
        cover = cv2.merge([cover] * 3)
        picture = cv2.multiply(picture, 255 - cover, scale=1 / 255) + cv2.multiply(cover, (244,) * 4, scale=1 / 255)
    return picture


def _cloud_cover(start: float) -> np.ndarray:
    return np.clip((np.arange(256) - start) * 3.2, 0, 235).astype(np.uint8)


def natural(noise: str, *colours: Colour, jitter: float = 16) -> Callable[[Rng, int, int], np.ndarray]:
    """A texture that is nothing but noise of a kind in a ramp of colours."""

    def texture(rng: Rng, height: int, width: int) -> np.ndarray:
        return paint(field(rng, noise, height, width), ramp(rng, *colours, jitter=jitter))

    return texture


def brick(rng: Rng, height: int, width: int) -> np.ndarray:
    tall = int(rng.integers(10, 22))
    wide = int(tall * rng.uniform(2, 3))
    y, x = grid(height, width)
    row = y // tall
    x = x + row % 2 * (wide // 2)
    levels = shifted(field(rng, "stone", height, width) * 0.5 + 64, cell_levels(rng, row, x // wide, 55))
    picture = paint(levels, ramp(rng, (96, 42, 32), (168, 88, 66), (206, 128, 100)))
    picture[(y % tall < 2) | (x % wide < 2)] = ramp(rng, (190, 182, 170))[0, 0]
    return picture


def wood(rng: Rng, height: int, width: int) -> np.ndarray:
    """Planks; upright ones by a turn of a quarter."""
    if rng.random() < 0.5:
        return np.ascontiguousarray(_planks(rng, width, height).transpose(1, 0, 2))
    return _planks(rng, height, width)


def _planks(rng: Rng, height: int, width: int) -> np.ndarray:
    plank = int(rng.integers(18, 45))
    y, _ = grid(height, width)
    levels = field(rng, "grain", height, width) * 0.6 + 51
    levels = shifted(levels, cell_levels(rng, y // plank, np.zeros_like(y), 45))
    picture = paint(levels, ramp(rng, (84, 50, 26), (160, 110, 66), (206, 158, 108)))
    picture[y[:, 0] % plank == 0] //= 2
    return picture


def wall(rng: Rng, height: int, width: int) -> np.ndarray:
    levels = field(rng, "plaster", height, width) * 0.3 + 90
    if rng.random() < 0.5:
        stripe = int(rng.integers(10, 30))
        levels = levels + (grid(height, width)[1] // stripe % 2) * rng.uniform(-90, 90)
    return paint(shifted(levels, 0), ramp(rng, (170, 160, 142), (206, 196, 176), (226, 218, 202), jitter=38))


def road(rng: Rng, height: int, width: int) -> np.ndarray:
    levels = field(rng, "speckle", height, width)
    picture = paint(levels, ramp(rng, (60, 62, 68), (98, 100, 105), (132, 133, 138)))
    if rng.random() < 0.6:
        y, x = grid(height, width)
        middle = rng.uniform(0.2, 0.8) * width + rng.uniform(-0.6, 0.6) * (y - height / 2)
        picture[(np.abs(x - middle) < 3) & (y % 30 < 18)] = 225
    return picture


def tile(rng: Rng, height: int, width: int) -> np.ndarray:
    side = int(rng.integers(18, 40))
    y, x = grid(height, width)
    levels = field(rng, "plaster", height, width) * 0.3 + 150
    levels = shifted(levels, -((x // side + y // side) % 2) * rng.uniform(0, 130))
    picture = paint(levels, ramp(rng, (120, 118, 116), (232, 231, 229), jitter=22))
    joint = (x % side == 0) | (y % side == 0)
    picture[joint] = (picture[joint] * 0.75).astype(np.uint8)
    return picture


TEXTURES: dict[str, Callable[[Rng, int, int], np.ndarray]] = {
    "sky": sky,
    "grass": natural("blade", (34, 74, 22), (84, 138, 54), (140, 184, 92)),
    "water": natural("wave", (14, 62, 104), (44, 106, 150), (112, 164, 196)),
    "sand": natural("dune", (176, 148, 102), (212, 186, 138), (234, 214, 174)),
    "brick": brick,
    "wood": wood,
    "wall": wall,
    "gravel": natural("stone", (62, 58, 54), (134, 129, 122), (204, 198, 190)),
    "road": road,
    "snow": natural("dune", (206, 214, 228), (230, 235, 242), (246, 248, 250), jitter=8),
    "foliage": natural("leaf", (10, 32, 14), (48, 92, 42), (112, 152, 80)),
    "tile": tile,
}
SCENES = tuple(TEXTURES)
OUTDOOR_GROUND, FLOOR = ("grass", "water", "sand", "gravel", "road", "snow"), ("wood", "tile")


def scene(rng: Rng, name: str, height: int, width: int) -> np.ndarray:
    """A background of the named kind, uint8 [height,width,3] RGB: often two textures, light from a side, clutter."""
    picture = _two_textures(rng, name, height, width)
    if rng.random() < 0.5:
        picture = _light(rng, picture)
    for _ in range(rng.integers(0, 3)):
        _clutter(rng, picture)
    return picture


def _two_textures(rng: Rng, name: str, height: int, width: int) -> np.ndarray:
    chance = rng.random()
    if name in OUTDOOR_GROUND and chance < 0.6:
        above = "sky" if rng.random() < 0.6 else "foliage"
        return _horizon(rng, above, name, height, width, rng.uniform(0.1, 0.45))
    if name in FLOOR and chance < 0.5:
        above = "wall" if rng.random() < 0.7 else "brick"
        return _horizon(rng, above, name, height, width, rng.uniform(0.2, 0.55))
    if name == "sky" and chance < 0.4:
        below = ("grass", "foliage", "road", "gravel")[rng.integers(4)]
        return _horizon(rng, name, below, height, width, rng.uniform(0.65, 0.9))
    return TEXTURES[name](rng, height, width)


def _horizon(rng: Rng, above: str, below: str, height: int, width: int, share: float) -> np.ndarray:
    """`above` over the top share of the picture, `below` under it as a plane that recedes."""
    line = int(height * share)
    far = TEXTURES[above](rng, line, width)
    ground = TEXTURES[below](rng, round((height - line) * 1.5), round(width * 1.5))
    return np.concatenate([far, _recede(ground, height - line, width)])


def _recede(ground: np.ndarray, height: int, width: int) -> np.ndarray:
    """Seen at a slant: the whole far edge, two thirds of the near one."""
    rows, columns = ground.shape[:2]
    margin = (columns - width) / 2
    near_left, near_right = (margin, rows - 1), (columns - margin, rows - 1)
    source = np.array([(0, 0), (columns, 0), near_right, near_left], np.float32)
    target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    matrix = cv2.getPerspectiveTransform(source, target)
    return cv2.warpPerspective(ground, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)


def _light(rng: Rng, picture: np.ndarray) -> np.ndarray:
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.25)
    across, down = strength * np.cos(angle) / 2, strength * np.sin(angle) / 2
    corners = 1 + np.array([[-across - down, across - down], [down - across, across + down]], np.float32)
    gain = cv2.resize(cv2.merge([corners] * 3), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.multiply(picture, gain, dtype=cv2.CV_8U)


def _clutter(rng: Rng, picture: np.ndarray) -> None:
    """A polygon of about the colour that it covers: something, but none of the classes."""
    height, width = picture.shape[:2]
    colour = picture[rng.integers(height), rng.integers(width)] + rng.uniform(-35, 35, 3)
    corners = int(rng.integers(3, 6))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radii = rng.uniform(8, 30) * rng.uniform(0.4, 1, corners)
    centre = rng.uniform(0, (width, height))
    points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(picture, [points.astype(np.int32)], tuple(float(v) for v in colour), lineType=cv2.LINE_AA)
