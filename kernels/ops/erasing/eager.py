"""Foreground and erasing over the present classes only; a few of them at a time, so no [B,C,H,W] tensor exists."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ops.erasing.reference import EPSILON
from kernels.ops.present import most_tags

CLASSES_AT_ONCE = 8


@torch.no_grad()
def foreground(cam: Tensor, labels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Fast version of `kernels.foreground`: the tagged classes of each image, gathered to the front."""
    size = tuple(cam.shape[-2:] if size is None else size)
    present, classes = labels.float().topk(most_tags(labels), dim=1)
    best = torch.zeros(len(cam), 1, *size, device=cam.device)
    for some, chosen in zip(present.split(CLASSES_AT_ONCE, 1), classes.split(CLASSES_AT_ONCE, 1), strict=True):
        strongest = _normalised(cam, chosen, size).mul_(some[:, :, None, None]).amax(dim=1, keepdim=True)
        best = torch.maximum(best, strongest)
    return best


@torch.no_grad()
def erase(images: Tensor, cam: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Fast version of `kernels.erase`."""
    return images * (foreground(cam, labels, images.shape[-2:]) < threshold)


def _normalised(cam: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """The maps of classes [B,k], upsampled, then max-normalised in place: [B,k,H,W], the reference's arithmetic."""
    places = classes[:, :, None, None].expand(-1, -1, *cam.shape[-2:])
    maps = cam.gather(1, places).float().relu_()
    if size != tuple(cam.shape[-2:]):
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    lowest, highest = (extreme[:, :, None, None] for extreme in maps.flatten(2).aminmax(dim=2))
    return maps.sub_(lowest).sub_(EPSILON).relu_().div_(highest - lowest + EPSILON)
