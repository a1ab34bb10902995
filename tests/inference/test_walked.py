"""IRN's CAMs, masks and confidences against the published ones."""

import numpy as np
import pytest

from ktse_dist.inference.multiscale import look
from ktse_dist.inference.walked import irn_labels, over_background, spread, surest_half

PICTURES = ("2007_000032", "2007_000039")
BACKGROUND = 0.25


@pytest.mark.parametrize("picture", ["i0", "i1"])
def test_cams_for_labels_and_for_the_walk_are_the_published_ones(golden, tiny_network, picture):
    case = golden("irn_make_cam")
    looks = look(tiny_network(case), case[f"{picture}_rgb_u8"][None], (1, 0.5, 1.5, 2), "pillow")
    labels = case[f"{picture}_label"][None]
    for made, name in ((looks.coarse_cams(labels), "cam"), (looks.label_cams(labels), "high_res")):
        np.testing.assert_array_equal(made[0].keys, case[f"{picture}_keys"])
        np.testing.assert_allclose(made[0].cams, case[f"{picture}_{name}"], rtol=1e-4, atol=2e-6)


def planes_of(case, picture):
    cams, edge, size = (case[f"{picture}_{name}"] for name in ("cam", "edge", "size"))
    return over_background(spread(cams, edge[0], tuple(size), 10), BACKGROUND)


@pytest.mark.parametrize("picture", PICTURES)
def test_masks_are_the_published_ones(golden, picture):
    case = golden("irn_semseg_mask")
    planes, expected = planes_of(case, picture), case[f"{picture}_score"]
    np.testing.assert_allclose(planes, expected, rtol=1e-3, atol=1e-4)
    ordered = np.sort(expected, 0)
    clear = ordered[-1] - ordered[-2] > 1e-3
    values = np.concatenate([[0], case[f"{picture}_keys"] + 1])
    assert (values[planes.argmax(0)] == case[f"{picture}_pred"])[clear].all()


@pytest.mark.parametrize("picture", PICTURES)
def test_confident_pixels_are_the_published_ones(golden, picture):
    case = golden("irn_semseg_mask")
    np.testing.assert_array_equal(surest_half(case[f"{picture}_score"]), case[f"{picture}_mask"] > 0)


def test_ties_leave_as_many_pixels_confident_as_published(golden):
    case = golden("irn_semseg_mask")
    sure, winners = surest_half(case["tie_score"]), case["tie_score"].argmax(0)
    for winner in np.unique(winners):
        assert sure[winners == winner].sum() == case["tie_mask"][winners == winner].sum()


def test_labels_follow_the_cams_and_leave_out_what_is_between():
    pytest.importorskip("pydensecrf")
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:, 20:40], rgb[:, 40:] = 120, 255
    cam = np.zeros((1, 40, 60), np.float32)
    cam[:, :, 20:40], cam[:, :, 40:] = 0.2, 1
    labels = irn_labels(rgb, np.array([6]), cam, 0.3, 0.1)
    assert (labels[:, :18] == 0).all() and (labels[:, 22:38] == 255).all() and (labels[:, 42:] == 7).all()


def test_a_picture_without_tags_is_background_and_half_of_it_sure():
    planes = over_background(spread(np.zeros((0, 5, 6), np.float32), np.zeros((5, 6)), (18, 22), 10), BACKGROUND)
    assert planes.shape == (1, 18, 22)
    assert surest_half(planes).sum() == 18 * 22 // 2
