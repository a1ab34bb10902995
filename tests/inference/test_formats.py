"""Label maps and confidences as PNG."""

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ktse_dist.data.decode import decode_mask
from ktse_dist.inference.formats import encode_confidence, encode_mask

PALETTE = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
MASKS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_masks_come_back_from_png_as_they_were(mask):
    np.testing.assert_array_equal(decode_mask(encode_mask(mask, PALETTE)), mask)


@settings(max_examples=20, deadline=None)
@given(MASKS)
def test_equal_masks_give_equal_bytes(mask):
    assert encode_mask(mask, PALETTE) == encode_mask(np.asfortranarray(mask), PALETTE)


def test_viewers_see_the_palette_colours():
    picture = Image.open(io.BytesIO(encode_mask(np.array([[0, 1], [2, 255]], np.uint8), PALETTE))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(picture), [[[0, 0, 0], [128, 0, 0]], [[0, 128, 0], [0, 0, 0]]])


def test_confidence_is_a_grey_picture_in_255ths():
    values = np.array([[0, 0.5, 1]], np.float32)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_confidence(values)))), [[0, 128, 255]])
