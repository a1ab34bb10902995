"""Pictures of every kind come in upright, in 8-bit RGB, or are refused with a reason."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ktse_dist.data.decode import BadSample
from ktse_dist.data.foreign import load_or_say, load_upright, readable, suffixes

RED, LONG = (220, 30, 20), 4096


@pytest.fixture
def corner() -> Image.Image:
    """64x48, black with a red upper left quarter."""
    picture = Image.new("RGB", (64, 48))
    picture.paste(RED, (0, 0, 32, 24))
    return picture


def is_red(rgb: np.ndarray) -> bool:
    return bool(np.abs(rgb.astype(int) - RED).max() < 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "TGA", "PPM", "ICO"])
def test_formats_that_pillow_reads_come_in(corner, tmp_path, kind):
    corner.save(tmp_path / "a", kind, **({"sizes": [(64, 48)]} if kind == "ICO" else {}))
    rgb, size = load_upright(tmp_path / "a", LONG)
    assert size == (48, 64) and rgb.dtype == np.uint8 and is_red(rgb[4:18, 4:26]) and rgb[30:].max() < 40


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "RGBA", "LA", "I;16", "F"])
def test_modes_that_pillow_knows_become_rgb(corner, tmp_path, mode):
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(corner.convert("L")).astype(np.uint16) * 257)
    else:
        picture = corner.convert(mode)
    picture.save(tmp_path / "a.tif", "TIFF") if mode != "LA" else picture.save(tmp_path / "a.tif", "PNG")
    rgb, _ = load_upright(tmp_path / "a.tif", LONG)
    assert rgb.shape == (48, 64, 3)
    assert rgb[4:18, 4:26].mean() > rgb[30:].mean() + 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_whatever_their_exif_says(corner, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner.save(tmp_path / "a.jpg", exif=exif, quality=95)
    rgb, size = load_upright(tmp_path / "a.jpg", LONG)
    rows, columns = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    assert size == rgb.shape[:2] == ((48, 64) if orientation < 5 else (64, 48))
    height, width = size
    where = rgb[rows * height // 2 :, columns * width // 2 :][4 : height // 2 - 4, 4 : width // 2 - 4]
    assert is_red(where)


@pytest.mark.parametrize("long_side", [LONG, 30])
def test_the_pixels_can_be_written_to_as_the_crf_wants_them(corner, tmp_path, long_side):
    corner.save(tmp_path / "a.jpg")
    assert load_upright(tmp_path / "a.jpg", long_side).rgb.flags.writeable


def test_transparent_parts_are_white(corner, tmp_path):
    corner.putalpha(Image.new("L", corner.size, 0))
    corner.save(tmp_path / "a.png")
    assert load_upright(tmp_path / "a.png", LONG).rgb.min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_pictures_are_shrunk_and_keep_their_size_in_mind(tmp_path, kind):
    Image.new("RGB", (3000, 1500), RED).save(tmp_path / "a", kind)
    rgb, size = load_upright(tmp_path / "a", 100)
    assert rgb.shape == (50, 100, 3) and size == (1500, 3000) and is_red(rgb)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 2)])
def test_dots_and_lines_are_stretched_to_something_that_a_network_can_look_at(tmp_path, shape):
    Image.new("RGB", shape, RED).save(tmp_path / "a.png")
    rgb, size = load_upright(tmp_path / "a.png", 300)
    assert min(rgb.shape[:2]) == 16 and max(rgb.shape[:2]) <= 300 and size == shape[::-1]


def test_a_picture_whose_header_promises_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (8, 8)).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = struct.pack(">II", 13_000, 13_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(BadSample, match="13000x13000"):
        load_upright(tmp_path / "bomb.png", 300)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_no_damaged_file_raises_anything_but_a_reason(corner, tmp_path, kind):
    corner.save(tmp_path / "good", kind)
    content, rng = (tmp_path / "good").read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content))])
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "bad").write_bytes(damaged)
        found = load_or_say(300, tmp_path / "bad")
        assert found if isinstance(found, str) else (found.rgb.dtype == np.uint8 and found.rgb.shape[2:] == (3,))


def test_postscript_which_would_run_a_program_is_not_opened(tmp_path):
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert "EPS" not in readable() and ".eps" not in suffixes() and ".jpg" in suffixes()
    assert "not a picture" in load_or_say(300, Path(tmp_path / "a.eps"))


def test_a_file_that_went_away_is_a_reason(tmp_path):
    assert "No such file" in load_or_say(300, tmp_path / "gone.jpg")
