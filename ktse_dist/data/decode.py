"""Bytes of a member to pixels. Foreign bytes: sizes are checked before anything is decoded."""

import io
import struct
import zlib

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ktse_dist.errors import UserError

MAX_SIDE, MAX_PIXELS = 16_384, 100_000_000
PNG_DEPTH = 24  # where a PNG's header says how many bits a value has


class BadSample(UserError):
    """A picture or mask that cannot be used; the message names what was found."""


def decode_jpeg(content: bytes) -> np.ndarray:
    """uint8 [H,W,3], RGB. EXIF is ignored: packed pictures stand upright."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        check_size(height, width)
        return simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as error:
        raise BadSample(f"not a JPEG that can be decoded ({error})") from None


def decode_mask(content: bytes) -> np.ndarray:
    """uint8 [H,W] of a grey or palette PNG: class + 1, 0 background, 255 ignore."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            check_size(picture.height, picture.width)
            if picture.mode != "P" and (picture.mode != "L" or content[PNG_DEPTH] != 8):  # Pillow stretches fewer bits
                raise BadSample(f"a mask of mode {picture.mode}; allowed are 8-bit grey and palette PNGs")
            return np.asarray(picture)
    except UnidentifiedImageError:  # whose text holds an address in memory
        raise BadSample("not a PNG") from None
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise BadSample(f"not a PNG that can be decoded ({error})") from None


def check_size(height: int, width: int) -> None:
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise BadSample(f"{width}x{height} pixels; allowed are at most {MAX_SIDE} a side and {MAX_PIXELS:,} in all")
