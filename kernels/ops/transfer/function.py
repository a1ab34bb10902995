"""Transfer and alignment on a GPU: one launch and a sum for the value, one launch for all gradients.

Nothing is kept for the gradients but the inputs themselves: only tagged maps are read, so reading them again costs less
than storing a slope and scaling it.
"""

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.launch import launch
from kernels.ops.transfer.kernel import hinge_slope, hinge_value


def transfer_loss(cam_a: Tensor, cam_b: Tensor, cam_mix: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Kernel version of `kernels.transfer_loss`."""
    return _Hinge.apply(cam_a, cam_b, cam_mix, None, labels, margin)


def align_loss(cam: Tensor, cam_erased: Tensor, keep: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Kernel version of `kernels.align_loss`."""
    return _Hinge.apply(cam_erased, None, cam, keep.expand(len(cam), 1, *cam.shape[2:]), labels, margin)


class _Hinge(torch.autograd.Function):
    """Mean of relu((x - other) * keep - margin) * labels, where x is `upper`, or `upper` above `lower`."""

    @staticmethod
    def forward(ctx, upper, lower, other, keep, labels, margin):
        ctx.save_for_backward(upper, lower, other, keep, labels)
        ctx.margin = margin
        maps = other.shape[0] * other.shape[1]
        partial = torch.empty(maps, device=other.device)
        arguments, variant = _arguments(upper, lower, other, keep, labels, margin)
        launch(hinge_value, lambda meta: (maps,), other.device, partial, *arguments, **variant)
        return partial.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        upper, lower, other, keep, labels = ctx.saved_tensors
        grads = [
            torch.empty(cam.shape, dtype=cam.dtype, device=cam.device) if needed else None
            for cam, needed in zip((upper, lower, other), ctx.needs_input_grad, strict=False)
        ]
        batch, classes, *size = other.shape
        arguments, variant = _arguments(upper, lower, other, keep, labels, ctx.margin)
        launch(
            hinge_slope, lambda meta: (batch * classes, triton.cdiv(size[0] * size[1], meta["BLOCK"])), other.device,
            *grads, grad_loss, *arguments, **variant,
        )  # fmt: skip
        return *grads, None, None, None


def _arguments(
    upper: Tensor, lower: Tensor | None, other: Tensor, keep: Tensor | None, labels: Tensor, margin: float
) -> tuple[tuple, dict[str, bool]]:
    """What both kernels take after their outputs: (positional arguments, constants)."""
    maps = [None if cam is None else cam.flatten(2) for cam in (upper, lower, other)]
    weight = None if keep is None else keep.flatten(1)
    strides = [(0, 0, 0) if cam is None else cam.stride() for cam in maps]
    scalars = (margin, other.numel(), other.shape[1], maps[2].shape[2])
    steps = (*strides[0], *strides[1], *strides[2], *((0, 0) if weight is None else weight.stride()))
    variant = {"HALVES": lower is not None, "KEEP": keep is not None}
    return (*maps, weight, labels.contiguous(), *scalars, *steps), variant
