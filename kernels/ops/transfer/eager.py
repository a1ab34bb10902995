"""Transfer and alignment in few operations, each in place of the one before; their gradients are one map of slopes.

Both losses are a mean of hinges over all (image, class) pairs, absent classes counting as 0. Maps of absent classes are
worked on too: picking out the tagged ones and filling the other gradients with 0 takes longer at 20 classes.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

slope_where_positive = torch.ops.aten.threshold_backward  # (slope, x, 0): slope where x > 0, else 0; in one pass


def transfer_loss(cam_a: Tensor, cam_b: Tensor, cam_mix: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.transfer_loss`."""
    return _Transfer.apply(cam_a, cam_b, cam_mix, labels, margin)


def align_loss(cam: Tensor, cam_erased: Tensor, keep: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.align_loss`."""
    return _Align.apply(cam, cam_erased, keep, labels, margin)


class _Transfer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cam_a, cam_b, cam_mix, labels, margin):
        ctx.half, ctx.dtypes = cam_a.shape[2], (cam_a.dtype, cam_b.dtype, cam_mix.dtype)
        lost = torch.empty_like(cam_mix, dtype=torch.float32)
        top, bottom = cam_mix.float().split(ctx.half, dim=2)
        torch.sub(cam_a.float(), top, out=lost[:, :, : ctx.half])
        torch.sub(cam_b.float(), bottom, out=lost[:, :, ctx.half :])
        loss, tags = _mean_of_hinges(lost.sub_(margin), labels)
        ctx.save_for_backward(lost, tags)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        lost, tags = ctx.saved_tensors
        slope = slope_where_positive((tags * grad_loss)[:, :, None, None], lost, 0)
        return *_gradients(ctx, *slope.split(ctx.half, dim=2), -slope if ctx.needs_input_grad[2] else None), None, None


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cam, cam_erased, keep, labels, margin):
        ctx.dtypes = cam.dtype, cam_erased.dtype
        gained = torch.sub(cam_erased.float(), cam.float()).mul_(keep).sub_(margin)
        loss, tags = _mean_of_hinges(gained, labels)
        ctx.save_for_backward(gained, tags, keep)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        gained, tags, keep = ctx.saved_tensors
        slope = slope_where_positive(keep * (tags * grad_loss)[:, :, None, None], gained, 0)
        return *_gradients(ctx, -slope if ctx.needs_input_grad[0] else None, slope), None, None, None


def _mean_of_hinges(excess: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and its slope at an active element of each pair [B,C]; what was not positive in `excess` becomes 0."""
    tags = labels / excess.numel()
    return (excess.relu_().sum(dim=(2, 3)) * tags).sum(), tags


def _gradients(ctx, *grads: Tensor | None) -> list[Tensor | None]:
    """Each in its input's dtype, where it is wanted."""
    asked = zip(grads, ctx.dtypes, ctx.needs_input_grad, strict=False)
    return [grad.to(dtype) if needed else None for grad, dtype, needed in asked]
