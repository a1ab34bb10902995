"""The global pyramid head with few launches: all levels by two products with small matrices, both gates in one conv.

Averaging over cells and bringing the result back to the CAM's size are linear along each axis, so a level is
rows @ cam @ columns, and its gradient two more products.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ops.pyramid.reference import LEVELS


def pyramid_gate(cam: Tensor, gates: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Fast version of `kernels.pyramid_gate`."""
    with torch.autocast(cam.device.type, enabled=False):
        cam = cam.float().contiguous()
        rows, columns = (_smoothing(length, cam.device) for length in cam.shape[-2:])
        gpp, *finer = (rows[:, None, None] @ cam @ columns[:, None, None].mT).unbind()
        for pooled, (positive, negative) in zip(finer, gates, strict=True):
            gpp = _gate(gpp, pooled, torch.cat([positive, negative]).float())
        return gpp, ((cam * gpp).relu() * cam.sign()).mean(dim=(2, 3))


def _gate(coarse: Tensor, fine: Tensor, weight: Tensor) -> Tensor:
    """One gating step; weight [4,2C,3,3] holds the gate for positive activation, then that for negative."""
    both = torch.cat([coarse, fine], dim=1)
    parts = torch.cat([both.relu(), (-both).relu()], dim=1)
    allow_coarse, allow_fine, deny_coarse, deny_fine = (
        F.conv2d(parts, weight, padding=1, groups=2).sigmoid().split(1, dim=1)
    )
    up_coarse, up_fine, down_coarse, down_fine = parts.chunk(4, dim=1)
    return (up_coarse * allow_coarse + up_fine * allow_fine - down_coarse * deny_coarse - down_fine * deny_fine) / 2


@lru_cache(maxsize=64)
def _smoothing(length: int, device: torch.device) -> Tensor:
    """Averaging into cells and back along one axis, a matrix for each level: [levels, length, length]."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(length)[None]
        levels = [F.interpolate(F.adaptive_avg_pool1d(unit, k), size=length, mode="linear") for k in LEVELS]
        return torch.cat(levels).mT.contiguous().to(device)
