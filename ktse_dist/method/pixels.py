"""Between grey levels and network inputs, on the device."""

from functools import lru_cache

import torch
from torch import Tensor


def normalise(pixels: Tensor, inside: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B,3,H,W] to float32; outside the box `inside` [B,4] (top, left, bottom, right) it is 0, the mean colour.

    mean, std: three numbers each, in grey levels (0 to 255).
    """
    levels = pixels.to(torch.float32, memory_format=torch.channels_last)
    return normalise_levels(levels, mean, std) * inside_mask(inside, *pixels.shape[2:])


def normalise_levels(levels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """float [B,3,H,W] in grey levels to what the network takes."""
    return (levels - _planes(mean, levels.device)) / _planes(std, levels.device)


def inside_mask(inside: Tensor, height: int, width: int) -> Tensor:
    """bool [B,1,H,W]: where the canvas shows the picture."""
    top, left, bottom, right = (edge[:, None] for edge in inside.unbind(1))
    y, x = torch.arange(height, device=inside.device), torch.arange(width, device=inside.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def denormalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], truncated: bool) -> Tensor:
    """Network inputs back to [0,1]; truncated drops the fraction of a grey level, as the published run does."""
    unit_std, unit_mean = (tuple(value / 255 for value in values) for values in (std, mean))
    pixels = images * _planes(unit_std, images.device) + _planes(unit_mean, images.device)
    # the published order of operations: another one would truncate other pixels
    return (pixels * 255).clamp(0, 255).to(torch.uint8).to(torch.float32) / 255 if truncated else pixels


@lru_cache(maxsize=64)
def _planes(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Three numbers as [1,3,1,1], kept on the device: copying them there would make every step wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)
