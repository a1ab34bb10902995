"""The score of label maps: what a file keeps of it, and the table of confusions."""

import csv

import numpy as np

from ktse_dist.evaluation.mask_score import MaskScore, read_table

TRUTH = np.array([[0, 0, 0, 1, 1, 2, 255]], np.uint8)
ANSWER = np.array([[0, 0, 1, 1, 1, 255, 2]], np.uint8)


def scored() -> MaskScore:
    score = MaskScore(2)
    score.update(ANSWER, TRUTH)
    return score


def test_frequency_weighted_iou_weighs_by_the_true_pixels():
    ious = [2 / 3, 2 / 3, 0]
    assert np.isclose(scored().confusion.frequency_weighted(), 100 * np.dot(ious, [3, 2, 1]) / 6)
    assert np.isnan(MaskScore(2).confusion.frequency_weighted())


def test_a_file_keeps_all_of_it(tmp_path):
    np.savez(tmp_path / "state.npz", **scored().state())
    twice = scored()
    with np.load(tmp_path / "state.npz") as state:
        twice.add(state)
    assert (twice.confusion.counts == 2 * scored().confusion.counts).all() and twice.pictures == 2
    assert (twice.boundary.counts == 2 * scored().boundary.counts).all()


def test_the_table_has_a_row_a_class_and_can_be_read_back(tmp_path):
    names = ["background", 'a "b", c', "d"]
    scored().write_table(tmp_path / "confusion.csv", names)
    rows = list(csv.DictReader((tmp_path / "confusion.csv").open()))
    assert [row["truth"] for row in rows] == names and rows[2]["no answer"] == "1"
    found, counts = read_table(tmp_path / "confusion.csv")
    assert found == names and (counts == scored().confusion.counts).all()
