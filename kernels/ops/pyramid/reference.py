"""The global pyramid head as published (docs/method.md 1.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = (2, 4, 8, 16)


def pyramid_gate(cam: Tensor, gates: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Plain version of `kernels.pyramid_gate`."""
    with torch.autocast(cam.device.type, enabled=False):
        cam = cam.float()
        gpp, *finer = (_pooled(cam, level) for level in LEVELS)
        for pooled, (positive, negative) in zip(finer, gates, strict=True):
            gpp = _gate(gpp, pooled, positive.float(), negative.float())
        agreed, denied = cam.relu() * gpp.relu(), (-cam).relu() * (-gpp).relu()
        return gpp, agreed.mean(dim=(2, 3)) - denied.mean(dim=(2, 3))


def _pooled(cam: Tensor, level: int) -> Tensor:
    """The CAM averaged over level x level cells, then brought back to its size."""
    return F.interpolate(F.adaptive_avg_pool2d(cam, level), size=cam.shape[-2:], mode="bilinear", align_corners=False)


def _gate(coarse: Tensor, fine: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean of two levels, weighted per pixel by gates: one for what speaks for a class, one for what is against."""
    allow = F.conv2d(torch.cat([coarse.relu(), fine.relu()], dim=1), positive, padding=1).sigmoid()
    deny = F.conv2d(torch.cat([(-coarse).relu(), (-fine).relu()], dim=1), negative, padding=1).sigmoid()
    allowed = coarse.relu() * allow[:, :1] + fine.relu() * allow[:, 1:]
    denied = (-coarse).relu() * deny[:, :1] + (-fine).relu() * deny[:, 1:]
    return allowed / 2 - denied / 2
