"""Boundary IoU: the band by its definition, and what it says of regions whose edges are off."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.evaluation.boundary import BoundaryCounts, band
from ktse_dist.evaluation.miou import Confusion


def square(low: int, high: int, size: int = 100) -> np.ndarray:
    labels = np.zeros((size, size), np.uint8)
    labels[low:high, low:high] = 1
    return labels


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_band_is_the_region_less_its_erosion(seed, width):
    region = np.random.default_rng(seed).random((17, 23)) < 0.8
    padded = np.pad(region.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    assert (band(region, np.ones_like(region), width) == (region & (eroded == 0))).all()


def test_an_edge_that_is_off_costs_large_regions_more_than_iou_does():
    edges, regions = BoundaryCounts(1), Confusion(1)
    for counts in (edges, regions):
        counts.update(square(10, 90), square(14, 90))  # the band is 3 pixels wide
    assert edges.iou()[1] < 60 < 90 < regions.iou()[1]


def test_what_is_equal_has_100_and_what_never_occurs_does_not_count():
    counts = BoundaryCounts(3)
    counts.update(square(20, 60), square(20, 60))
    assert counts.iou()[:2].tolist() == [100, 100] and np.isnan(counts.iou()[2:]).all()
    assert counts.miou() == 100
    assert np.isnan(BoundaryCounts(3).miou())


def test_where_the_truth_is_unknown_nothing_counts_and_regions_end():
    truth, prediction = square(20, 60), square(20, 70)
    truth[60:70] = truth[:, 60:70] = 255
    counts = BoundaryCounts(1)
    counts.update(prediction, truth)
    assert counts.iou().tolist() == [100, 100]


def test_no_answer_misses_the_class_and_is_none():
    counts = BoundaryCounts(1)
    counts.update(np.full((50, 50), 255, np.uint8), square(10, 40, 50))
    assert counts.iou()[1] == 0 and counts.counts[0].tolist() == [0, 0]


def test_two_halves_add_up():
    pairs = [(square(10, 50), square(12, 50)), (square(30, 90), square(30, 80))]
    whole, halves = BoundaryCounts(1), [BoundaryCounts(1), BoundaryCounts(1)]
    for half, pair in zip(halves, pairs, strict=True):
        half.update(*pair)
        whole.update(*pair)
    assert (whole.counts == sum(half.counts for half in halves)).all()
    assert whole.miou() == pytest.approx(whole.iou().mean())
