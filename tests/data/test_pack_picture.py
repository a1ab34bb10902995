"""What becomes of a source picture: copied where it can be, else encoded anew, upright."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ktse_dist.data.decode import BadSample, decode_jpeg, decode_mask
from ktse_dist.data.pack.picture import Planned, make, upright_jpeg
from ktse_dist.data.pack.source import Item

HEIGHT, WIDTH = 40, 56
RAMP = np.stack(np.broadcast_arrays(np.arange(WIDTH) * 4, np.arange(HEIGHT)[:, None] * 6, 90), axis=2).astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **how) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **how)
    return content.getvalue()


def jpeg(**how) -> bytes:
    return encoded(Image.fromarray(RAMP), "JPEG", quality=95, **how)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


COPIED = {
    "plain": jpeg(),
    "progressive": jpeg(progressive=True),
    "grey": encoded(Image.fromarray(RAMP[..., 0]), "JPEG"),
    "EXIF that says upright": turned(1),
}


@pytest.mark.parametrize("content", COPIED.values(), ids=COPIED)
def test_an_upright_jpeg_is_copied(content):
    assert upright_jpeg(content) == (content, HEIGHT, WIDTH)


ALPHA = np.dstack([RAMP, np.full((HEIGHT, WIDTH), 255, np.uint8)])
ANEW = {
    "PNG": encoded(Image.fromarray(RAMP), "PNG"),
    "WebP": encoded(Image.fromarray(RAMP), "WEBP", quality=95),
    "BMP": encoded(Image.fromarray(RAMP), "BMP"),
    "CMYK JPEG": encoded(Image.fromarray(RAMP).convert("CMYK"), "JPEG", quality=95),
    "opaque alpha": encoded(Image.fromarray(ALPHA), "PNG"),
    "bytes after the end of a header": jpeg()[:2] + b"\xff\xfe\x00\x04ab" + b"junk" + jpeg()[2:],
}


@pytest.mark.parametrize("content", ANEW.values(), ids=ANEW)
def test_other_formats_are_encoded_anew_and_look_the_same(content):
    made, height, width = upright_jpeg(content)
    assert made != content and (height, width) == (HEIGHT, WIDTH)
    assert np.abs(decode_jpeg(made).astype(int) - RAMP).mean() < 4


@pytest.mark.parametrize("orientation, expected", [(3, RAMP[::-1, ::-1]), (6, np.rot90(RAMP, 3)), (8, np.rot90(RAMP))])
def test_a_turned_picture_is_turned_upright(orientation, expected):
    made, height, width = upright_jpeg(turned(orientation))
    assert (height, width) == expected.shape[:2]
    assert np.abs(decode_jpeg(made).astype(int) - expected).mean() < 4
    assert b"Exif" not in made


def test_what_is_transparent_becomes_white():
    clear = ALPHA.copy()
    clear[:20, :, 3] = 0
    pixels = decode_jpeg(upright_jpeg(encoded(Image.fromarray(clear), "PNG"))[0])
    assert pixels[:16].min() > 240 and pixels[24:].mean() < 200


def test_16_bits_keep_their_high_ones():
    deep = Image.fromarray(np.full((HEIGHT, WIDTH), 0x4012, np.uint16))
    assert decode_jpeg(upright_jpeg(encoded(deep, "PNG"))[0]) == pytest.approx(0x40, abs=2)


BAD = {
    "nothing": b"",
    "text": b"<html>not found</html>",
    "half a JPEG": jpeg()[: len(jpeg()) // 2],
    "half a PNG": ANEW["PNG"][:100],
    "a header alone": jpeg()[:20],
    "far too large": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x01\x00\x00\x00\x01\x00\x00\x08\x02\x00\x00\x00"
    + b"\0" * 40,
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(BadSample):
        upright_jpeg(content)


@given(st.sampled_from([jpeg(), ANEW["PNG"], ANEW["WebP"]]), st.data())
def test_spoilt_bytes_are_refused_or_give_a_picture_that_decodes(content, data):
    spoilt = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    try:
        made, height, width = upright_jpeg(bytes(spoilt))
    except BadSample:
        return
    assert simplejpeg.decode_jpeg(made, "RGB").shape == (height, width, 3)


@dataclass(frozen=True)
class Flat:
    value: int

    def __call__(self, height: int, width: int) -> np.ndarray:
        return np.full((height, width), self.value, np.uint8)


def planned(path, mask=None) -> Planned:
    path.write_bytes(jpeg())
    found = path.stat()
    return Planned(Item(path.name, path, (0,), "", mask), "key", found.st_size, found.st_mtime_ns)


@pytest.mark.parametrize("value", [0, 3, 255])
def test_mask_values_are_kept(tmp_path, value):
    made = make(planned(tmp_path / "a.jpg", Flat(value)), classes=3)
    assert (decode_mask(made.mask) == value).all()


def test_a_mask_value_past_the_classes_is_named(tmp_path):
    assert "the value 4; allowed are 0 to 3 and 255" in make(planned(tmp_path / "a.jpg", Flat(4)), classes=3).why_not


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    picture = planned(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").unlink()
    assert make(picture, classes=3).why_not == f"{tmp_path}/a.jpg: cannot be read (No such file or directory)"
