"""Pictures and their masks, cut alike: what the segmentation network learns from (docs/method.md 4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ktse_dist.config.data import Data
from ktse_dist.config.stages import Segment
from ktse_dist.data import keyed
from ktse_dist.data.bad_samples import Replaced
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.data.palette import IGNORE
from ktse_dist.data.region import cut_map, cut_picture, draw_region
from ktse_dist.data.stream import AUGMENTATION, DROPOUT, IMAGE, Loader, Making, Place, Plan, stack
from ktse_dist.method.batch import MaskedBatch


class MaskedItem(NamedTuple):
    """image uint8 [S,S,3]; labels, trusted uint8 [S,S]; key for the noise of its step."""

    image: np.ndarray
    labels: np.ndarray
    trusted: np.ndarray
    key: int
    replaced: tuple[Replaced, ...]


class MaskedLoader(Loader):
    """Places to crops with labels. masks: a folder with mask shards for every picture of the index."""

    def __init__(self, index: Index, data: Data, config: Segment, seed: int, epoch: int, masks: Path):
        super().__init__(index, data, seed, epoch)
        self.config, self.masks, self._index = config, masks, MaskIndex(masks, index)

    def __reduce__(self) -> tuple:
        return MaskedLoader, (self.index, self.data, self.config, self.seed, self.epoch, self.masks)

    def __call__(self, place: Place) -> MaskedItem:
        row, picture, replaced = self.own(place)
        labels, surety = (decode_mask(self._index.read(row, member)) for member in ("mask", "conf"))
        trusted = surest(labels, surety, self.config.trusted)
        key = keyed.word(self.seed, self.epoch, AUGMENTATION, place.anchor, IMAGE)
        region, side = draw_region(key, picture.shape[:2], self.config.area), self.data.crop
        noise = keyed.word(self.seed, self.epoch, DROPOUT, place.anchor)
        return MaskedItem(
            cut_picture(picture, region, side),
            cut_map(labels, region, side),
            cut_map(trusted, region, side),
            noise - (noise >> 63 << 64),  # torch has int64 only
            tuple(replaced),
        )


def surest(labels: np.ndarray, surety: np.ndarray, share: float) -> np.ndarray:
    """uint8 [H,W], 1 at the surest pixels of every label, a `share` of them (rounded down); 0 where nothing is known.

    labels uint8 [H,W], background included; surety uint8 [H,W], the mask shard's `conf`. Of equally sure pixels the
    first ones count.
    """
    trusted = np.zeros(labels.size, np.uint8)
    for value in np.unique(labels).tolist():
        if value != IGNORE:
            pixels = np.flatnonzero(labels == value)
            order = np.argsort(255 - surety.reshape(-1)[pixels], kind="stable")
            trusted[pixels[order[: int(share * len(pixels))]]] = 1
    return trusted.reshape(labels.shape)


class MaskedCollate:
    """Items of one local batch as tensors."""

    def __init__(self, plan: Plan, side: int, classes: int):
        self.plan, self.side, self.classes = plan, side, classes

    def __call__(self, items: Sequence[MaskedItem]) -> MaskedBatch:
        square = (self.side, self.side)
        return MaskedBatch(
            images=stack([item.image for item in items], (*square, 3), np.uint8).permute(0, 3, 1, 2),
            labels=stack([item.labels for item in items], square, np.uint8),
            trusted=stack([item.trusted for item in items], square, np.uint8).bool(),
            keys=torch.tensor([item.key for item in items], dtype=torch.int64),
            pictures=self.plan.batch_size,
            classes=self.classes,
            replaced=tuple(bad for item in items for bad in item.replaced),
        )


def masked(index: Index, data: Data, config: Segment, seed: int, plan: Plan, masks: Path) -> Making:
    collate = MaskedCollate(plan, data.crop, len(index.classes))
    return Making(MaskedLoader(index, data, config, seed, plan.epoch, masks), collate)
