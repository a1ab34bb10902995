"""transfer_loss and align_loss as kernels, in Triton's interpreter: values and all gradients of the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ops.transfer import function, reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@st.composite
def problems(draw):
    """(channel-sliced, perhaps channels-last CAMs of three pictures, tags, dtype); the last CAM is twice as high."""
    batch, classes = draw(st.sampled_from([(1, 1), (2, 3), (5, 4), (3, 20), (1, 90)]))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = {"memory_format": torch.channels_last if draw(st.booleans()) else torch.contiguous_format}
    scale = draw(st.sampled_from([0, 1, 3]))
    cams = [
        (scale * torch.randn(batch, classes + 1, rows, width, generator=noise)).to(dtype).contiguous(**kind)[:, 1:]
        for rows in (height, height, 2 * height)
    ]
    return cams, (torch.rand(batch, classes, generator=noise) < draw(st.sampled_from([0.0, 0.3, 1.0]))).float(), dtype


def value_and_gradients(loss, cams, *rest):
    """The loss and 3 times its gradients, so that a lost factor of the gradient from outside shows."""
    cams = [cam.detach().requires_grad_() for cam in cams]
    value = loss(*cams, *rest)
    return [value.detach(), *torch.autograd.grad(3 * value, cams)]


@settings(max_examples=20)
@given(problems(), st.sampled_from([0.0, 0.05, 0.5]))
def test_transfer_loss_and_gradients_equal_the_reference(problem, margin):
    cams, labels, dtype = problem
    ours, plain = (value_and_gradients(path.transfer_loss, cams, labels, margin) for path in (function, reference))
    torch.testing.assert_close(ours, plain, rtol=TOLERANCE[dtype], atol=1e-6)


@settings(max_examples=20)
@given(problems(), st.sampled_from([torch.bool, torch.float32, torch.bfloat16]))
def test_align_loss_and_gradients_equal_the_reference(problem, kind):
    (cam, erased, _), labels, dtype = problem
    keep = torch.rand(len(cam), 1, *cam.shape[2:])
    keep = keep < 0.6 if kind == torch.bool else keep.to(kind)
    ours, plain = (value_and_gradients(path.align_loss, (cam, erased), keep, labels) for path in (function, reference))
    torch.testing.assert_close(ours, plain, rtol=TOLERANCE[dtype], atol=1e-6)


@pytest.mark.parametrize("path", [function, reference], ids=["triton", "reference"])
def test_gradients_come_only_for_what_needs_them(path):
    mix = torch.zeros(1, 2, 4, 2, requires_grad=True)
    teacher, student = torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2, requires_grad=True)
    path.transfer_loss(teacher, student, mix, torch.ones(1, 2)).backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, torch.full_like(student, 1 / 16))
    torch.testing.assert_close(mix.grad, torch.full_like(mix, -1 / 16))


def test_a_map_of_more_pixels_than_one_block_counts_whole():
    cams = torch.randn(2, 2, 2, 33, 65).unbind()
    mix = torch.randn(2, 2, 66, 65)
    ours, plain = (
        value_and_gradients(path.transfer_loss, (*cams, mix), torch.ones(2, 2)) for path in (function, reference)
    )
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
