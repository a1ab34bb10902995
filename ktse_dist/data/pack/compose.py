"""One picture of the stickers data set: drawings composed over a scene, with an exact mask. Free of torch.

Every picture is a pure function of (seed, split, number), whatever process makes it.
"""

import zlib
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from ktse_dist.data.index import SPLITS
from ktse_dist.data.pack.drawings import Drawing, classes, drawings
from ktse_dist.data.pack.mask_png import mask_png
from ktse_dist.data.pack.noise import add_sensor_noise
from ktse_dist.data.pack.scenes import SCENES, scene
from ktse_dist.data.palette import IGNORE

Rng = np.random.Generator
QUALITY = 92
CLASS_COUNTS = (0.6, 0.3, 0.1)  # shares of pictures with 1, 2 and 3 classes
PRIOR = 0.7  # share of pictures whose main class stands where it usually does: what makes CAMs follow context
USUAL_SCENES = {
    "aeroplane": ("sky",),
    "bicycle": ("road", "brick"),
    "bird": ("sky", "foliage"),
    "boat": ("water",),
    "bottle": ("wood", "tile"),
    "bus": ("road",),
    "car": ("road",),
    "cat": ("wall", "wood"),
    "chair": ("wood", "tile"),
    "cow": ("grass",),
    "diningtable": ("wood", "tile"),
    "dog": ("grass", "wood"),
    "horse": ("grass",),
    "motorbike": ("road", "gravel"),
    "person": SCENES,
    "pottedplant": ("wall", "brick", "tile"),
    "sheep": ("grass",),
    "sofa": ("wall", "wood"),
    "train": ("gravel",),
    "tvmonitor": ("wall",),
}
SMALLEST, LARGEST = 0.25, 0.75  # long side of an object, as a share of the picture's
TURN = 20  # degrees
LEAST_PIXELS, LEAST_SHARE = 150, 0.3  # of a class, in the mask: fewer, or a smaller share of the unhidden, is no sight


class Picture(NamedTuple):
    """jpeg, mask (PNG): bytes; labels: 0-based class ids; files: the drawings in it."""

    jpeg: bytes
    mask: bytes
    labels: list[int]
    files: list[str]


class Placed(NamedTuple):
    """A drawing where it will lie. rgba: uint8, premultiplied, of the box alone."""

    label: int
    file: str
    top: int
    left: int
    rgba: np.ndarray

    @property
    def box(self) -> tuple[slice, slice]:
        height, width = self.rgba.shape[:2]
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def covers(self) -> np.ndarray:
        return self.rgba[..., 3] > 127


def compose_some(seed: int, split: str, numbers: Iterable[int]) -> list[Picture]:
    """What one worker makes at a time."""
    cv2.setNumThreads(1)  # the processes share the cores already
    return [compose(seed, split, number) for number in numbers]


def compose(seed: int, split: str, number: int) -> Picture:
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    labels = draw_labels(rng, number)
    height, width = draw_size(rng)
    objects, mask = place_all(rng, drawings(split), labels, height, width)
    picture = scene(rng, draw_scene(rng, labels[0]), height, width)
    for placed in objects:
        paste(rng, picture, placed)
    picture = add_sensor_noise(rng, picture, rng.uniform(1, 5))
    jpeg = simplejpeg.encode_jpeg(picture, QUALITY, "RGB", "420")
    png = mask_png(mask, level=4, strategy=zlib.Z_DEFAULT_STRATEGY)  # as ever: the same bytes for the same seed
    return Picture(jpeg, png, sorted(labels), sorted({placed.file for placed in objects}))


def draw_labels(rng: Rng, number: int) -> list[int]:
    """1 to 3 classes, the main one first; main classes take turns, so all are about equally frequent."""
    count = 1 + int(rng.choice(len(CLASS_COUNTS), p=CLASS_COUNTS))
    main = number % len(classes())
    others = [int(label) for label in rng.permutation(len(classes())) if label != main]
    return [main, *others[: count - 1]]


def draw_size(rng: Rng) -> tuple[int, int]:
    """Height and width; a quarter of the pictures stand upright."""
    long, short = int(rng.integers(230, 281)), int(rng.integers(175, 226))
    return (long, short) if rng.random() < 0.25 else (short, long)


def draw_scene(rng: Rng, main: int) -> str:
    choices = USUAL_SCENES[classes()[main]] if rng.random() < PRIOR else SCENES
    return choices[rng.integers(len(choices))]


def place_all(
    rng: Rng, pack: dict[str, list[Drawing]], labels: list[int], height: int, width: int
) -> tuple[list[Placed], np.ndarray]:
    """Objects from back to front, and the mask; drawn again until enough of every class can be seen."""
    while True:
        repeated = [label for label in labels for _ in range(1 if rng.random() < 0.85 else 2)]
        crowd = 0.85 if len(repeated) > 1 else 1.0
        objects = [place(rng, pack, repeated[turn], crowd, height, width) for turn in rng.permutation(len(repeated))]
        mask = mask_of(objects, height, width)
        if all(visible(label, objects, mask) for label in labels):
            return objects, mask


