"""Transfer and alignment with their gradients from one pass: the slope of a hinge is known when its value is.

Both losses are a mean of hinges over all (image, class) pairs, absent classes counting as 0. So only the maps of
tagged pairs are read, and one slope map serves every input's gradient.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.ops.present import present_pairs


def transfer_loss(cam_a: Tensor, cam_b: Tensor, cam_mix: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.transfer_loss`."""
    return _Transfer.apply(cam_a, cam_b, cam_mix, labels, margin)


def align_loss(cam: Tensor, cam_erased: Tensor, keep: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.align_loss`."""
    return _Align.apply(cam, cam_erased, keep, labels, margin)


class _Transfer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cam_a, cam_b, cam_mix, labels, margin):
        pairs = present_pairs(labels)
        lost = torch.cat([cam_a[pairs], cam_b[pairs]], dim=-2).float() - cam_mix[pairs].float() - margin
        loss, slope = _hinge(lost, labels[pairs], cam_mix.numel())
        ctx.pairs, ctx.like = pairs, [(cam.shape, cam.dtype) for cam in (cam_a, cam_b, cam_mix)]
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        (slope,) = ctx.saved_tensors
        slope = slope * grad_loss
        upper, lower = slope.chunk(2, dim=-2)
        wanted = zip((upper, lower, -slope), ctx.like, ctx.needs_input_grad, strict=False)
        return *[_spread(part, ctx.pairs, *like) if needed else None for part, like, needed in wanted], None, None


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cam, cam_erased, keep, labels, margin):
        pairs = present_pairs(labels)
        kept = keep.float().expand_as(cam)[pairs]
        gained = (cam_erased[pairs].float() - cam[pairs].float()) * kept - margin
        loss, slope = _hinge(gained, labels[pairs], cam.numel())
        ctx.pairs, ctx.like = pairs, [(cam.shape, cam.dtype), (cam_erased.shape, cam_erased.dtype)]
        ctx.save_for_backward(slope.mul_(kept))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        (slope,) = ctx.saved_tensors
        slope = slope * grad_loss
        wanted = zip((-slope, slope), ctx.like, ctx.needs_input_grad, strict=False)
        return *[_spread(part, ctx.pairs, *like) if needed else None for part, like, needed in wanted], None, None, None


def _hinge(excess: Tensor, labels: Tensor, elements: int) -> tuple[Tensor, Tensor]:
    """Sum of the positive, tagged excess over `elements`, and its slope for each element of `excess`."""
    tagged = labels[..., None, None].float()
    return (excess.relu() * tagged).sum() / elements, (excess > 0) * (tagged / elements)


def _spread(part: Tensor, pairs: tuple, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient of a whole CAM from that of its tagged pairs."""
    grad = torch.zeros(shape, dtype=dtype, device=part.device)
    grad[pairs] = part.to(dtype)
    return grad
