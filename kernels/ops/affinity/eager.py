"""Pixel-adaptive refinement without copies of neighbours: 48 shifted views of one padded map, summed in place.

The weights depend on the picture alone and PAR is linear in the masks, so one set of weights serves all masks of a
picture (stack the seeds of several thresholds as channels).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ops.affinity.reference import EPSILON, NEIGHBOURS, SHARPNESS, position_weights

WEIGHTS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 30}  # CPU: one picture's weights stay in the cache over all iterations


@torch.no_grad()
def par(
    images: Tensor, masks: Tensor, dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24), iterations: int = 10
) -> Tensor:
    """Fast version of `kernels.par`."""
    height, width = images.shape[-2:]
    dilations = tuple(dilations)
    pictures = max(1, WEIGHTS_AT_ONCE[images.device.type] // (len(NEIGHBOURS) * len(dilations) * height * width))
    refined = torch.empty(*masks.shape[:2], height, width, dtype=masks.dtype, device=masks.device)
    for some, part, out in zip(images.split(pictures), masks.split(pictures), refined.split(pictures), strict=True):
        weights = _weights(some.float().contiguous(), dilations)
        part = F.interpolate(part.float().contiguous(), size=(height, width), mode="bilinear", align_corners=True)
        for _ in range(iterations):
            part = _iterate(part, weights, dilations)
        out.copy_(part)
    return refined


def _iterate(masks: Tensor, weights: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Each pixel of masks [B,M,H,W] replaced by the weighted sum of its neighbours."""
    total = torch.zeros_like(masks)
    for neighbour, weight in zip(_neighbours(masks, dilations), weights.split(1, dim=1), strict=True):
        total.addcmul_(neighbour, weight)
    return total


def _weights(images: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Colour and position weights [B,K,H,W]. The deviation is taken in two passes: one would cancel in flat regions."""
    around = _neighbours(images, dilations)
    mean = sum(around[1:], start=around[0]) / len(around)
    squares = torch.zeros_like(images)
    for neighbour in around:
        difference = neighbour - mean
        squares.addcmul_(difference, difference)
    scale = 1 / ((squares / (len(around) - 1)).sqrt_() + EPSILON) / SHARPNESS
    distances = [((neighbour - images) * scale).square_().mean(dim=1) for neighbour in around]
    return torch.stack(distances, dim=1).neg_().softmax(dim=1).add_(_position(dilations, images.device))


@lru_cache(maxsize=16)
def _position(dilations: tuple[int, ...], device: torch.device) -> Tensor:
    """`position_weights` as [K,1,1], kept on the device."""
    return position_weights(dilations)[0, 0].to(device)


def _neighbours(maps: Tensor, dilations: tuple[int, ...]) -> list[Tensor]:
    """K views [B,C,H,W] of one edge-padded copy, in the reference's order."""
    reach = max(dilations)
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (reach, reach, reach, reach), mode="replicate")
    corners = [(reach + d * dy, reach + d * dx) for d in dilations for dy, dx in NEIGHBOURS]
    return [padded[:, :, top : top + height, left : left + width] for top, left in corners]
