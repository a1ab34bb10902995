"""The segmentation losses as one weighted NLL over one softmax, value and gradient in one pass over few images.

Both cross-entropies share the softmax: a pixel's weight says which one it belongs to. The gradient of the total with
respect to the upsampled scores is known as soon as the value is, so nothing upsampled outlives its images.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.ops.segmentation.reference import denominators, named, pixel_groups

ELEMENTS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 27}  # CPU: one image's scores stay in the cache


class _Pixels(NamedTuple):
    """What a pixel's scores are compared with, each [B,H,W]: class number, share in every term's mean."""

    target: Tensor
    background: Tensor
    classes: Tensor
    confident: Tensor


def seg_loss(
    logits: Tensor,
    target: Tensor,
    image_labels: Tensor | None,
    foreground: Tensor | None,
    fg_weight: float = 0.0125,
    inter_weight: float = 0.005,
    inter_threshold: float = 0.2,
    counts: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fast version of `kernels.seg_loss`."""
    groups = pixel_groups(target, image_labels, foreground, inter_threshold)
    if counts is None:
        counts = torch.stack([group.sum() for group in groups]).float()
    shares = [group / below for group, below in zip(groups, denominators(counts), strict=True)]
    valid = groups[0] | groups[1]
    pixels = _Pixels(target.long() * valid, *shares)
    total, terms = _WeightedNll.apply(logits, pixels, (fg_weight, inter_weight), image_labels is not None)
    return total, named(terms)


class _WeightedNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, pixels, weights, with_inter):
        terms, grads = torch.zeros(3, device=logits.device), []
        images = max(1, ELEMENTS_AT_ONCE[logits.device.type] // (logits.shape[1] * pixels.target[0].numel()))
        for some, *part in zip(logits.split(images), *(field.split(images) for field in pixels), strict=True):
            sums, grad = _images(some, _Pixels(*part), weights, with_inter, ctx.needs_input_grad[0])
            terms += sums
            grads.append(grad)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(grads))
        ctx.mark_non_differentiable(terms)
        return terms[0] + weights[0] * terms[1] + weights[1] * terms[2], terms

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, _):
        (grad,) = ctx.saved_tensors
        return grad * grad_total.to(grad.dtype), None, None, None


def _images(logits: Tensor, pixels: _Pixels, weights: tuple, with_inter: bool, with_grad: bool):
    """The terms [3] that these images add, and the gradient of their weighted sum with respect to `logits`."""
    source = logits.detach().contiguous().requires_grad_(with_grad)
    with torch.set_grad_enabled(with_grad):
        upsampled = F.interpolate(
            source.float().relu(), size=pixels.target.shape[-2:], mode="bilinear", align_corners=False
        )
    scores = upsampled.detach()
    entropy, grad = _softmax_nll(scores, pixels, weights[0], with_grad)
    inter = _runner_up(scores[:, 1:], grad, pixels.confident, weights[1]) if with_inter else torch.zeros_like(entropy[0])
    if with_grad:
        (grad,) = torch.autograd.grad(upsampled, source, grad)
    return torch.stack([*entropy, inter]), grad


def _softmax_nll(scores: Tensor, pixels: _Pixels, fg_weight: float, with_grad: bool):
    """Both mean cross-entropies, and the gradient of their weighted sum with respect to `scores`."""
    index = pixels.target[:, None]
    peak = scores.amax(dim=1, keepdim=True)
    odds = (scores - peak).exp_()
    mass = odds.sum(dim=1, keepdim=True)
    nll = (mass.log() + peak - scores.gather(1, index))[:, 0]
    terms = (nll * pixels.background).sum(), (nll * pixels.classes).sum()
    if not with_grad:
        return terms, None
    weight = (pixels.background + fg_weight * pixels.classes)[:, None]
    return terms, odds.mul_(weight / mass).scatter_add_(1, index, -weight)


def _runner_up(scores: Tensor, grad: Tensor | None, confident: Tensor, weight: float) -> Tensor:
    """The mean gap between second best and best class; adds its gradient, which only the second best gets."""
    best = scores.amax(dim=1, keepdim=True)
    second, where = scores.masked_fill(scores == best, 0).max(dim=1, keepdim=True)
    share = confident[:, None]
    if grad is not None:
        grad[:, 1:].scatter_add_(1, where, weight * share * (second > 0))
    return ((second - best) * share).sum()
