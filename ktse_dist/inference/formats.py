"""Label maps and confidences as PNG files. Free of torch."""

import io
import zlib

import numpy as np
from PIL import Image


def encode_mask(mask: np.ndarray, palette: np.ndarray) -> bytes:
    """A label map uint8 [H,W] (class + 1, 0 background, 255 ignore) as an 8-bit palette PNG.

    palette: colours uint8 [n,3] of the first n <= 256 values, the rest black. The same input gives the same bytes.
    """
    colours = np.zeros((256, 3), np.uint8)  # all 256, else a PNG of few colours would pack several pixels into a byte
    colours[: len(palette)] = palette
    picture = Image.fromarray(mask)
    picture.putpalette(colours.tobytes())
    return _png(picture)


def encode_confidence(confidence: np.ndarray) -> bytes:
    """Confidences float [H,W] in 0..1 as a grey PNG, 255 for 1."""
    return _png(Image.fromarray(np.rint(confidence * 255).astype(np.uint8)))


def _png(picture: Image.Image) -> bytes:
    """Without times or texts, so that bytes depend on pixels only."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_type=zlib.Z_RLE)  # a tenth smaller than zlib's default on masks, and faster
    return file.getvalue()
