"""The segmentation loss on a GPU: the launches. Scores exist in registers only, tile by tile."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.launch import launch
from kernels.ops.segmentation.kernel import group_sizes, logit_grad, tile_losses, total_loss
from kernels.tuning import architecture, options

LONGEST_TILE = 8
SCORES_AT_ONCE = 6144  # of a program: at most 96 to a thread, whose registers hold them


class _Weights(NamedTuple):
    """Weights of the terms, and what `foreground` a pixel of `inter` exceeds."""

    fg: float
    inter: float
    threshold: float


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
    """Kernel version of `kernels.seg_loss`."""
    if counts is None:
        counts = seg_counts(target, image_labels, foreground, inter_threshold)
    pixels = _contiguous(target, image_labels, foreground)
    weights = _Weights(fg_weight, inter_weight, inter_threshold)
    total, terms = _SegLoss.apply(logits, *pixels, counts.contiguous(), weights)
    return total, dict(zip(("bg", "fg", "inter"), terms.unbind(), strict=True))


@torch.no_grad()
def seg_counts(
    target: Tensor, image_labels: Tensor | None, foreground: Tensor | None, inter_threshold: float = 0.2
) -> Tensor:
    """Kernel version of `kernels.seg_counts`."""
    target, labels, foreground = _contiguous(target, image_labels, foreground)
    batch, pixels = len(target), target[0].numel()
    blocks = triton.cdiv(pixels, options("group_sizes", architecture(target.device))["BLOCK"])
    partials = torch.empty(3, blocks * batch, device=target.device)
    launch(
        group_sizes, lambda meta: (blocks, batch), target.device,
        partials, target, labels, foreground, inter_threshold, _classes(labels), pixels,
        WITH_TAGS=labels is not None, CLASSES=triton.next_power_of_2(_classes(labels)),
    )  # fmt: skip
    return partials.sum(dim=1)


class _SegLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, labels, foreground, counts, weights):
        tiles = _Tiles.of(logits, target)
        with_grad = ctx.needs_input_grad[0]
        partials = torch.empty(3, tiles.down * tiles.across * len(logits), device=logits.device)
        shares = None
        if with_grad:
            shares = torch.empty(len(logits), tiles.down * tiles.across, 4, logits.shape[1], device=logits.device)
        _launch_tiles(partials, shares, logits, target, labels, foreground, counts, weights, tiles)
        total, terms = torch.empty((), device=logits.device), torch.empty(3, device=logits.device)
        launch(
            total_loss, lambda meta: (1,), logits.device,
            total, terms, partials, counts, weights.fg, weights.inter, partials.shape[1],
        )  # fmt: skip
        if with_grad:
            ctx.save_for_backward(logits, shares)
            ctx.tiles = tiles
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, _):
        logits, shares = ctx.saved_tensors
        batch, channels, h, w = logits.shape
        maps, grad = logits.flatten(2), torch.empty_like(logits, memory_format=torch.channels_last)
        launch(
            logit_grad, lambda meta: (triton.cdiv(h * w * channels, meta["BLOCK"]), batch), logits.device,
            grad, shares, maps, grad_total, channels, h, w, ctx.tiles.subtiles_y, ctx.tiles.subtiles_x, *maps.stride(),
        )  # fmt: skip
        return grad, None, None, None, None, None


class _Tiles(NamedTuple):
    """How the samples are cut (kernel.py), and the groups of classes that a program holds."""

    down: int
    across: int
    subtiles_y: int
    subtiles_x: int
    tile_y: int
    tile_x: int
    first: int
    rest: int

    @classmethod
    def of(cls, logits: Tensor, target: Tensor) -> "_Tiles":
        channels, h, w = logits.shape[1:]
        classes = channels - 1
        first = 1 << (classes.bit_length() - 1)
        rest = triton.next_power_of_2(classes - first) if classes > first else 0
        samples_y, samples_x = triton.cdiv(target.shape[1], h), triton.cdiv(target.shape[2], w)
        tile_y, tile_x = (min(triton.next_power_of_2(samples), LONGEST_TILE) for samples in (samples_y, samples_x))
        while tile_y * tile_x > 1 and tile_y * tile_x * (first + rest) > SCORES_AT_ONCE:
            tile_y, tile_x = (tile_y // 2, tile_x) if tile_y >= tile_x else (tile_y, tile_x // 2)
        subtiles_y, subtiles_x = triton.cdiv(samples_y, tile_y), triton.cdiv(samples_x, tile_x)
        down, across = (h + 1) * subtiles_y, (w + 1) * subtiles_x
        return cls(down, across, subtiles_y, subtiles_x, tile_y, tile_x, first, rest)


def _launch_tiles(
    partials: Tensor, shares: Tensor | None, logits: Tensor, target: Tensor, labels: Tensor | None,
    foreground: Tensor | None, counts: Tensor, weights: _Weights, tiles: _Tiles,
) -> None:  # fmt: skip
    batch, channels, h, w = logits.shape
    height, width = target.shape[1:]
    maps = logits.flatten(2)
    launch(
        tile_losses, lambda meta: (tiles.across, tiles.down, batch), logits.device,
        partials, shares, maps, target, labels, foreground, counts, *weights,
        channels - 1, h, w, height, width, h / height, w / width, tiles.subtiles_y, tiles.subtiles_x, *maps.stride(),
        WITH_TAGS=labels is not None, WITH_GRAD=shares is not None, CLASSES=triton.next_power_of_2(channels - 1),
        FIRST=tiles.first, REST=tiles.rest, TILE_Y=tiles.tile_y, TILE_X=tiles.tile_x,
    )  # fmt: skip


def _contiguous(target: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return target.contiguous(), *(None if other is None else other.contiguous() for other in others)


def _classes(labels: Tensor | None) -> int:
    return 1 if labels is None else labels.shape[1]
