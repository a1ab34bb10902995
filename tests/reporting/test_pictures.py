"""Which pictures a report shows, and that what it draws is what was measured."""

import numpy as np
import pytest

from ktse_dist.evaluation.miou import Confusion
from ktse_dist.evaluation.sweep import ThresholdSweep
from ktse_dist.inference.multiscale import PictureCams
from ktse_dist.reporting.drawing import COLOURS, heat, outline, paint, rgb_of, seed_labels
from ktse_dist.reporting.pictures import best_median_worst, picture_iou


@pytest.fixture
def cams() -> PictureCams:
    maps = np.random.default_rng(0).random((2, 9, 11), np.float32)
    return PictureCams(np.array([1, 4]), maps, np.zeros(6, np.float32))


def test_best_median_and_worst_are_three_each_of_many():
    groups = best_median_worst([(row, float(row % 50)) for row in range(50)])
    assert [(heading, [row for row, _ in rows]) for heading, rows in groups] == [
        ("Best", [49, 48, 47]),
        ("Median", [26, 25, 24]),
        ("Worst", [2, 1, 0]),
    ]


@pytest.mark.parametrize("count", range(1, 12))
def test_few_pictures_are_shown_once_each(count):
    shown = [row for _, rows in best_median_worst([(row, 1.0) for row in range(count)]) for row, _ in rows]
    assert len(set(shown)) == len(shown) == min(count, 9)


def test_the_seed_that_is_drawn_is_the_seed_that_the_sweep_counts(cams):
    truth = np.random.default_rng(1).choice(np.array([0, 2, 5, 255], np.uint8), (9, 11))
    sweep, drawn = ThresholdSweep(6, [0.3, 0.7]), Confusion(6)
    sweep.update(cams.keys, cams.cams, truth)
    drawn.update(seed_labels(cams, 0.7), truth)
    assert np.array_equal(sweep.confusion(1).counts, drawn.counts)


def test_a_pictures_iou_counts_known_pixels_of_the_classes_that_occur():
    truth, labels = np.array([[0, 0, 2, 2, 255, 255]], np.uint8), np.array([[0, 2, 2, 3, 3, 2]], np.uint8)
    assert picture_iou(labels, truth) == pytest.approx({0: 50.0, 2: 100 / 3, 3: 0.0})


def test_a_cam_tints_as_strongly_as_it_is_activated(cams):
    cams.cams[:] = 0
    cams.cams[1, 2, 3], cams.cams[0, 5, 5] = 1, 0.5
    grey = np.full((9, 11, 3), 100, np.uint8)
    seen = heat(grey, cams, {2: COLOURS[0], 5: COLOURS[1]}).astype(float)
    untouched = seen[0, 0]
    assert np.allclose(seen[2, 3], 0.1 * untouched + 0.9 * rgb_of(COLOURS[1]), atol=1)
    assert np.allclose(seen[5, 5], 0.55 * untouched + 0.45 * rgb_of(COLOURS[0]), atol=1)


def test_labels_are_drawn_in_their_colours_and_ignored_pixels_in_white():
    labels = np.array([[0, 3, 255]], np.uint8)
    background, object_, ignored = paint(np.full((1, 3, 3), 100, np.uint8), labels, {3: COLOURS[0]})[0].astype(float)
    assert np.ptp(background) == 0
    assert np.allclose(object_, 0.25 * background + 0.75 * rgb_of(COLOURS[0]), atol=1)
    assert np.allclose(ignored, 0.25 * background + 0.75 * 255, atol=1)


def test_an_outline_lies_inside_its_area_and_leaves_the_rest():
    labels = np.zeros((20, 20), np.uint8)
    labels[4:16, 4:16] = 3
    drawn = outline(np.full((20, 20, 3), 100, np.uint8), labels, {3: COLOURS[0]}, width=1)
    edge = (drawn != 100).any(2)
    assert np.array_equal(drawn[4, 4], rgb_of(COLOURS[0]))
    assert edge.sum() == 12 * 12 - 10 * 10 and not edge[labels == 0].any()
