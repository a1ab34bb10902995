"""transfer_loss and align_loss: the published numbers with all gradients, and one answer from both paths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ops.transfer import eager, function, reference

PATHS = pytest.mark.parametrize("path", [reference, eager, function], ids=["reference", "eager", "triton"])
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@st.composite
def shapes(draw):
    """(batch, classes, h, w), a seed, the share of tagged classes."""
    size = draw(st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 20, 90]), st.integers(1, 6), st.integers(1, 6)))
    return size, draw(st.integers(0, 2**31)), draw(st.sampled_from([0.0, 0.2, 1.0]))


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def loss_and_grads(loss_function, inputs, *rest):
    """The loss, and its gradient for each of `inputs`, scaled by 3 so that a lost factor shows."""
    inputs = leaves(*inputs)
    loss = loss_function(*inputs, *rest)
    return [loss.detach(), *torch.autograd.grad(3 * loss, inputs)]


@PATHS
def test_transfer_loss_matches_the_published_numbers(golden, path):
    arrays = {name: torch.from_numpy(array) for name, array in golden("kt_loss").items()}
    cam, cam2, cam_two = leaves(arrays["cam"], arrays["cam2"], arrays["cam_two"])
    union = torch.maximum(arrays["label"], arrays["label2"])[:4]
    loss = path.transfer_loss(cam[:4], cam2[:4], cam_two, union)
    loss.backward()
    torch.testing.assert_close(loss.detach(), arrays["loss"], **CLOSE)
    for leaf, name in ((cam, "grad_cam"), (cam2, "grad_cam2"), (cam_two, "grad_cam_two")):
        torch.testing.assert_close(leaf.grad, arrays[name], **CLOSE)


@PATHS
def test_align_loss_matches_the_published_numbers(golden, path):
    arrays = {name: torch.from_numpy(array) for name, array in golden("local_align").items()}
    cam, cam_mask = leaves(arrays["cam"], arrays["cam_mask"])
    loss = path.align_loss(cam, cam_mask, arrays["mask_ori_pos"].bool(), arrays["label"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), arrays["loss"], **CLOSE)
    torch.testing.assert_close(cam.grad, arrays["grad_cam"], **CLOSE)
    torch.testing.assert_close(cam_mask.grad, arrays["grad_cam_mask"], **CLOSE)


@settings(max_examples=40, deadline=None)
@given(shapes(), st.sampled_from([0.0, 0.05, 0.5]))
def test_fast_transfer_loss_and_gradients_equal_the_reference(drawn, margin):
    (pairs, classes, height, width), seed, share = drawn
    torch.manual_seed(seed)
    cams = torch.randn(2, pairs, classes, height, width).unbind()
    mix = torch.randn(pairs, classes, 2 * height, width).contiguous(memory_format=torch.channels_last)
    labels = (torch.rand(pairs, classes) < share).float()
    fast, plain = (loss_and_grads(path.transfer_loss, (*cams, mix), labels, margin) for path in (eager, reference))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shapes(), st.booleans())
def test_fast_align_loss_and_gradients_equal_the_reference(drawn, soft):
    size, seed, share = drawn
    torch.manual_seed(seed)
    cam, erased = torch.randn(2, *size).unbind()
    keep = torch.rand(size[0], 1, *size[2:]) < 0.6
    labels = (torch.rand(*size[:2]) < share).float()
    rest = keep * torch.rand(keep.shape) if soft else keep, labels
    fast, plain = (loss_and_grads(path.align_loss, (cam, erased), *rest) for path in (eager, reference))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


def test_the_path_that_never_asks_the_host_equals_the_reference(monkeypatch):
    monkeypatch.setattr(eager, "present_pairs", lambda _: None)
    cams, labels = torch.randn(2, 3, 5, 4, 4).unbind(), (torch.rand(3, 5) < 0.4).float()
    mix, keep = torch.randn(3, 5, 8, 4), torch.rand(3, 1, 4, 4) < 0.6
    dense, plain = (
        loss_and_grads(path.transfer_loss, (*cams, mix), labels) + loss_and_grads(path.align_loss, cams, keep, labels)
        for path in (eager, reference)
    )
    torch.testing.assert_close(dense, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_cams_sliced_out_of_segmentation_scores_get_the_gradients_of_the_reference(dtype, kind):
    torch.manual_seed(0)
    cams = [torch.randn(3, 6, h, 4).to(dtype).contiguous(memory_format=kind)[:, 1:] for h in (4, 4, 8)]
    labels, keep = (torch.rand(3, 5) < 0.4).float(), torch.rand(3, 1, 4, 4) < 0.6
    fast, plain = (
        loss_and_grads(path.transfer_loss, cams, labels) + loss_and_grads(path.align_loss, cams[:2], keep, labels)
        for path in (eager, reference)
    )
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-7)


@PATHS
def test_a_gap_that_only_reaches_the_margin_costs_nothing(path):
    cam, mix = torch.full((1, 1, 2, 2), 0.25), torch.zeros(1, 1, 4, 2)
    loss, *grads = loss_and_grads(path.transfer_loss, (cam, cam, mix), torch.ones(1, 1), 0.25)
    assert loss == 0 and all(grad.abs().max() == 0 for grad in grads)


@PATHS
def test_a_detached_teacher_gets_no_gradient(path):
    (mix,) = leaves(torch.zeros(1, 2, 4, 2))
    teacher = torch.ones(1, 2, 2, 2)
    path.transfer_loss(teacher, teacher, mix, torch.ones(1, 2)).backward()
    assert teacher.grad is None and torch.allclose(mix.grad, torch.full_like(mix, -1 / 16))


@PATHS
def test_half_precision_cams_give_a_single_precision_loss(path):
    cams = torch.randn(2, 2, 3, 4, 4).bfloat16().unbind()
    loss, *grads = loss_and_grads(path.align_loss, cams, torch.ones(2, 1, 4, 4), torch.ones(2, 3))
    assert loss.dtype == torch.float32 and {grad.dtype for grad in grads} == {torch.bfloat16}
