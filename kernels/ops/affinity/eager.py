"""Pixel-adaptive refinement without copies of neighbours: 48 shifted views of one padded map, summed in place.

The weights depend on the picture alone and PAR is linear in the masks, so one set of weights serves all masks of a
picture (stack the seeds of several thresholds as channels).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ops.affinity.reference import EPSILON, NEIGHBOURS, SHARPNESS, position_weights
from kernels.ops.present import filled_masks

WEIGHTS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 30}  # CPU: a thread's part stays in its cache over all iterations


@torch.no_grad()
def par(
    images: Tensor, masks: Tensor, dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24), iterations: int = 10
) -> Tensor:
    """Fast version of `kernels.par`."""
    height, width = images.shape[-2:]
    dilations = tuple(dilations)
    at_once = WEIGHTS_AT_ONCE[images.device.type] * (1 if images.is_cuda else torch.get_num_threads())
    pictures = max(1, at_once // (len(NEIGHBOURS) * len(dilations) * height * width))
    refined = torch.zeros(*masks.shape[:2], height, width, dtype=masks.dtype, device=masks.device)
    for some, channels in _parts(masks, pictures):
        part = masks[some][:, channels].float().contiguous()
        part = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=True)
        weights = _weights(images[some].float().contiguous(), dilations)
        refined[some[:, None], channels] = _refined(part, weights, dilations, iterations).to(refined.dtype)
    return refined


def _parts(masks: Tensor, pictures: int) -> list[tuple[Tensor, Tensor]]:
    """Pictures to refine at once, with the channels that any of them has a mask in: an absent class's 0 stays 0.

    Pictures with as many masks go together, those without any nowhere.
    """
    count, channels = masks.shape[:2]
    filled = filled_masks(masks)
    if filled is None:
        every = torch.arange(max(count, channels), device=masks.device)
        return [(some, every[:channels]) for some in every[:count].split(pictures)]
    counts, order = filled.sum(dim=1).sort(stable=True)
    order = order[counts > 0]
    return [(some, filled[some].any(dim=0).nonzero()[:, 0]) for some in order.split(pictures) if len(some)]


def _refined(masks: Tensor, weights: Tensor, dilations: tuple[int, ...], iterations: int) -> Tensor:
    """Each pixel of masks [B,M,H,W] replaced by the weighted sum of its neighbours, repeatedly.

    Neighbours are views of one padded copy, made once: the next masks are written into the same memory.
    """
    edges = (max(dilations),) * 4
    padded, total = _padded(masks, dilations), torch.empty_like(masks)
    pairs = list(zip(_neighbours(padded, dilations), weights.split(1, dim=1), strict=True))
    for _ in range(iterations):
        torch.mul(*pairs[0], out=total)
        for neighbour, weight in pairs[1:]:
            total.addcmul_(neighbour, weight)
        torch.ops.aten.replication_pad2d.out(total, edges, out=padded)
    return _view(padded, max(dilations), 0, 0)


def _weights(images: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Colour and position weights [B,K,H,W]. The deviation is taken in two passes: one would cancel in flat regions."""
    around = _neighbours(_padded(images, dilations), dilations)
    mean, squares, difference = torch.zeros_like(images), torch.zeros_like(images), torch.empty_like(images)
    for neighbour in around:
        mean.add_(neighbour)
    mean.div_(len(around))
    for neighbour in around:
        torch.sub(neighbour, mean, out=difference)
        squares.addcmul_(difference, difference)
    scale = 1 / ((squares / (len(around) - 1)).sqrt_() + EPSILON) / SHARPNESS
    weights = images.new_empty(len(images), len(around), *images.shape[2:])
    for neighbour, distance in zip(around, weights.unbind(dim=1), strict=True):
        torch.sub(neighbour, images, out=difference).mul_(scale).square_()
        torch.mean(difference, dim=1, out=distance)
    return torch.softmax(weights.neg_(), dim=1, out=weights).add_(_position(dilations, images.device))


@lru_cache(maxsize=16)
def _position(dilations: tuple[int, ...], device: torch.device) -> Tensor:
    """`position_weights` as [K,1,1], kept on the device."""
    return position_weights(dilations)[:, None, None].to(device)


def _padded(maps: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """A copy with the edge repeated as far as neighbours reach."""
    return F.pad(maps, (max(dilations),) * 4, mode="replicate")


def _neighbours(padded: Tensor, dilations: tuple[int, ...]) -> list[Tensor]:
    """K views [B,C,H,W] of what `_padded` returns, in the reference's order."""
    return [_view(padded, max(dilations), d * dy, d * dx) for d in dilations for dy, dx in NEIGHBOURS]


def _view(padded: Tensor, reach: int, down: int, right: int) -> Tensor:
    """The map [B,C,H,W] inside a padded one, seen from pixels further down and right."""
    height, width = padded.shape[2] - 2 * reach, padded.shape[3] - 2 * reach
    return padded[:, :, reach + down : reach + down + height, reach + right : reach + right + width]
