"""Foreground and erasing as published (docs/method.md 1.5.1 and 1.5.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5


def max_norm(cam: Tensor) -> Tensor:
    """Each class map stretched to [0, 1) by its own spatial extrema (docs/method.md 1.5.1).

    cam [B,C,h,w], any sign; negative activation counts as 0. Returns the same shape. Differentiable, extrema included.
    The 1e-5 stands in numerator and denominator, so a constant map gives 0 and a peak stays a little below 1.
    """
    activation = cam.relu()
    highest = activation.amax(dim=(2, 3), keepdim=True)
    lowest = activation.amin(dim=(2, 3), keepdim=True)
    return (activation - lowest - EPSILON).relu() / (highest - lowest + EPSILON)


@torch.no_grad()
def foreground(cam: Tensor, labels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Plain version of `kernels.foreground`."""
    activation = cam.float().relu()
    if size is not None:
        activation = F.interpolate(activation, size=tuple(size), mode="bilinear", align_corners=False)
    return (max_norm(activation) * labels[:, :, None, None].float()).amax(dim=1, keepdim=True)


@torch.no_grad()
def erase(images: Tensor, cam: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Plain version of `kernels.erase`."""
    return images * (foreground(cam, labels, images.shape[-2:]) < threshold)
