"""Transfer and alignment of the tagged maps alone: few of all maps are tagged, and only they are read.

Both losses are a mean of hinges over all (image, class) pairs, absent classes counting as 0.
"""

import torch
from torch import Tensor

from kernels.ops.present import present_pairs


def transfer_loss(cam_a: Tensor, cam_b: Tensor, cam_mix: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.transfer_loss`."""
    pairs = present_pairs(labels)
    upper, lower, mixed = (_maps(cam, pairs) for cam in (cam_a, cam_b, cam_mix))
    return _mean_hinge(torch.cat([upper, lower], dim=1) - mixed, labels, pairs, margin)


def align_loss(cam: Tensor, cam_erased: Tensor, keep: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.align_loss`."""
    pairs = present_pairs(labels)
    rise = _maps(cam_erased, pairs) - _maps(cam, pairs)
    return _mean_hinge(rise * _of_maps(keep, cam.shape[1], pairs), labels, pairs, margin)


def _maps(cam: Tensor, pairs: Tensor | None) -> Tensor:
    """The chosen maps [n,h,w] of cam [B,C,h,w] in fp32; None: all B*C."""
    maps = cam.flatten(0, 1)
    return (maps if pairs is None else maps.index_select(0, pairs)).float()


def _of_maps(keep: Tensor, classes: int, pairs: Tensor | None) -> Tensor:
    """What of keep [B,1,h,w] belongs to each chosen map, [n,h,w]."""
    if pairs is None:
        return keep.expand(-1, classes, -1, -1).flatten(0, 1)
    return keep[:, 0].index_select(0, pairs // classes)


def _mean_hinge(gaps: Tensor, labels: Tensor, pairs: Tensor | None, margin: float) -> Tensor:
    """Mean of relu(gap - margin) over the maps of all labels [B,C], of which gaps [n,h,w] are the chosen ones."""
    excess = (gaps - margin).relu_()
    if pairs is None:
        excess = excess * labels.flatten()[:, None, None]
    height, width = gaps.shape[1:]
    return excess.sum() / (labels.numel() * height * width)
