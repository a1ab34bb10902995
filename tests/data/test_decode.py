"""Foreign bytes become pixels or one BadSample: never another error, never a picture beyond the limits."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ktse_dist.data.decode import MAX_SIDE, BadSample, decode_jpeg, decode_mask

GREY, RGB, PALETTE = 0, 2, 3  # colour types of PNG


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int = 8, kind: int = GREY, rows: bytes = b"") -> bytes:
    """A PNG with any header and any rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(range(48))) if kind == PALETTE else b""
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + data + chunk(b"IEND", b"")


def jpeg(pixels: np.ndarray, **more) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, **more)
    return file.getvalue()


def jpeg_that_claims(width: int, height: int) -> bytes:
    """A small JPEG whose frame header says another size."""
    content = jpeg(np.zeros((8, 8), np.uint8))
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + struct.pack(">HH", height, width) + content[start + 4 :]


RAMP = np.linspace(0, 255, 48 * 32 * 3).reshape(48, 32, 3).astype(np.uint8)


def test_a_jpeg_is_decoded_as_rgb():
    red = np.zeros((16, 24, 3), np.uint8)
    red[..., 0] = 250
    assert np.abs(decode_jpeg(jpeg(red)).astype(int) - red).max() < 6


def test_a_grey_jpeg_has_three_equal_channels():
    pixels = decode_jpeg(jpeg(RAMP[..., 0]))
    assert pixels.shape == (48, 32, 3)
    assert (pixels == pixels[..., :1]).all()


def test_exif_does_not_turn_a_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert np.array_equal(decode_jpeg(jpeg(RAMP, exif=exif)), decode_jpeg(jpeg(RAMP)))


@pytest.mark.parametrize("kind", [GREY, PALETTE])
def test_a_mask_keeps_its_values(kind):
    assert decode_mask(png(3, 2, 8, kind, b"\0\0\1\2" + b"\0\3\4\x0f")).tolist() == [[0, 1, 2], [3, 4, 15]]


def test_a_palette_mask_of_few_bits_keeps_its_values():
    assert decode_mask(png(2, 1, 4, PALETTE, b"\0\x12")).tolist() == [[1, 2]]


@pytest.mark.parametrize("depth, kind", [(1, GREY), (2, GREY), (4, GREY), (16, GREY), (8, RGB)])
def test_a_mask_whose_values_are_no_classes_is_refused(depth, kind):
    with pytest.raises(BadSample, match="a mask of mode"):
        decode_mask(png(2, 1, depth, kind, bytes(13)))


SIZES = [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (10_001, 10_000), (16_000, 16_000), (60_000, 60_000)]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width, height", SIZES)
def test_a_mask_beyond_the_limits_is_refused(width, height):
    with pytest.raises(BadSample):
        decode_mask(png(width, height))


@pytest.mark.parametrize("width, height", SIZES)
def test_a_jpeg_beyond_the_limits_is_refused_before_it_is_decoded(width, height, monkeypatch):
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadSample, match=f"{width}x{height} pixels"):
        decode_jpeg(jpeg_that_claims(width, height))


@pytest.mark.parametrize("decode, content", [(decode_jpeg, jpeg(RAMP)), (decode_mask, png(3, 1, rows=bytes(4)))])
def test_a_member_cut_short_is_refused(decode, content):
    for length in range(0, len(content) - 20, 7):
        with pytest.raises(BadSample):
            decode(content[:length])


MASK = png(40, 30, 8, PALETTE, bytes(41 * 30))
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(CHANGES, st.sampled_from([(decode_jpeg, jpeg(RAMP)), (decode_mask, MASK)]))
def test_damaged_bytes_become_pixels_or_a_bad_sample(changes, member):
    decode, content = member
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with warnings.catch_warnings(action="ignore"):
        try:
            assert decode(bytes(damaged)).dtype == np.uint8
        except BadSample as error:
            assert "\n" not in str(error)


@given(st.binary(max_size=200), st.sampled_from([decode_jpeg, decode_mask]))
def test_bytes_that_are_no_picture_are_a_bad_sample(content, decode):
    with pytest.raises(BadSample):
        decode(content)
