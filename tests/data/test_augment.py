"""Crops against the published loader, and the properties of keyed draws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.data import keyed
from ktse_dist.data.augment import Draw, augment, draw, resize_for_crop
from ktse_dist.method.pixels import normalise

MEAN = tuple(255 * m for m in (0.485, 0.456, 0.406))
STD = tuple(255 * s for s in (0.229, 0.224, 0.225))


@pytest.mark.parametrize("seed", [5, 6, 7, 8])
@pytest.mark.parametrize("item", [0, 1])
@pytest.mark.parametrize("which", [0, 1])
def test_crops_match_the_published_loader(golden, seed, item, which):
    arrays, prefix = golden("augment"), f"s{seed}_i{item}"
    long_side, x, y = (row[3] for row in arrays[f"{prefix}_draws"][2 + 5 * which :][:3])
    choices = Draw(int(long_side), bool(arrays[f"{prefix}_flips"][which]), int(x), int(y))
    crop = augment(arrays[f"rgb_{arrays[f'{prefix}_names'][which]}"], choices, 64, "pillow")
    pixels = torch.from_numpy(crop.pixels.copy()).permute(2, 0, 1)[None]
    image = normalise(pixels, torch.tensor([crop.inside]), MEAN, STD)[0]
    expected = arrays[f"{prefix}_img_a{'2' if which else ''}"]
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**63), st.integers(40, 130), st.integers(40, 130))
def test_a_draw_stays_in_its_ranges(key, height, width):
    choices = draw(int(key), (height, width), (50, 110), 64)
    assert 50 <= choices.long_side <= 110
    crop = augment(np.full((height, width, 3), 200, np.uint8), choices, 64, "opencv")
    top, left, bottom, right = crop.inside
    assert 0 <= top < bottom <= 64 and 0 <= left < right <= 64
    assert (crop.pixels[top:bottom, left:right] == 200).all()
    assert crop.pixels.sum(dtype=int) == 600 * (bottom - top) * (right - left)


def test_draws_of_different_keys_cover_the_range():
    sides = {draw(keyed.word(0, k), (100, 100), (50, 60), 64).long_side for k in range(400)}
    assert sides == set(range(50, 61))


def test_opencv_and_pillow_resize_to_nearly_the_same_picture():
    gradient = np.add.outer(np.arange(100), np.arange(120)).astype(np.uint8)
    picture = np.repeat(gradient[:, :, None], 3, axis=2)
    ours, published = (augment(picture, Draw(60, False, 0, 0), 64, how).pixels for how in ("opencv", "pillow"))
    assert np.abs(ours.astype(int) - published).mean() < 1.5


@pytest.mark.parametrize("long_side", [50, 64, 99])
def test_a_small_shrink_sees_every_pixel(long_side):
    """Each pixel of the picture, white alone on black, leaves something in the smaller one."""
    for row in range(100):
        picture = np.zeros((100, 100, 3), np.uint8)
        picture[row] = 255
        assert resize_for_crop(picture, long_side, long_side, "opencv").any()
