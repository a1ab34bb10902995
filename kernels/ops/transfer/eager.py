"""Transfer and alignment of the tagged maps alone, each operation in place of the one before.

Both losses are a mean of hinges over all (image, class) pairs, absent classes counting as 0. These are small maps, so
that the price of starting operations decides: torch's own gradients are cheaper than a Function of ours.
"""

import torch
from torch import Tensor

from kernels.ops.present import present_pairs


def transfer_loss(cam_a: Tensor, cam_b: Tensor, cam_mix: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.transfer_loss`."""
    pairs = present_pairs(labels)
    halves = torch.cat([_maps(cam_a, pairs), _maps(cam_b, pairs)], dim=1).float()
    return _mean_of_hinges(halves.sub_(_maps(cam_mix, pairs)).sub_(margin), labels, pairs, cam_mix.numel())


def align_loss(cam: Tensor, cam_erased: Tensor, keep: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Fast version of `kernels.align_loss`."""
    pairs = present_pairs(labels)
    kept = keep.expand_as(cam).flatten(0, 1) if pairs is None else keep[:, 0].index_select(0, pairs // labels.shape[1])
    gained = torch.sub(_maps(cam_erased, pairs).float(), _maps(cam, pairs).float()).mul_(kept)
    return _mean_of_hinges(gained.sub_(margin), labels, pairs, cam.numel())


def _maps(cam: Tensor, pairs: Tensor | None) -> Tensor:
    """The chosen maps [n,h,w] of cam [B,C,h,w]; None: all B*C."""
    maps = cam.flatten(0, 1)
    return maps if pairs is None else maps.index_select(0, pairs)


def _mean_of_hinges(excess: Tensor, labels: Tensor, pairs: Tensor | None, elements: int) -> Tensor:
    """The positive excess [n,h,w] of the chosen maps, over the number of elements that all maps have."""
    sums = excess.relu_().sum(dim=(1, 2))
    return (sums * labels.flatten() if pairs is None else sums).sum() / elements
