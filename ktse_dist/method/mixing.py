"""Cut a partner's objects out and paste them in: pictures, labels and trust alike (docs/method.md 4)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ktse_dist.data.palette import IGNORE
from ktse_dist.models.noise import channel_hash


class Scene(NamedTuple):
    """images float [B,3,H,W]; labels uint8 [B,H,W] (0 background, class + 1, 255 unknown); trusted bool [B,H,W]."""

    images: Tensor
    labels: Tensor
    trusted: Tensor


def partners(batch: Tensor) -> Tensor:
    """Each item's partner: the one at its place in the other half of the batch, whose length is even."""
    return batch.roll(len(batch) // 2, dims=0)


def classes_in(labels: Tensor, classes: int) -> Tensor:
    """bool [B,C]: which classes a label map [B,H,W] has."""
    seen = labels.long().masked_fill(labels > classes, 0)
    counts = torch.zeros(len(labels), classes + 1, device=labels.device).scatter_(1, seen.flatten(1), 1.0)
    return counts[:, 1:] > 0


def half_of(present: Tensor, keys: Tensor, use: int) -> Tensor:
    """bool [B,C]: half (rounded up) of the present classes, drawn without replacement by the keys int64 [B]."""
    order = channel_hash(keys, use, present.shape[1]).masked_fill(~present, -1)
    rank = order.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return present & (rank < (present.sum(1, keepdim=True) + 1) // 2)


def region(labels: Tensor, chosen: Tensor) -> Tensor:
    """bool [B,H,W]: the pixels whose class is chosen [B,C]."""
    padded = F.pad(chosen, (1, IGNORE - chosen.shape[1]))  # background, the classes, all values up to 255
    return padded.gather(1, labels.long().flatten(1)).view(labels.shape)


def paste(scene: Scene, where: Tensor) -> Scene:
    """The scene with its partner's pixels at `where` bool [B,H,W], which is the partner's region."""
    other = Scene(*map(partners, scene))
    images = torch.where(where[:, None], other.images, scene.images)
    return Scene(
        images, torch.where(where, other.labels, scene.labels), torch.where(where, other.trusted, scene.trusted)
    )


def boundary(where: Tensor) -> Tensor:
    """bool [B,H,W]: both sides of the edge of a region, one pixel each; the border of the image is no edge."""
    inside = where.float()[:, None]
    grown, shrunk = F.max_pool2d(inside, 3, 1, 1), -F.max_pool2d(-inside, 3, 1, 1)
    return (grown > shrunk)[:, 0]


def confident(logits: Tensor, sure: float) -> tuple[Tensor, Tensor]:
    """What logits [B,K,H,W] say, and where they are sure: labels uint8, bool [B,H,W]."""
    best, labels = logits.softmax(dim=1).max(dim=1)
    return labels.to(torch.uint8), best > sure
