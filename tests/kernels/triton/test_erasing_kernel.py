"""foreground and erase as kernels, in Triton's interpreter: one answer with the reference for any shape and layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ops.erasing import function, reference


@st.composite
def tagged_cams(draw):
    """A CAM (noise, zero or full of ties; fp32 or bf16; any layout), tags (none to all), a size (or None)."""
    batch, classes = draw(st.sampled_from([(1, 1), (2, 3), (5, 4), (3, 20), (1, 90)]))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    cam = torch.randn(batch, classes + 1, height, width, generator=noise)
    cam = {"noise": cam, "ties": (cam * 2).round(), "zero": cam * 0}[draw(st.sampled_from(["noise", "ties", "zero"]))]
    cam = cam.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    cam = cam.contiguous(memory_format=torch.channels_last) if draw(st.booleans()) else cam
    labels = (torch.rand(batch, classes, generator=noise) < draw(st.sampled_from([0.0, 0.3, 1.0]))).float()
    size = draw(st.none() | st.tuples(st.integers(1, 40), st.integers(1, 40)))
    return cam[:, 1:], labels, size


@settings(max_examples=25)
@given(tagged_cams())
def test_foreground_equals_the_reference(drawn):
    torch.testing.assert_close(function.foreground(*drawn), reference.foreground(*drawn), rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(tagged_cams(), st.floats(0.05, 0.95), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_erase_equals_the_reference_away_from_the_threshold(drawn, threshold, channels_last, dtype):
    cam, labels, _ = drawn
    images = torch.randn(len(cam), 3, 17, 13).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    erased = function.erase(images, cam, labels, threshold)
    certain = (reference.foreground(cam, labels, (17, 13)) - threshold).abs() > 1e-5
    expected = reference.erase(images, cam, labels, threshold)
    torch.testing.assert_close(erased * certain, expected * certain, rtol=0, atol=0)
    assert erased.dtype == dtype and erased.stride() == images.stride()


@pytest.mark.parametrize("size", [(320, 320), (321, 207)])
def test_extrema_from_the_corners_of_the_cells_are_those_of_the_whole_upsampled_map(size):
    cam, labels = torch.randn(1, 2, 40, 40), torch.ones(1, 2)
    expected = reference.foreground(cam, labels, size)
    torch.testing.assert_close(function.foreground(cam, labels, size), expected, rtol=1e-5, atol=1e-5)


def test_pictures_in_any_layout_can_be_erased():
    images, cam = torch.randn(2, 9, 11, 3).movedim(-1, 1).mT, torch.randn(2, 2, 3, 3)
    expected = reference.erase(images, cam, torch.ones(2, 2), 0.5)
    assert torch.equal(function.erase(images, cam, torch.ones(2, 2), 0.5), expected)
