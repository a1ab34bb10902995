"""From a picture to a training crop: resize, mirror, random crop on an empty canvas (docs/method.md 1.1).

Everything stays uint8; the empty canvas becomes the mean colour when the device normalises (method/pixels.py).
"""

from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ktse_dist.data import keyed
from ktse_dist.data.palette import IGNORE

Resize = Literal["opencv", "pillow"]
LONG_SIDE, MIRROR, OFFSET_X, OFFSET_Y = range(4)  # what a draw is for


class Crop(NamedTuple):
    """pixels uint8 [S,S,3]; inside (top, left, bottom, right): the part of the canvas that the picture covers."""

    pixels: np.ndarray
    inside: tuple[int, int, int, int]


class Draw(NamedTuple):
    """The random choices of one crop. x, y: offset of the crop in a larger side, of the picture in a smaller one."""

    long_side: int
    mirror: bool
    x: int
    y: int


def target_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) whose longer side is `long_side`; halves round to even, as the published code does."""
    if height > width:
        return long_side, max(1, round(width * long_side / height))
    return max(1, round(height * long_side / width)), long_side


def draw(key: int, size: tuple[int, int], long_side: tuple[int, int], crop: int) -> Draw:
    """The choices that belong to one key, for a picture of `size` (height, width)."""
    low, high = long_side
    chosen = low + _below(key, LONG_SIDE, high - low + 1)
    height, width = target_size(*size, chosen)
    return Draw(
        chosen,
        _below(key, MIRROR, 2) == 1,
        _below(key, OFFSET_X, abs(width - crop) + 1),
        _below(key, OFFSET_Y, abs(height - crop) + 1),
    )


def _below(key: int, use: int, bound: int) -> int:
    return keyed.word_below(keyed.word(key, use), bound)


def resize_picture(picture: np.ndarray, height: int, width: int, how: Resize) -> np.ndarray:
    """uint8 [H,W,3] to [height,width,3]: Pillow's bicubic as published, or OpenCV (area down, cubic up)."""
    if how == "pillow":
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def resize_for_crop(picture: np.ndarray, height: int, width: int, how: Resize) -> np.ndarray:
    """As resize_picture, but OpenCV shrinks by up to 2 bilinearly: a sixth of the time, and no pixel goes unseen."""
    shrink = max(picture.shape[0] / height, picture.shape[1] / width)
    if how == "opencv" and 1 < shrink <= 2:
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    return resize_picture(picture, height, width, how)


def augment(picture: np.ndarray, choices: Draw, crop: int, how: Resize) -> Crop:
    """The training crop of a uint8 picture [H,W,3]."""
    return cut(resize_for_crop(picture, *target_size(*picture.shape[:2], choices.long_side), how), choices, crop, 0)


def augment_labels(labels: np.ndarray, choices: Draw, crop: int) -> np.ndarray:
    """The labels uint8 [H,W] of the same crop, [S,S]; 255 where the canvas is empty. Nearest pixels as Pillow's."""
    height, width = target_size(*labels.shape, choices.long_side)
    resized = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return cut(resized, choices, crop, IGNORE).pixels


def cut(resized: np.ndarray, choices: Draw, crop: int, empty: int) -> Crop:
    """Mirror, and the part that is seen, on a canvas of the value `empty`."""
    if choices.mirror:
        resized = cv2.flip(resized, 1)
    canvas = np.full((crop, crop, *resized.shape[2:]), empty, np.uint8)
    source_y, place_y = _overlap(resized.shape[0], crop, choices.y)
    source_x, place_x = _overlap(resized.shape[1], crop, choices.x)
    canvas[place_y, place_x] = resized[source_y, source_x]
    return Crop(canvas, (place_y.start, place_x.start, place_y.stop, place_x.stop))


def _overlap(side: int, crop: int, offset: int) -> tuple[slice, slice]:
    """Along one axis: the part of the picture that is seen, and where it lies on the canvas."""
    if side > crop:
        return slice(offset, offset + crop), slice(0, crop)
    return slice(0, side), slice(offset, offset + side)
