"""What one rank sees of a global batch, whole or in chunks."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

OF_PICTURES = ("images", "inside", "labels", "keys")
OF_PARTNERS = ("partners", "partner_inside", "partner_labels")


class Movable:
    """A frozen dataclass whose tensors go to a device together."""

    def pin_memory(self) -> Self:
        """What a DataLoader calls, so that copies to a GPU need not wait."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Batch(Movable):
    """B pictures and the partners of the first P of them (P >= 1 in phase 2, 0 in phase 1 and in its later chunks).

    images uint8 [B,3,S,S], inside int32 [B,4] (method/pixels.py), labels float [B,C], keys int64 [B] (noise);
    partners, partner_inside, partner_labels: the same for P partners.
    pictures, pairs: how many the whole global batch has; local_pairs <= P of ours are real, a rank without any brings
    one that weighs nothing. most_tags: the largest number of tags of any picture here. replaced: what could not be read
    and what was drawn instead of it stands here (data/bad_samples.py). idle: a chunk that other ranks still have and
    this one has not; its one picture weighs nothing.
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
    idle: bool = False

    def chunks(self, size: int | None, world: int) -> list["Batch"]:
        """Parts of at most `size` pictures (None: all), in order.

        Each of the `world` ranks gets the same number of them, and a part has pairs on all ranks or on none, so that
        every rank makes the same network passes.
        """
        most, most_pairs = -(-self.pictures // world), -(-self.pairs // world)
        if size is None or size >= most:
            return [self]
        return [self._chunk(start, start + size, start < most_pairs) for start in range(0, most, size)]

    def _chunk(self, start: int, stop: int, paired: bool) -> "Batch":
        parts = {name: part_of(getattr(self, name), start, stop) for name in OF_PICTURES}
        parts |= {name: part_of(getattr(self, name), start, stop if paired else None) for name in OF_PARTNERS}
        real = max(0, min(stop, self.local_pairs) - start)
        return replace(self, **parts, local_pairs=real, idle=start >= len(self.images))


def part_of(rows: Tensor, start: int, stop: int | None) -> Tensor:
    """rows[start:stop], or the last row where that is empty; none at all without a `stop`."""
    return rows[:0] if stop is None else rows[min(start, len(rows) - 1) : stop]


@dataclass(frozen=True)
class MaskedBatch(Movable):
    """B pictures with masks, for the segmentation network.

    images uint8 [B,3,S,S]; labels uint8 [B,S,S] (0 background, class + 1, 255 unknown); trusted bool [B,S,S]: which
    labels count; keys int64 [B] (noise). pictures: of the whole global batch; classes: without the background; replaced
    as in Batch.
    """

    images: Tensor
    labels: Tensor
    trusted: Tensor
    keys: Tensor
    pictures: int
    classes: int
    replaced: tuple = ()

    def chunks(self, size: int | None, world: int) -> list["MaskedBatch"]:
        """Itself: a chunk of ordinary batch norm is another step, so these batches are never cut."""
        assert size is None
        return [self]


@dataclass(frozen=True)
class LabelledBatch(Movable):
    """B pictures with a label for every pixel, or for every few of them.

    images uint8 [B,3,S,S], inside int32 [B,4] (method/pixels.py), labels uint8 [B,s,s]: class + 1, 0 background, 255
    unknown. pictures: how many the whole global batch has; replaced as in Batch.
    """

    images: Tensor
    inside: Tensor
    labels: Tensor
    pictures: int
    replaced: tuple = ()

    def chunks(self, size: int | None, world: int) -> list["LabelledBatch"]:
        """Itself: the batches of this kind are never cut."""
        assert size is None
        return [self]
