"""Colour changes of a training picture, on the device, drawn by keys (docs/method.md 4).

The published text names the kinds and how often they happen; the strengths here are ours.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ktse_dist.models.noise import channel_hash

JITTER, GREY, BLUR = 0.8, 0.2, 0.5  # how often
LIGHT, HUE = 0.4, 0.1  # how strong: brightness, contrast and saturation within 1 - LIGHT .. 1 + LIGHT; hue in turns
BLUR_RADIUS, BLUR_SIGMA = 2, (0.3, 1.5)  # pixels
LUMA = (0.299, 0.587, 0.114)
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # hue turns its last two
DRAWS = 8  # numbers a picture


def recolour(images: Tensor, keys: Tensor, use: int) -> Tensor:
    """images float [B,3,H,W] in grey levels 0..255, keys int64 [B] -> the same, clamped."""
    drawn = channel_hash(keys, use, DRAWS).float()[:, :, None, None, None] / 2**32
    jitter, grey, blur, bright, contrast, saturation, hue, sigma = drawn.unbind(1)
    images = torch.where(jitter < JITTER, jittered(images, bright, contrast, saturation, hue), images)
    images = torch.where(grey < GREY, luma(images).expand_as(images), images)
    low, high = BLUR_SIGMA
    return torch.where(blur < BLUR, blurred(images, low + (high - low) * sigma.flatten()), images)


def jittered(images: Tensor, bright: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """The four draws are [B,1,1,1] in 0..1."""
    bright, contrast, saturation = (1 + LIGHT * (2 * draw - 1) for draw in (bright, contrast, saturation))
    images = (images * bright).clamp(0, 255)
    middle = luma(images).mean(dim=(2, 3), keepdim=True)
    images = (middle + (images - middle) * contrast).clamp(0, 255)
    return turned(images, saturation, 2 * torch.pi * HUE * (2 * hue - 1)).clamp(0, 255)


def turned(images: Tensor, saturation: Tensor, angle: Tensor) -> Tensor:
    """Colours turned around the grey axis by `angle` and moved away from it, both [B,1,1,1]."""
    to_yiq, from_yiq = matrices(images.device)
    y, i, q = torch.einsum("kc,bchw->bkhw", to_yiq, images).split(1, dim=1)
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    mixed = torch.cat([y, cos * i - sin * q, sin * i + cos * q], dim=1)
    return torch.einsum("kc,bchw->bkhw", from_yiq, mixed)


@lru_cache(maxsize=8)
def matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """To YIQ and back, kept on the device: copying them there would make every step wait for it."""
    with torch.inference_mode(False):
        to_yiq = torch.tensor(YIQ)
        return to_yiq.to(device), torch.linalg.inv(to_yiq).to(device)


def luma(images: Tensor) -> Tensor:
    """[B,3,H,W] -> [B,1,H,W]"""
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Each picture by its own Gaussian: sigma [B] in pixels."""
    count = len(images)
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, dim=0)
    padded = F.pad(images, (BLUR_RADIUS,) * 4, mode="replicate").reshape(1, count * 3, *padded_size(images))
    rows = F.conv2d(padded, kernel[:, None, None, :], groups=count * 3)
    return F.conv2d(rows, kernel[:, None, :, None], groups=count * 3).view_as(images)


def padded_size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[2:]
    return height + 2 * BLUR_RADIUS, width + 2 * BLUR_RADIUS
