"""Pasting objects, against the published mixing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.method.mixing import boundary, classes_in, half_of, partners, region

CLASSES = 20


def test_boundaries_are_the_published_ones(golden):
    arrays = golden("imgmix")
    found = boundary(torch.from_numpy(arrays["bdry_masks"]) > 0)
    assert (found.numpy() == arrays["bdry_size1"]).all()


def test_the_region_of_chosen_classes_is_the_published_one(golden):
    arrays = golden("imgmix")
    labels, expected = torch.from_numpy(arrays["cls_label"])[None], arrays["cls_mixmask"] > 0
    chosen = torch.zeros(1, CLASSES, dtype=torch.bool)
    chosen[0, np.unique(arrays["cls_label"][expected]).astype(int) - 1] = True
    assert (region(labels, chosen)[0].numpy() == expected).all()


def test_background_and_unknown_are_no_classes():
    labels = torch.tensor([[[0, 3, 255, 20, 1]]], dtype=torch.uint8)
    assert (classes_in(labels, CLASSES)[0].nonzero().flatten() + 1).tolist() == [1, 3, 20]


@given(st.integers(0, 7), st.integers(-(2**63), 2**63 - 1))
def test_half_of_the_classes_rounded_up_is_drawn_from_those_present(count, key):
    present = torch.zeros(1, CLASSES, dtype=torch.bool)
    present[0, :count] = True
    chosen = half_of(present, torch.tensor([key]), 1)
    assert int(chosen.sum()) == (count + 1) // 2
    assert not (chosen & ~present).any()


def test_every_class_has_its_turn():
    present = torch.ones(200, 4, dtype=torch.bool)
    assert half_of(present, torch.arange(200), 1).float().mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.15)


def test_partners_are_mutual_and_in_the_other_half():
    assert partners(torch.arange(6)).tolist() == [3, 4, 5, 0, 1, 2]
