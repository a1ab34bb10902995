"""Pictures as people have them: every format that Pillow reads, turned upright, in 8-bit RGB. Free of torch."""

import struct
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ktse_dist.data.augment import resize_picture, target_size
from ktse_dist.data.decode import BadSample, check_size

RUNS_PROGRAMS = {"EPS"}  # Pillow gives these to Ghostscript
SHORTEST = 16  # pixels of a side: a line or a dot is stretched to it, so that every scale has a pixel left
# what Pillow's readers raise on damaged files
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Upright(NamedTuple):
    """rgb uint8 [h,w,3] at working size; size: (height, width) of the whole picture, upright."""

    rgb: np.ndarray
    size: tuple[int, int]


def load_upright(path: Path, long_side: int) -> Upright:
    """A picture file as the viewer of a phone shows it, shrunk where its longer side exceeds `long_side` pixels.

    Transparent parts are white, 16-bit greys keep their leading 8 bits, of an animation the first frame is taken.
    BadSample says why a file is no picture: its size is checked before a pixel is decoded.
    """
    cv2.setNumThreads(1)  # the processes share the cores already
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes and odd tags; check_size judges the first
            with Image.open(path, formats=readable()) as picture:
                check_size(picture.height, picture.width)
                size, turned = picture.size, picture.getexif().get(0x0112, 1) >= 5  # orientations that swap the sides
                picture.draft("RGB", _working_size(*size, long_side))  # a JPEG is decoded small at once
                rgb = eight_bit(ImageOps.exif_transpose(picture))
    except BadSample:
        raise
    except DAMAGED as error:
        raise BadSample(f"not a picture that can be read ({why(error)})") from None
    width, height = size[::-1] if turned else size
    wanted = _working_size(height, width, long_side)
    shrunk = rgb if rgb.shape[:2] == wanted else resize_picture(rgb, *wanted, "opencv")
    return Upright(np.require(shrunk, requirements="CW"), (height, width))  # Pillow's own pixels cannot be written to


def why(error: Exception) -> str:
    """One line of what a reader complained about."""
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"  # its own text may hold an address in memory
    return " ".join(str(error).split()) or type(error).__name__


def load_or_say(long_side: int, path: Path) -> Upright | str:
    """The picture, or why it cannot be read."""
    try:
        return load_upright(path, long_side)
    except BadSample as error:
        return str(error)


def readable() -> list[str]:
    """The formats that Pillow reads by itself."""
    Image.init()
    return [name for name in Image.OPEN if name not in RUNS_PROGRAMS]


@cache
def suffixes() -> frozenset[str]:
    """The file name endings of those formats, such as `.jpg`."""
    known = set(readable())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def _working_size(first: int, second: int, long_side: int) -> tuple[int, int]:
    """The sides in the order in which they are given."""
    if max(first, second) > long_side:
        first, second = target_size(first, second, long_side)
    return max(first, SHORTEST), max(second, SHORTEST)


def eight_bit(picture: Image.Image) -> np.ndarray:
    """uint8 [h,w,3]: 16 bits cut to their leading 8, floats stretched, transparent parts on white."""
    if picture.mode.startswith("I"):
        return np.repeat(np.clip(np.asarray(picture) // 257, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        return np.repeat(_stretched(np.asarray(picture))[..., None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))


def _stretched(values: np.ndarray) -> np.ndarray:
    """Floats without a known range, from their least to their greatest: uint8."""
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, span = values.min(), np.ptp(values)
    return np.rint(255 * (values - low) / (span or 1)).astype(np.uint8)
