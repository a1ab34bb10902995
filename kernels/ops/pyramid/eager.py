"""The global pyramid head with few launches: all levels by two products with small matrices.

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
        gpp, *finer = torch.einsum("lyh,bchw,lxw->lbcyx", rows, cam, columns).unbind()
        for pooled, (positive, negative) in zip(finer, gates, strict=True):
            gpp = _gate(gpp, pooled, positive.float(), negative.float())
        return gpp, ((cam * gpp).relu() * cam.sign()).mean(dim=(2, 3))


def _gate(coarse: Tensor, fine: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean of two levels, weighted per pixel by gates: one for what speaks for a class, one for what is against."""
    both = torch.cat([coarse, fine], dim=1)
    return (_weighted(both.relu(), positive) - _weighted((-both).relu(), negative)) / 2


def _weighted(activation: Tensor, weight: Tensor) -> Tensor:
    """Both levels' activation [B,2C,h,w] times the gates that it opens, summed over the levels: [B,C,h,w]."""
    gates = F.conv2d(activation, weight, padding=1).sigmoid()
    return (activation.unflatten(1, (2, -1)) * gates[:, :, None]).sum(dim=1)


@lru_cache(maxsize=64)
def _smoothing(length: int, device: torch.device) -> Tensor:
    """Averaging into cells and back along one axis, a matrix for each level: [levels, length, length]."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(length)[None]
        levels = [F.interpolate(F.adaptive_avg_pool1d(unit, k), size=length, mode="linear") for k in LEVELS]
        return torch.cat(levels).mT.contiguous().to(device)
