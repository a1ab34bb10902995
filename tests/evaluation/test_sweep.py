"""The one-pass threshold sweep equals an arg-max per threshold, bit by bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ktse_dist.errors import UserError
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.evaluation.sweep import PUBLISHED_THRESHOLDS, ThresholdSweep

CLASSES, SHAPE = 4, (5, 6)
THRESHOLDS = (0.0, 0.02, 0.1, 0.29, 0.3, 0.95)
VALUES = st.one_of(  # ties with thresholds, between classes and with the zeros of absent classes
    st.sampled_from([np.float32(t) for t in THRESHOLDS] + [np.float32(-0.5), np.float32(0.2)]),
    st.floats(-1, 1, width=32),
)


@st.composite
def pictures(draw):
    keys = draw(st.permutations(range(CLASSES)))[: draw(st.integers(0, CLASSES))]
    cams = draw(hnp.arrays(np.float32, (len(keys), *SHAPE), elements=VALUES))
    truth = draw(hnp.arrays(np.uint8, SHAPE, elements=st.sampled_from([*range(CLASSES + 1), 255])))
    return np.array(keys, np.int64), cams, truth


def by_argmax(keys, cams, truth, threshold) -> np.ndarray:
    planes = np.zeros((CLASSES + 1, *SHAPE), np.float32)
    planes[0] = threshold
    planes[keys + 1] = cams
    confusion = Confusion(CLASSES)
    confusion.update(planes.argmax(0).astype(np.uint8), truth)
    return confusion.counts


def test_sweep_matches_the_published_numbers(golden):
    case = golden("miou")
    sweep = ThresholdSweep(20, case["thresholds"])
    for index in range(6):
        sweep.update(case[f"keys{index}"], case[f"cam{index}"], case[f"gt{index}"])
    np.testing.assert_allclose(sweep.iou(), case["sweep_iou"], rtol=1e-9)
    np.testing.assert_allclose(sweep.miou(), case["sweep_miou"], rtol=1e-9)
    assert sweep.best() == pytest.approx((float(case["best_threshold"]), float(case["best_miou"])), rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.lists(pictures(), min_size=1, max_size=3))
def test_every_threshold_counts_as_an_argmax_with_a_constant_background_plane(batch):
    sweep = ThresholdSweep(CLASSES, THRESHOLDS)
    for picture in batch:
        sweep.update(*picture)
    for index, threshold in enumerate(THRESHOLDS):
        expected = sum(by_argmax(*picture, threshold) for picture in batch)
        np.testing.assert_array_equal(sweep.confusion(index).counts, expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(pictures(), min_size=2, max_size=4))
def test_workers_that_exchange_npz_files_add_up_to_one_pass(tmp_path_factory, batch):
    whole, merged = ThresholdSweep(CLASSES, THRESHOLDS), ThresholdSweep(CLASSES, THRESHOLDS)
    for picture in reversed(batch):
        whole.update(*picture)
        part = ThresholdSweep(CLASSES, THRESHOLDS)
        part.update(*picture)
        path = tmp_path_factory.mktemp("part") / "sweep.npz"
        np.savez(path, **part.state())
        with np.load(path) as state:
            merged.merge(ThresholdSweep.from_state(state))
    np.testing.assert_array_equal(merged.counts, whole.counts)


def test_the_lowest_of_equally_good_thresholds_is_the_best():
    sweep = ThresholdSweep(1, PUBLISHED_THRESHOLDS)
    sweep.update(np.array([0]), np.full((1, 2, 2), 0.05, np.float32), np.array([[0, 0], [0, 1]], np.uint8))
    assert sweep.best()[0] == 0.10


@pytest.mark.parametrize("thresholds", [(), (0.2, 0.1), (0.1, 0.1), (-0.1, 0.2)])
def test_thresholds_that_would_break_exactness_are_refused(thresholds):
    with pytest.raises(ValueError, match="ascending numbers from 0 upwards"):
        ThresholdSweep(2, thresholds)


def test_a_truth_outside_the_class_list_is_refused():
    with pytest.raises(UserError, match="holds the value 9"):
        ThresholdSweep(2).update(np.array([0]), np.zeros((1, 1, 1), np.float32), np.array([[9]], np.uint8))
