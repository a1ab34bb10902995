"""Pixel-adaptive refinement as published (docs/method.md 1.6): every neighbour copied, in each iteration."""

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 0.3
POSITION_WEIGHT = 0.01
EPSILON = 1e-8
NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


@torch.no_grad()
def par(
    images: Tensor, masks: Tensor, dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24), iterations: int = 10
) -> Tensor:
    """Plain version of `kernels.par`."""
    refined = F.interpolate(masks.float(), size=images.shape[-2:], mode="bilinear", align_corners=True)
    position = position_weights(dilations).to(images.device)[:, None, None]
    weights = _colour_weights(images.float(), dilations) + position
    for _ in range(iterations):
        refined = (_neighbours(refined, dilations) * weights).sum(dim=2)
    return refined.to(masks.dtype)


def position_weights(dilations: tuple[int, ...]) -> Tensor:
    """The share of a neighbour that depends on its distance alone: [K], sum 0.01."""
    steps = torch.tensor([d * (dy * dy + dx * dx) ** 0.5 for d in dilations for dy, dx in NEIGHBOURS])
    nearness = -((steps / (steps.std() + EPSILON) / SHARPNESS) ** 2)
    return POSITION_WEIGHT * nearness.softmax(dim=0)


def _colour_weights(images: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """The share of a neighbour that depends on its colour: [B,1,K,H,W], sum 1."""
    around = _neighbours(images, dilations)
    deviation = around.std(dim=2, keepdim=True)
    difference = (around - images[:, :, None]).abs() / (deviation + EPSILON) / SHARPNESS
    return (-(difference**2).mean(dim=1, keepdim=True)).softmax(dim=2)


def _neighbours(maps: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """[B,C,K,H,W]: 8 neighbours a dilation, the edge repeated outside, the centre left out."""
    height, width = maps.shape[-2:]
    shifted = []
    for d in dilations:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        for dy, dx in NEIGHBOURS:
            top, left = d + d * dy, d + d * dx
            shifted.append(padded[:, :, top : top + height, left : left + width])
    return torch.stack(shifted, dim=2)
