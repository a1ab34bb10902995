"""Pixel-adaptive refinement on a GPU: one launch for a batch's weights, one for each iteration, in a CUDA graph."""

from functools import cache

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from kernels.graphs import replayed
from kernels.launch import launch
from kernels.ops.affinity.kernel import affinity, propagate
from kernels.ops.affinity.reference import EPSILON, NEIGHBOURS, POSITION_WEIGHT, SHARPNESS


@torch.no_grad()
def par(
    images: Tensor, masks: Tensor, dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24), iterations: int = 10
) -> Tensor:
    """Kernel version of `kernels.par`. The result is contiguous unless masks had to be filled up to whole programs."""
    size, kind, (batch, count) = tuple(images.shape[2:]), masks.dtype, masks.shape[:2]
    if tuple(masks.shape[2:]) != size:
        masks = F.interpolate(masks.float(), size=size, mode="bilinear", align_corners=True)
    filled = 4 if count <= 4 else 8 * triton.cdiv(count, 8)
    masks = F.pad(masks, (0, 0, 0, 0, 0, filled - count)) if filled > count else masks
    quads = masks.float().unflatten(1, (filled // 4, 4)).movedim(2, -1)
    refined = replayed(_refine, images, quads, dilations=tuple(dilations), iterations=iterations)
    out = torch.empty(batch, filled // 4, 4, *size, dtype=kind, device=masks.device)
    return out.copy_(refined.movedim(-1, 2)).flatten(1, 2)[:, :count]


def _refine(images: Tensor, masks: Tensor, dilations: tuple[int, ...], iterations: int) -> Tensor:
    """masks fp32 [B,Q,H,W,4] refined; their memory is used again."""
    batch, quads, height, width, _ = masks.shape
    steps, position = _ring(dilations, images.device)
    weights = torch.empty(batch, len(position), height * width, device=images.device)
    pixels = images.flatten(2)
    launch(
        affinity, lambda meta: (triton.cdiv(height * width, meta["PIXELS"]), batch), images.device,
        weights, pixels, steps, position, len(steps), height, width, *pixels.stride(),
    )  # fmt: skip
    other, at_once = torch.empty_like(masks), min(quads, 2)
    for _ in range(iterations):
        launch(
            propagate, lambda meta: (triton.cdiv(height * width, meta["PIXELS"]), quads // at_once, batch),
            images.device, other, masks, weights, steps, len(steps), height, width, QUADS=at_once,
        )  # fmt: skip
        masks, other = other, masks
    return masks


@cache  # never dropped: recorded graphs read it where it lies
def _ring(dilations: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(dilations int32 [D], position weights fp32 [8D] in the reference's order)."""
    distances = torch.tensor([d * (dy * dy + dx * dx) ** 0.5 for d in dilations for dy, dx in NEIGHBOURS])
    nearness = -((distances / (distances.std() + EPSILON) / SHARPNESS) ** 2)
    return (
        torch.tensor(dilations, dtype=torch.int32, device=device),
        (POSITION_WEIGHT * nearness.softmax(dim=0)).to(device),
    )
