"""Mean average precision of tags."""

import math

import numpy as np
import pytest

from ktse_dist.evaluation.tags import average_precisions, mean_average_precision


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
