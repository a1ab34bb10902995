"""What one rank sees of a global batch."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
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

    def pin_memory(self) -> "Batch":
        """What a DataLoader calls, so that copies to a GPU need not wait."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})
