"""Transfer and alignment of the tagged maps alone, each operation in place of the one before.

Both losses are a mean of hinges over all (image, class) pairs, absent classes counting as 0. The maps are small, so
that starting operations and filling gradients with zeros is most of their price: the gradients are written by hand.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.ops.present import present_pairs


def transfer_loss(cam_a: Tensor, cam_b: Tensor, cam_mix: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.transfer_loss`."""
    return _Hinge.apply(cam_a, cam_b, cam_mix, None, labels, margin)


def align_loss(cam: Tensor, cam_erased: Tensor, keep: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.align_loss`."""
    return _Hinge.apply(cam_erased, None, cam, keep, labels, margin)


class _Hinge(torch.autograd.Function):
    """Mean of relu((x - other) * keep - margin) * labels, where x is `upper`, or `upper` above `lower`."""

    @staticmethod
    def forward(ctx, upper, lower, other, keep, labels, margin):
        pairs = present_pairs(labels)
        maps = _maps(upper, pairs) if lower is None else torch.cat([_maps(upper, pairs), _maps(lower, pairs)], dim=1)
        excess = torch.sub(maps.float(), _maps(other, pairs).float())
        if keep is not None:
            keep = _of_maps(keep, other.shape[1], pairs)
            excess.mul_(keep)
        excess.sub_(margin).relu_()
        if pairs is None:
            excess.mul_(labels.flatten()[:, None, None])
        ctx.save_for_backward(excess, keep, pairs)
        ctx.kinds = [None if cam is None else cam.dtype for cam in (upper, lower, other)]
        ctx.tall, ctx.shape = upper.shape[2], other.shape
        return excess.sum() / other.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        excess, keep, pairs = ctx.saved_tensors
        rise = excess.sign().mul_(grad_loss / ctx.shape.numel())
        if keep is not None:
            rise.mul_(keep)
        rise = _spread(rise, ctx.shape, pairs)
        halves = rise[:, :, : ctx.tall], rise[:, :, ctx.tall :]
        parts = zip((*halves, rise), ctx.kinds, ctx.needs_input_grad, strict=False)
        upper, lower, other = (part.to(kind) if needed else None for part, kind, needed in parts)
        return upper, lower, None if other is None else -other, None, None, None


def _maps(cam: Tensor, pairs: Tensor | None) -> Tensor:
    """The chosen maps [n,h,w] of cam [B,C,h,w]; None: all B*C."""
    maps = cam.flatten(0, 1)
    return maps if pairs is None else maps.index_select(0, pairs)


def _of_maps(keep: Tensor, classes: int, pairs: Tensor | None) -> Tensor:
    """What of keep [B,1,h,w] belongs to each chosen map, [n,h,w]."""
    if pairs is None:
        return keep.expand(-1, classes, -1, -1).flatten(0, 1)
    return keep[:, 0].index_select(0, pairs // classes)


def _spread(maps: Tensor, shape: torch.Size, pairs: Tensor | None) -> Tensor:
    """The chosen maps in their places of [B,C,h,w], 0 elsewhere."""
    if pairs is None:
        return maps.view(shape)
    spread = torch.zeros(shape, device=maps.device)
    spread.flatten(0, 1).index_copy_(0, pairs, maps)
    return spread
