"""The score of a segmentation network, for summary.json and for people."""

import numpy as np

from ktse_dist.evaluation.network import Scores, network_line, network_scores

TRUTH = np.array([[0, 0, 1, 255]], np.uint8)


def test_without_ground_truth_there_is_no_score():
    found = network_scores(Scores(2), ["a", "b"])
    assert found["network_miou_final"] is None and found["network_per_class"] is None
    assert "no ground truth" in network_line(found)


def test_every_look_has_its_own_score():
    scores = Scores(1)
    for look, answer in (("single", [0, 0, 0, 0]), ("multi", [0, 1, 1, 0]), ("final", [0, 0, 1, 0])):
        getattr(scores, look).update(np.array([answer], np.uint8), TRUTH)
    found = network_scores(scores, ["a"])
    assert found["network_miou_final"] == 100 and found["network_per_class"] == {
        name: {"network": 100, "network_boundary": 100} for name in ("background", "a")
    }
    assert found["network_miou_single"] == 33.33 and found["network_miou_multi"] == 50
    assert "100.00 on val" in network_line(found)
