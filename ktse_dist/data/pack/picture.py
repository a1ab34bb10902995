"""What one worker makes of source pictures: JPEG bytes and mask PNGs that may lie in a shard. Free of torch.

A JPEG that stands upright, is grey or RGB, and decodes without a complaint is copied byte for byte. All else that
Pillow reads (PNG, WebP, CMYK, EXIF-rotated, ...) is decoded, turned upright, laid on white where it is transparent, and
encoded at quality 95.
"""

import io
import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from ktse_dist.data.decode import BadSample, check_size
from ktse_dist.data.foreign import DAMAGED, eight_bit, readable, why
from ktse_dist.data.pack.mask_png import mask_png
from ktse_dist.data.pack.source import MAX_FILE_BYTES, Item
from ktse_dist.data.palette import IGNORE
from ktse_dist.errors import UserError

QUALITY = 95


class Planned(NamedTuple):
    """A picture as the plan saw it: its file had `bytes` and `mtime_ns` (-1: there was no file)."""

    item: Item
    key: str
    bytes: int
    mtime_ns: int


class Made(NamedTuple):
    """What goes into the shard; or why nothing does. copied: the JPEG bytes are the file's own."""

    jpeg: bytes = b""
    mask: bytes | None = None
    copied: bool = True
    why_not: str = ""


def make_some(classes: int, some: Sequence[Planned]) -> list[Made]:
    return [make(planned, classes) for planned in some]


def make(planned: Planned, classes: int) -> Made:
    """UserError for a file that is another one than when the plan was made: the same command makes a new plan."""
    try:
        content = read(planned)
        jpeg, height, width = upright_jpeg(content)
        mask = truth(planned.item, height, width, classes) if planned.item.mask else None
    except BadSample as error:
        return Made(why_not=f"{planned.item.path}: {error}")
    return Made(jpeg, mask, jpeg is content)


def read(planned: Planned) -> bytes:
    path = planned.item.path
    if planned.bytes > MAX_FILE_BYTES:
        raise BadSample(f"{planned.bytes:,} bytes; allowed are at most {MAX_FILE_BYTES:,}")
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) == (planned.bytes, planned.mtime_ns):
                return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadSample(f"cannot be read ({error.strerror})") from None
    raise UserError(f"{path}: changed while it was packed; run the same command again, it goes on")


def upright_jpeg(content: bytes) -> tuple[bytes, int, int]:
    """JPEG bytes, height, width; the very bytes given where they can stay."""
    if content.startswith(b"\xff\xd8"):
        shape = plain_jpeg(content)
        if shape:
            return content, *shape
    pixels = decode_any(content)
    return simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", "444"), *pixels.shape[:2]


def plain_jpeg(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that needs nothing done to it. Decoded at 1/8: all bytes are read, few are kept."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        check_size(height, width)
        if colours not in ("YCbCr", "RGB", "Gray") or is_turned(content):
            return None
        simplejpeg.decode_jpeg(content, "RGB", fastdct=True, fastupsample=True, min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return None  # a complaint: the decoder of training would refuse it, Pillow may not
    return height, width


def is_turned(content: bytes) -> bool:
    if b"Exif\0\0" not in content:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            return picture.getexif().get(0x0112, 1) != 1
    except DAMAGED:
        return True  # decode_any says what is wrong


def decode_any(content: bytes) -> np.ndarray:
    """uint8 [H,W,3], upright. BadSample for what is no picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes and odd tags; check_size judges the first
            with Image.open(io.BytesIO(content), formats=readable()) as picture:
                check_size(picture.height, picture.width)
                return np.ascontiguousarray(eight_bit(ImageOps.exif_transpose(picture)))
    except DAMAGED as error:
        raise BadSample(f"not a picture that can be decoded ({why(error)})") from None


def truth(item: Item, height: int, width: int, classes: int) -> bytes:
    """The mask as PNG. BadSample for a value that is no class."""
    mask = item.mask(height, width)
    assert mask.dtype == np.uint8 and mask.shape == (height, width)
    outside = mask[(mask > classes) & (mask != IGNORE)]
    if len(outside):
        raise BadSample(f"its mask has the value {outside[0]}; allowed are 0 to {classes} and {IGNORE}")
    return mask_png(mask)
