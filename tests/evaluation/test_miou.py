"""Streaming confusion counts against the published numbers and their own algebra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ktse_dist.errors import UserError
from ktse_dist.evaluation.miou import Confusion

PICTURES = st.lists(
    st.tuples(
        hnp.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 3, 255])),
        hnp.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 3, 255])),
    ),
    min_size=2,
    max_size=6,
)


def counted(pictures) -> Confusion:
    confusion = Confusion(3)
    for prediction, truth in pictures:
        confusion.update(prediction, truth)
    return confusion


def test_iou_of_label_maps_matches_the_published_numbers(golden):
    case = golden("miou")
    confusion = Confusion(20)
    for index in range(6):
        confusion.update(case[f"png{index}"], case[f"gt{index}"])
    np.testing.assert_allclose(confusion.iou(), case["png_iou"], rtol=1e-9)
    assert confusion.miou() == pytest.approx(float(case["png_miou"]), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(PICTURES, st.randoms())
def test_merging_parts_in_any_order_gives_the_counts_of_one_pass(pictures, random):
    parts = [counted([picture]) for picture in pictures]
    random.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    np.testing.assert_array_equal(merged.counts, counted(pictures).counts)


@settings(max_examples=50, deadline=None)
@given(PICTURES)
def test_iou_is_the_published_per_class_formula(pictures):
    predictions, truths = (np.stack(side) for side in zip(*pictures, strict=True))
    known = truths < 255
    expected = []
    for value in range(4):
        predicted, true = (predictions == value) & known, (truths == value) & known
        hits = (predicted & true).sum()
        expected.append(100 * hits / (predicted.sum() + true.sum() - hits + 1e-10))
    np.testing.assert_allclose(counted(pictures).iou(), expected, rtol=1e-12)


def test_a_truth_outside_the_class_list_is_refused_by_value():
    with pytest.raises(UserError, match=r"holds the value 7; allowed are 0 .* 1 to 3 and 255"):
        Confusion(3).update(np.zeros((2, 2), np.uint8), np.array([[0, 7], [1, 255]], np.uint8))
