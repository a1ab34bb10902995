"""The segmentation losses as one weighted NLL over one softmax, value and gradient in one pass over few images.

Both cross-entropies share the softmax: a pixel's weight says which one it belongs to. The gradient of the total with
respect to the upsampled scores is known as soon as the value is, so nothing upsampled outlives its images.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.ops.present import weighted_pixels
from kernels.ops.segmentation.reference import denominators, named, pixel_groups, seg_counts

__all__ = ["seg_counts", "seg_loss"]  # of the counts there is one version: they have nothing to speed up here

ELEMENTS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 27}  # CPU: one image's scores stay in the cache


class _Pixels(NamedTuple):
    """What a pixel's scores are compared with: its class number, its share in the mean of each term; all [B,H,W]."""

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
    with torch.autocast(logits.device.type, enabled=False):
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
    logits = logits.contiguous()
    size = pixels.target.shape[-2:]
    scores = F.interpolate(logits.float().relu(), size=size, mode="bilinear", align_corners=False)
    inter, rivals = _runner_up(scores, pixels.confident) if with_inter else (scores.new_zeros(()), None)
    entropies, grad = _softmax_nll(scores, pixels, weights[0])
    terms = torch.stack([*entropies, inter])
    if not with_grad:
        return terms, None
    if rivals is not None:
        where, slope = rivals
        grad[where] += weights[1] * slope
    across, down = (_upsampling(*lengths, grad.device) for lengths in zip(logits.shape[:1:-1], size[::-1], strict=True))
    return terms, (down.mT @ (grad @ across) * (logits > 0)).to(logits.dtype)


def _softmax_nll(scores: Tensor, pixels: _Pixels, fg_weight: float) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Both mean cross-entropies, and the gradient of their weighted sum, which takes the place of `scores`."""
    index = pixels.target[:, None]
    peak = scores.amax(dim=1, keepdim=True)
    gap = peak - scores.gather(1, index)
    odds = scores.sub_(peak).exp_()
    mass = odds.sum(dim=1, keepdim=True)
    nll = (mass.log() + gap)[:, 0]
    weight = (pixels.background + fg_weight * pixels.classes)[:, None]
    terms = (nll * pixels.background).sum(), (nll * pixels.classes).sum()
    return terms, odds.mul_(weight / mass).scatter_add_(1, index, -weight)


def _runner_up(scores: Tensor, confident: Tensor) -> tuple[Tensor, tuple[tuple, Tensor]]:
    """The mean gap between second best and best class, and its gradient: only the second best gets one.

    The gradient is (index of one score of each pixel, values).
    """
    images, *place = weighted_pixels(confident)
    classes, share = scores[:, 1:].movedim(1, -1)[images, *place], confident[images, *place]
    best = classes.amax(dim=-1)
    second, number = classes.masked_fill(classes == best[..., None], 0).max(dim=-1)
    return ((second - best) * share).sum(), ((images, 1 + number, *place), share * (second > 0))


@lru_cache(maxsize=64)
def _upsampling(source: int, target: int, device: torch.device) -> Tensor:
    """Bilinear upsampling along one axis as a matrix [target, source]; its transpose carries gradients back."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(source)[None]
        return F.interpolate(unit, size=target, mode="linear", align_corners=False)[0].mT.contiguous().to(device)
