"""Transfer and alignment with their gradients from one pass: the slope of a hinge is known when its value is.

Both losses are a mean of hinges over all (image, class) pairs, absent classes counting as 0. So only the maps of
tagged pairs are read, and one slope map of 0 and 1 serves every input's gradient. These are small maps: what counts is
how few operations there are.
"""

from typing import NamedTuple

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


class _Chosen(NamedTuple):
    """The (image, class) pairs that are read: an index for [B,C,...], and their rows in [B*C,...], None if all are."""

    pairs: tuple
    rows: Tensor | None

    @classmethod
    def by(cls, labels: Tensor) -> "_Chosen":
        pairs = present_pairs(labels)
        if isinstance(pairs[0], slice):
            return cls(pairs, None)
        return cls(pairs, torch.add(pairs[1], pairs[0], alpha=labels.shape[1]))


class _Transfer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cam_a, cam_b, cam_mix, labels, margin):
        chosen = _Chosen.by(labels)
        lost = torch.cat([_maps(cam_a, chosen), _maps(cam_b, chosen)], dim=1).float()
        loss, slope = _hinge(lost.sub_(_maps(cam_mix, chosen)).sub_(margin), labels, chosen)
        ctx.save_for_backward(slope)
        ctx.chosen, ctx.elements = chosen, cam_mix.numel()
        ctx.like = [(cam.shape, cam.dtype) for cam in (cam_a, cam_b, cam_mix)]
        return loss / ctx.elements

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        slope = ctx.saved_tensors[0] * (grad_loss / ctx.elements)
        half = slope.shape[1] // 2
        parts = slope[:, :half], slope[:, half:], slope.neg() if ctx.needs_input_grad[2] else None
        return *_spread(ctx, parts), None, None


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cam, cam_erased, keep, labels, margin):
        chosen = _Chosen.by(labels)
        kept = _maps(keep.expand_as(cam), chosen).float()
        gained = (_maps(cam_erased, chosen).float() - _maps(cam, chosen).float()).mul_(kept).sub_(margin)
        loss, slope = _hinge(gained, labels, chosen)
        ctx.save_for_backward(slope.mul_(kept))
        ctx.chosen, ctx.elements = chosen, cam.numel()
        ctx.like = [(cam.shape, cam.dtype), (cam_erased.shape, cam_erased.dtype)]
        return loss / ctx.elements

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        slope = ctx.saved_tensors[0] * (grad_loss / ctx.elements)
        parts = slope.neg() if ctx.needs_input_grad[0] else None, slope
        return *_spread(ctx, parts), None, None, None


def _maps(cam: Tensor, chosen: _Chosen) -> Tensor:
    """The chosen maps [n,h,w] of cam [B,C,h,w]; in one copy of just them, whatever its layout."""
    if chosen.rows is None:
        return cam.flatten(0, 1)
    if cam.is_contiguous():
        return cam.flatten(0, 1).index_select(0, chosen.rows)
    return cam[chosen.pairs]


def _hinge(excess: Tensor, labels: Tensor, chosen: _Chosen) -> tuple[Tensor, Tensor]:
    """Sum of the positive, tagged excess, and its slope for each element, 1 or 0, which takes the place of `excess`."""
    excess.relu_()
    if chosen.rows is None:  # absent classes are there too
        excess.mul_(labels.reshape(-1, 1, 1))
    return excess.sum(), excess.sign_()


def _spread(ctx, parts: tuple) -> list[Tensor | None]:
    """The gradients of whole CAMs, where they are wanted, from those of their chosen maps."""
    grads: list[Tensor | None] = []
    for part, (shape, dtype), needed in zip(parts, ctx.like, ctx.needs_input_grad, strict=False):
        if not needed:
            grads.append(None)
        elif ctx.chosen.rows is None:
            grads.append(part.to(dtype).reshape(shape))
        else:
            grad = torch.zeros(shape, dtype=dtype, device=part.device)
            grad.flatten(0, 1).index_copy_(0, ctx.chosen.rows, part.to(dtype))
            grads.append(grad)
    return grads
