"""Regions of pictures and of their masks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.data.masked import surest
from ktse_dist.data.region import cut_map, cut_picture, draw_region

KEYS, SIDES = st.integers(0, 2**64 - 1), st.integers(1, 600)


@given(KEYS, SIDES, SIDES)
def test_a_region_lies_within_its_picture(key, height, width):
    found = draw_region(key, (height, width), (0.5, 0.75))
    assert found.height > 0 and found.width > 0
    assert 0 <= found.top <= height - found.height and 0 <= found.left <= width - found.width


@given(KEYS)
def test_a_region_has_the_area_and_aspect_asked_for(key):
    found = draw_region(key, (375, 500), (0.5, 0.75))
    assert 0.49 <= found.height * found.width / (375 * 500) <= 0.76
    assert 0.74 <= found.width / found.height <= 1.35


def test_picture_and_mask_are_cut_alike():
    generator = np.random.default_rng(3)
    labels = np.kron(generator.integers(0, 5, (8, 10), np.uint8), np.ones((30, 30), np.uint8))
    picture = np.stack([labels * 50] * 3, axis=2)
    for key in range(20):
        region = draw_region(key, labels.shape, (0.5, 0.75))
        same = cut_picture(picture, region, 64)[:, :, 0] == cut_map(labels, region, 64) * 50
        assert same.mean() > 0.7  # bilinear values along edges are none of the mask's


@given(st.integers(0, 2**32 - 1))
def test_the_surest_half_of_every_label_is_trusted_and_no_unknown_pixel(seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(np.array([0, 3, 7, 255], np.uint8), (9, 11))
    surety = generator.integers(0, 256, labels.shape, np.uint8)
    trusted = surest(labels, surety, 0.5).astype(bool)
    assert not trusted[labels == 255].any()
    for value in (0, 3, 7):
        own = labels == value
        assert (trusted & own).sum() == own.sum() // 2
        if (trusted & own).any() and (own & ~trusted).any():
            assert surety[own & trusted].min() >= surety[own & ~trusted].max()


def test_a_mask_that_says_which_half_it_trusts_is_taken_at_its_word():
    trusted = np.random.default_rng(1).permutation(np.arange(120) % 2).astype(np.uint8).reshape(10, 12)
    assert (surest(np.zeros((10, 12), np.uint8), trusted * 255, 0.5) == trusted).all()
