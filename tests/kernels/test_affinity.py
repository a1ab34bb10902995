"""par: the published numbers, one answer from both paths, and the properties that its use relies on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.ops.affinity import eager, reference

PATHS = pytest.mark.parametrize("path", [reference, eager], ids=["reference", "eager"])
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@PATHS
@pytest.mark.parametrize(
    ("given_masks", "result", "iterations"),
    [("mask", "out", 10), ("mask_small", "out_small", 10), ("mask", "out_iter1", 1)],
)
def test_par_matches_the_published_numbers(golden, path, given_masks, result, iterations):
    arrays = {name: torch.from_numpy(array) for name, array in golden("par").items()}
    refined = path.par(arrays["img"], arrays[given_masks], iterations=iterations)
    torch.testing.assert_close(refined, arrays[result], **CLOSE)


@PATHS
def test_weights_of_a_pixel_sum_to_the_published_amount(golden, path):
    arrays = {name: torch.from_numpy(array) for name, array in golden("par").items()}
    refined = path.par(arrays["img"], torch.ones(2, 1, 64, 64))
    torch.testing.assert_close(torch.stack([refined.min(), refined.max()]), arrays["sum_ones"], **CLOSE)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.tuples(st.integers(2, 20), st.integers(2, 20)),
    st.sampled_from([(1,), (2, 5), (1, 2, 4, 8, 12, 24)]),
    st.integers(0, 3),
    st.integers(0, 2**31),
)
def test_fast_par_equals_the_reference(batch, masks, size, dilations, iterations, seed):
    torch.manual_seed(seed)
    images = torch.rand(batch, 3, *size).mul(255).round().div(255).contiguous(memory_format=torch.channels_last)
    soft = torch.rand(batch, masks, 5, 4)
    fast, plain = (path.par(images, soft, dilations, iterations) for path in (eager, reference))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@PATHS
def test_masks_of_zeros_stay_zeros(path):
    assert not path.par(torch.rand(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)).any()


@PATHS
def test_a_flat_picture_gives_finite_masks(path):
    assert path.par(torch.full((1, 3, 8, 8), 0.5), torch.rand(1, 2, 8, 8)).isfinite().all()


@PATHS
def test_masks_refined_together_equal_masks_refined_apart(path):
    images, masks = torch.rand(2, 3, 12, 12), torch.rand(2, 4, 12, 12)
    apart = torch.cat([path.par(images, part) for part in masks.split(2, dim=1)], dim=1)
    torch.testing.assert_close(path.par(images, masks), apart)


def test_pictures_with_differently_many_masks_are_refined_as_the_reference_does():
    images, masks = torch.rand(5, 3, 96, 90), torch.rand(5, 4, 96, 90)
    masks[torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]]).bool()] = 0
    fast, plain = (path.par(images, masks, iterations=2) for path in (eager, reference))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@PATHS
def test_a_mask_does_not_leak_over_a_strong_edge(path):
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 1
    mask = torch.rand(1, 1, 16, 16)
    mask[..., 8:] = 0
    refined = path.par(images, mask, dilations=(1, 2))
    assert refined[..., 8:].max() < 0.1 * refined[..., :8].min()


def test_pictures_are_refined_independently_of_their_batch():
    images, masks = torch.rand(3, 3, 128, 130), torch.rand(3, 2, 64, 60)
    alone = torch.cat([kernels.par(images[i : i + 1], masks[i : i + 1], iterations=2) for i in range(3)])
    assert torch.equal(kernels.par(images, masks, iterations=2), alone)


@PATHS
def test_masks_keep_their_type_and_carry_no_gradient(path):
    refined = path.par(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 4, 4).bfloat16().requires_grad_())
    assert refined.dtype == torch.bfloat16 and not refined.requires_grad
