"""Foreground and erasing on a GPU: the launches. Only present classes are read, and no [B,C,H,W] tensor exists."""

import torch
import triton
from torch import Tensor

from kernels.launch import launch
from kernels.ops.erasing.kernel import extrema, strongest


@torch.no_grad()
def foreground(cam: Tensor, labels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Kernel version of `kernels.foreground`."""
    size = tuple(cam.shape[2:] if size is None else size)
    out = torch.empty(len(cam), 1, *size, device=cam.device)
    _launch_strongest(out, cam, labels, size, None, 0.0)
    return out


@torch.no_grad()
def erase(images: Tensor, cam: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Kernel version of `kernels.erase`."""
    images = images if _is_dense(images) else images.contiguous()
    out = torch.empty_like(images)
    _launch_strongest(out, cam, labels, tuple(images.shape[2:]), images, threshold)
    return out


def _launch_strongest(
    out: Tensor, cam: Tensor, labels: Tensor, size: tuple[int, int], images: Tensor | None, threshold: float
) -> None:
    batch, classes, h, w = cam.shape
    maps, labels = cam.flatten(2), labels.contiguous()
    chosen = torch.empty(batch, classes, dtype=torch.int32, device=cam.device)
    count = torch.empty(batch, dtype=torch.int32, device=cam.device)
    lowest, highest = torch.empty(2, batch, classes, device=cam.device).unbind()
    geometry = (classes, h, w, *size, h / size[0], w / size[1], *maps.stride())
    launch(
        extrema, lambda meta: (batch, classes), cam.device,
        maps, labels, chosen, lowest, highest, count, *geometry, CLASSES=triton.next_power_of_2(classes),
    )  # fmt: skip
    channels, strides = (0, (0, 0, 0)) if images is None else (images.shape[1], _strides(images))
    launch(
        strongest, lambda meta: (batch, triton.cdiv(size[0] * size[1], meta["BLOCK"])), cam.device,
        out, maps, images, chosen, lowest, highest, count, threshold, *geometry, *strides, CHANNELS=channels,
    )  # fmt: skip


def _strides(images: Tensor) -> tuple[int, int, int]:
    """Steps from image to image, channel to channel, pixel to pixel."""
    return images.flatten(2).stride()


def _is_dense(images: Tensor) -> bool:
    return images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)
