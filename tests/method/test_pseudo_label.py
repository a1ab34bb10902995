"""Online pseudo-labels against the published refinement."""

import numpy as np
import pytest
import torch

import kernels
from ktse_dist.config.method import PseudoLabel
from ktse_dist.method.pixels import denormalise
from ktse_dist.method.pseudo_label import REFINED_ONE, at_half_size, pseudo_labels, resize, strongest

MEAN = tuple(255 * m for m in (0.485, 0.456, 0.406))
STD = tuple(255 * s for s in (0.229, 0.224, 0.225))
PUBLISHED = PseudoLabel(division="raw", pixels="truncated", padding="labelled")


def labels_of(arrays, config):
    tensors = (torch.from_numpy(arrays[f"a_{name}"]) for name in ("img", "cams", "cls"))
    images, cams, labels = tensors
    pixels = denormalise(images, MEAN, STD, config.pixels == "truncated")
    return pseudo_labels(pixels, cams, labels, int(labels.sum(1).max()), config)


def test_the_label_map_is_the_published_one(golden):
    arrays = golden("refine")
    sure = arrays["a_margin"] >= 1e-4
    np.testing.assert_array_equal(labels_of(arrays, PUBLISHED).numpy()[sure], arrays["a_label"][sure])
    assert sure.mean() > 0.99


def test_more_class_slots_than_tags_change_nothing(golden):
    arrays = golden("refine")
    images, cams, labels = (torch.from_numpy(arrays[f"a_{name}"]) for name in ("img", "cams", "cls"))
    pixels = denormalise(images, MEAN, STD, True)
    maps = [pseudo_labels(pixels, cams, labels, slots, PUBLISHED) for slots in (3, 7)]
    assert torch.equal(*maps)


def test_relu_before_division_keeps_a_dead_class_from_claiming_the_picture(golden):
    arrays = golden("refine")
    dead = 9  # picture 2, class 8: a CAM that is negative everywhere (docs/method.md quirk 5)
    published = labels_of(arrays, PUBLISHED)[2]
    corrected = labels_of(arrays, PUBLISHED.model_copy(update={"division": "relu"}))[2]
    assert (published == dead).float().mean() > 0.9
    assert not (corrected == dead).any()


@pytest.mark.parametrize(("size", "small"), [((96, 96), (12, 12)), ((64, 128), (4, 8))])
def test_one_resize_equals_up_and_down_where_sizes_are_multiples(size, small):
    cams = torch.randn(2, 3, *small)
    half = (size[0] // 2, size[1] // 2)
    torch.testing.assert_close(at_half_size(cams, size, half), resize(resize(cams, size), half), atol=1e-6, rtol=0)


def test_a_picture_without_tags_is_all_background():
    labels = torch.zeros(1, 4)
    assert (pseudo_labels(torch.rand(1, 3, 32, 32), torch.randn(1, 4, 4, 4), labels, 1, PseudoLabel()) == 0).all()


def test_the_background_left_by_the_classes_is_the_refined_background():
    pictures, seeds = torch.rand(2, 3, 24, 20), torch.randn(2, 4, 24, 20).softmax(dim=1)
    background, classes = kernels.par(pictures, seeds).split([1, 3], dim=1)
    torch.testing.assert_close(REFINED_ONE - classes.sum(dim=1, keepdim=True), background, rtol=0, atol=1e-5)


def test_the_strongest_class_is_that_of_the_highest_plane():
    planes = torch.rand(2, 4, 9, 7).softmax(dim=1) * REFINED_ONE
    expected = planes.argmax(dim=1, keepdim=True)
    assert torch.equal(strongest(planes[:, None, 1:], torch.tensor([[1, 2, 3]] * 2)), expected)