def place(rng: Rng, pack: dict[str, list[Drawing]], label: int, crowd: float, height: int, width: int) -> Placed:
    choices = pack[classes()[label]]
    drawing = choices[rng.integers(len(choices))]
    long = max(height, width)
    size = max(SMALLEST, rng.uniform(SMALLEST, LARGEST) * crowd) * long
    scale = size / max(drawing.rgba.shape[:2])
    centre = rng.uniform(0.15, 0.85) * width, rng.uniform(0.2, 0.85) * height
    matrix = similarity(rng, scale, drawing.rgba.shape[:2], centre)
    top, left, bottom, right = box_of(matrix, drawing.rgba.shape[:2], height, width)
    matrix[:, 2] -= (left, top)
    rgba = premultiplied(jitter_colours(rng, drawing.rgba))
    if scale < 0.7:
        rgba = cv2.GaussianBlur(rgba, (0, 0), 0.4 / scale)
    rgba = cv2.warpAffine(rgba, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    return Placed(label, drawing.file, top, left, rgba)


def similarity(rng: Rng, scale: float, shape: tuple[int, int], centre: tuple[float, float]) -> np.ndarray:
    """[2,3]: turned, flipped by chance, scaled, the drawing's middle at `centre` (x, y)."""
    angle = np.deg2rad(rng.uniform(-TURN, TURN))
    flip = -1 if rng.random() < 0.5 else 1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([flip, 1]) * scale
    middle = np.array([shape[1] / 2, shape[0] / 2])
    return np.concatenate([turn, (np.array(centre) - turn @ middle)[:, None]], axis=1)


def box_of(matrix: np.ndarray, shape: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the drawing in the picture, one pixel wider for its soft edge."""
    rows, columns = shape
    corners = matrix @ np.array([[0, columns, columns, 0], [0, 0, rows, rows], [1, 1, 1, 1]])
    left, top = np.maximum(np.floor(corners.min(axis=1)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=1)).astype(int) + 2, (width, height))
    return int(top), int(left), int(bottom), int(right)


def jitter_colours(rng: Rng, rgba: np.ndarray) -> np.ndarray:
    """Hue a little, saturation, contrast and brightness more; alpha stays."""
    levels = np.arange(256)
    hue = (levels + round(rng.uniform(-7, 7))) % 180
    saturation = np.minimum(levels * rng.uniform(0.5, 1.25), 255)
    value = np.clip(((levels - 128) * rng.uniform(0.75, 1.15) + 128) * rng.uniform(0.75, 1.15), 0, 255)
    hsv = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2HSV)
    hsv = cv2.LUT(hsv, np.stack([hue, saturation, levels], axis=1).astype(np.uint8)[:, None])
    rgb = cv2.LUT(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), value.astype(np.uint8))
    return cv2.merge([*cv2.split(rgb), np.ascontiguousarray(rgba[..., 3])])


def premultiplied(rgba: np.ndarray) -> np.ndarray:
    alpha = np.ascontiguousarray(rgba[..., 3])
    return cv2.multiply(rgba, cv2.merge([alpha, alpha, alpha, np.full_like(alpha, 255)]), scale=1 / 255)


def mask_of(objects: list[Placed], height: int, width: int) -> np.ndarray:
    """uint8 [height,width]: class + 1, background 0, and 255 on the pixels beside every edge."""
    mask = np.zeros((height, width), np.uint8)
    for placed in objects:
        mask[placed.box][placed.covers] = placed.label + 1
    around = np.ones((3, 3), np.uint8)
    mask[cv2.dilate(mask, around) != cv2.erode(mask, around)] = IGNORE
    return mask


def visible(label: int, objects: list[Placed], mask: np.ndarray) -> bool:
    seen = np.count_nonzero(mask == label + 1)
    unhidden = sum(np.count_nonzero(placed.covers) for placed in objects if placed.label == label)
    return seen >= LEAST_PIXELS and seen >= LEAST_SHARE * unhidden


def paste(rng: Rng, picture: np.ndarray, placed: Placed) -> None:
    if rng.random() < 0.6:
        cast_shadow(rng, picture, placed)
    region = picture[placed.box]
    uncovered = 255 - placed.rgba[..., 3]
    region[:] = cv2.add(
        cv2.multiply(region, cv2.merge([uncovered] * 3), scale=1 / 255), np.ascontiguousarray(placed.rgba[..., :3])
    )


def cast_shadow(rng: Rng, picture: np.ndarray, placed: Placed, margin: int = 12) -> None:
    """A soft one, a few pixels down and to a side."""
    height, width = picture.shape[:2]
    rows, columns = placed.box
    down, across = int(rng.integers(2, 7)), int(rng.integers(-4, 5))
    shade = cv2.copyMakeBorder(placed.rgba[..., 3], *[margin] * 4, cv2.BORDER_CONSTANT)
    shade = cv2.GaussianBlur(shade, (0, 0), 3)
    top, left = rows.start - margin + down, columns.start - margin + across
    shade = shade[max(0, -top) : height - top, max(0, -left) : width - left]
    region = picture[max(0, top) :, max(0, left) :][: shade.shape[0], : shade.shape[1]]
    light = cv2.LUT(shade, _LIGHT_UNDER)
    region[:] = cv2.multiply(region, cv2.merge([light] * 3), scale=1 / 255)


_LIGHT_UNDER = np.round(255 - 0.35 * np.arange(256)).astype(np.uint8)  # light that reaches the ground, by cover
