"""What one rank sees of a global batch."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class Tensors:
    """A dataclass of tensors and numbers that moves as one."""

    def pin_memory(self) -> Self:
        """What a DataLoader calls, so that copies to a GPU need not wait."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Batch(Tensors):
    """B pictures and the partners of the first P of them (P >= 1 in phase 2, 0 in phase 1).

    images uint8 [B,3,S,S], inside int32 [B,4] (method/pixels.py), labels float [B,C], keys int64 [B] (noise);
    partners, partner_inside, partner_labels: the same for P partners.
    pictures, pairs: how many the whole global batch has; local_pairs <= P of ours are real, a rank without any brings
    one that weighs nothing. most_tags: the largest number of tags of any picture here. replaced: what could not be read
    and what was drawn instead of it stands here (data/bad_samples.py).
    """

    images: Tensor
    inside: Tensor
    labels: Tensor
    keys: Tensor
    partners: Tensor
    partner_inside: Tensor
    partner_labels: Tensor
    pictures: int
    pairs: int
    local_pairs: int
    most_tags: int
    replaced: tuple = ()


@dataclass(frozen=True)
class MaskedBatch(Tensors):
    """B pictures with masks, for the segmentation network.

    images uint8 [B,3,S,S]; labels uint8 [B,S,S] (0 background, class + 1, 255 unknown); trusted bool [B,S,S]: which
    labels count; keys int64 [B] (noise). pictures: of the whole global batch; classes: without the background.
    """

    images: Tensor
    labels: Tensor
    trusted: Tensor
    keys: Tensor
    pictures: int
    classes: int
    replaced: tuple = ()
