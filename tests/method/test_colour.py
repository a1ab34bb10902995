"""Colour changes are drawn by keys, one picture apart from the others."""

import torch

from ktse_dist.method.colour import blurred, luma, recolour, turned

PICTURES = torch.rand(6, 3, 20, 24, generator=torch.Generator().manual_seed(1)) * 255
KEYS = torch.arange(6)


def test_a_picture_s_colours_depend_on_its_key_alone():
    together, alone = recolour(PICTURES, KEYS, 0), recolour(PICTURES[2:3], KEYS[2:3], 0)
    torch.testing.assert_close(together[2:3], alone)
    assert not torch.equal(together, recolour(PICTURES, KEYS, 1))


def test_levels_stay_within_0_and_255():
    found = recolour(PICTURES, KEYS, 0)
    assert found.min() >= 0 and found.max() <= 255


def test_no_turn_changes_nothing_and_a_whole_turn_neither():
    same = turned(PICTURES, torch.ones(6, 1, 1, 1), torch.zeros(6, 1, 1, 1))
    whole = turned(PICTURES, torch.ones(6, 1, 1, 1), torch.full((6, 1, 1, 1), 2 * torch.pi))
    torch.testing.assert_close(same, PICTURES, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(whole, PICTURES, rtol=1e-4, atol=1e-2)


def test_without_saturation_a_picture_is_its_grey_version():
    grey = turned(PICTURES, torch.zeros(6, 1, 1, 1), torch.zeros(6, 1, 1, 1))
    torch.testing.assert_close(grey, luma(PICTURES).expand_as(grey), rtol=1e-4, atol=1e-2)


def test_blur_keeps_the_mean_and_lowers_the_contrast():
    found = blurred(PICTURES, torch.full((6,), 1.5))
    assert abs(found.mean() - PICTURES.mean()) < 2
    assert (found.std(dim=(1, 2, 3)) < 0.6 * PICTURES.std(dim=(1, 2, 3))).all()
