"""Mean average precision of tags."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ktse_dist.evaluation.tags import (
    UNCALIBRATED,
    average_precisions,
    choose_threshold,
    mean_average_precision,
    probabilities,
)


def test_average_precision_of_a_ranking_worked_by_hand():
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    labels = np.array([[1], [0], [1], [0]])
    assert average_precisions(scores, labels) == pytest.approx([100 * (1 / 1 + 2 / 3) / 2])


def test_equal_scores_count_alike_in_any_order_of_pictures():
    scores, labels = np.array([[0.5], [0.5], [0.5], [0.1]]), np.array([[1], [0], [0], [1]])
    expected = 100 * (1 / 3 + 2 / 4) / 2
    for order in ([0, 1, 2, 3], [2, 1, 0, 3], [3, 2, 0, 1]):
        assert mean_average_precision(scores[order], labels[order]) == pytest.approx(expected)


def test_classes_without_positives_are_left_out_of_the_mean():
    scores, labels = np.array([[0.9, 0.1], [0.2, 0.7]]), np.array([[1, 0], [0, 0]])
    assert mean_average_precision(scores, labels) == 100


def test_no_positive_at_all_has_no_score():
    assert math.isnan(mean_average_precision(np.zeros((3, 2)), np.zeros((3, 2))))


def micro_f1(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    taken = probabilities(scores) >= threshold
    return 100 * 2 * float((taken & (labels > 0)).sum()) / float(taken.sum() + (labels > 0).sum())


@given(arrays(np.float32, (6, 3), elements=st.integers(-4, 4)), arrays(np.uint8, (6, 3), elements=st.integers(0, 1)))
def test_no_threshold_finds_more_tags_than_the_chosen_one(scores, labels):
    if labels.all() or not labels.any():
        return
    chosen = choose_threshold(scores, labels)
    assert micro_f1(scores, labels, chosen.probability) == pytest.approx(chosen.f1)
    assert chosen.f1 >= max(micro_f1(scores, labels, p) for p in probabilities(scores).ravel()) - 1e-9


def test_the_threshold_lies_midway_between_the_scores_that_it_parts():
    scores, labels = np.array([[2.0, -1.0], [1.0, -3.0]]), np.array([[1, 0], [1, 0]])
    assert choose_threshold(scores, labels).probability == pytest.approx(probabilities(np.array([1.0, -1.0])).mean())


@pytest.mark.parametrize("tag", [0, 1])
def test_tags_that_tell_nothing_apart_leave_the_threshold_uncalibrated(tag):
    assert choose_threshold(np.zeros((3, 2)), np.full((3, 2), tag)) == (UNCALIBRATED, None)


def test_probabilities_of_huge_logits_are_numbers():
    assert probabilities(np.array([-1e6, 0, 1e6])).tolist() == [0, 0.5, 1]
