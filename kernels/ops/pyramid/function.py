"""The global pyramid head on a GPU: the launches, 6 forward and 7 backward.

Kept for the gradients are the pooled values, the maps between gates and the gates themselves; everything else is
computed again. Kernels compute in fp32 whatever autocast says.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.launch import launch
from kernels.ops.pyramid.kernel import gate_backward, gate_forward, weight_backward
from kernels.ops.pyramid.levels import pool, pool_backward
from kernels.ops.pyramid.reference import LEVELS
from kernels.tuning import architecture, options


def pyramid_gate(cam: Tensor, gates: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Kernel version of `kernels.pyramid_gate`."""
    return _PyramidGate.apply(cam, *(weight for pair in gates for weight in pair))


class _PyramidGate(torch.autograd.Function):
    """Steps 0 to 3: step s runs gate s (none at 0) and prepares gate s + 1 (none at 3); backward in reverse."""

    @staticmethod
    def forward(ctx, cam, *weights):
        ctx.set_materialize_grads(False)
        batch, classes, h, w = cam.shape
        pooled = _empty(cam, batch, classes, sum(k * k for k in LEVELS))
        launch(pool, lambda meta: (batch, classes), cam.device, pooled, cam.flatten(2), *_geometry(cam))
        maps, gpp, gates = _empty(cam, 2, *cam.shape), _empty(cam, *cam.shape), _empty(cam, 3, batch, 4, h, w)
        scores = _climb(cam, weights, pooled, (None, *maps, gpp), (None, *gates))
        ctx.save_for_backward(cam, *weights, pooled, maps, gpp, gates)
        return gpp, scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_gpp, grad_scores):
        cam, *weights, pooled, maps, gpp, gates = ctx.saved_tensors
        grads = [None if grad is None else grad.contiguous() for grad in (grad_gpp, grad_scores)]
        levels, slopes = _empty(cam, len(LEVELS), *cam.shape), torch.empty_like(gates)
        lowest = 0 if ctx.needs_input_grad[0] else 1  # the weights alone end at the first gate
        _descend(cam, weights, pooled, (None, *maps, gpp), (None, *gates), grads, levels, (None, *slopes), lowest)
        grad_cam = _cam_gradient(cam, levels, gpp, grads[1]) if lowest == 0 else None
        grad_weights = _weight_gradients(cam, pooled, maps, slopes) if any(ctx.needs_input_grad[1:]) else [None] * 6
        kept = zip(grad_weights, weights, ctx.needs_input_grad[1:], strict=True)
        return grad_cam, *(grad.to(weight.dtype) if needed else None for grad, weight, needed in kept)


def _climb(cam: Tensor, weights: Sequence[Tensor], pooled: Tensor, maps: Sequence, gates: Sequence) -> Tensor:
    """All gates: fills maps[1:] (the map after each) and gates[1:] and returns the scores."""
    batch, classes, h, w = cam.shape
    block = options("gate_forward", architecture(cam.device))["BLOCK"]
    partial = _empty(cam, triton.cdiv(h * w, block), batch, classes)
    products = (*_empty(cam, 3, batch, 36, h, w), None)
    for step in range(4):
        pair, strides = _taps(weights, step)
        launch(
            gate_forward, lambda meta: (triton.cdiv(h * w, meta["BLOCK"]), batch), cam.device,
            maps[step], gates[step], products[step], partial, pooled, maps[step - 1], products[step - 1],
            cam.flatten(2), *pair, *_geometry(cam), *strides, STEP=step,
        )  # fmt: skip
    return partial.sum(dim=0)


def _descend(
    cam: Tensor, weights: Sequence[Tensor], pooled: Tensor, maps: Sequence, gates: Sequence,
    grads: Sequence[Tensor | None], levels: Tensor, slopes: Sequence, lowest: int,
) -> None:  # fmt: skip
    """All gates in reverse, to step `lowest`: fills slopes[1:] (of the gates' logits) and the levels' gradients.

    levels[0] carries the gradient of each step's map in turn: at last that of level 2.
    """
    batch, _, h, w = cam.shape
    for step in range(3, lowest - 1, -1):
        pair, strides = _taps(weights, step)
        joining = (None, None, None) if step == 3 else (levels[step + 1], slopes[step + 1], gates[step + 1])
        launch(
            gate_backward, lambda meta: (triton.cdiv(h * w, meta["BLOCK"]), batch), cam.device,
            slopes[step], gates[step], levels[0], *joining, pooled, maps[step], maps[step - 1],
            cam.flatten(2), *grads, *pair, *_geometry(cam), *strides, STEP=step,
        )  # fmt: skip


def _weight_gradients(cam: Tensor, pooled: Tensor, maps: Tensor, slopes: Tensor) -> list[Tensor]:
    """Gradients of the six weights, fp32: parts of an image each, then their sum."""
    batch, classes, h, w = cam.shape
    parts = batch * triton.cdiv(h * w, options("weight_backward", architecture(cam.device))["SPAN"])
    partial = _empty(cam, parts, 6, 2, 2 * classes, 3, 3)
    launch(
        weight_backward, lambda meta: (parts, triton.cdiv(classes, meta["CLASSES"]), 3), cam.device,
        partial, slopes, pooled, maps, *cam.shape,
    )  # fmt: skip
    return list(partial.sum(dim=0))


def _cam_gradient(cam: Tensor, levels: Tensor, gpp: Tensor, grad_scores: Tensor | None) -> Tensor:
    batch, classes = cam.shape[:2]
    grad = torch.empty(cam.shape, dtype=cam.dtype, device=cam.device)
    classes, h, w, *strides = _geometry(cam)
    launch(
        pool_backward, lambda meta: (batch, classes), cam.device,
        grad, levels, cam.flatten(2), gpp, grad_scores, classes, h, w, levels.stride(0), *strides,
    )  # fmt: skip
    return grad


def _taps(weights: Sequence[Tensor], step: int) -> tuple[list[Tensor | None], list[int]]:
    """The weights [2,2C,9] of the gate after a step, and their strides; nothing after the last step."""
    if step == 3:
        return [None, None], [0] * 6
    pair = [weight.flatten(2) for weight in weights[2 * step : 2 * step + 2]]
    return pair, [*pair[0].stride(), *pair[1].stride()]


def _geometry(cam: Tensor) -> tuple[int, ...]:
    """(classes, h, w, steps from image to image, channel to channel and pixel to pixel)."""
    return *cam.shape[1:], *cam.flatten(2).stride()


def _empty(cam: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, device=cam.device)
