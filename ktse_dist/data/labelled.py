"""Pictures with label maps, as IRN learns from them: one scale for both, one crop, labels at a quarter of its size
(docs/method.md 3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ktse_dist.config.data import Data
from ktse_dist.data import keyed
from ktse_dist.data.augment import Crop, augment, augment_labels, draw
from ktse_dist.data.bad_samples import Replaced
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.data.stream import AUGMENTATION, IMAGE, Loader, Making, Place, Plan, pixels, stack
from ktse_dist.method.batch import LabelledBatch

SCALES = (0.5, 1.5)  # of the packed picture, drawn uniformly
STRIDE = 4  # pixels a label; each takes the one beyond the middle, as Pillow does


class LabelledItem(NamedTuple):
    image: Crop
    labels: np.ndarray
    replaced: tuple[Replaced, ...]


class LabelledLoader(Loader):
    """Places to crops with labels. labels: a folder with mask shards for every picture of the index."""

    def __init__(self, index: Index, data: Data, seed: int, epoch: int, labels: Path):
        super().__init__(index, data, seed, epoch)
        self.labels, self._masks = labels, MaskIndex(labels, index)

    def __reduce__(self) -> tuple:
        return LabelledLoader, (self.index, self.data, self.seed, self.epoch, self.labels)

    def __call__(self, place: Place) -> LabelledItem:
        row, picture, replaced = self.own(place)
        key = keyed.word(self.seed, self.epoch, AUGMENTATION, place.anchor, IMAGE)
        low, high = (max(1, round(max(picture.shape[:2]) * scale)) for scale in SCALES)
        choices = draw(key, picture.shape[:2], (low, high), self.data.crop)
        labels = augment_labels(decode_mask(self._masks.read(row, "mask")), choices, self.data.crop)
        image = augment(picture, choices, self.data.crop, self.data.resize)
        return LabelledItem(image, labels[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE], tuple(replaced))


class LabelledCollate:
    """Items of one local batch as tensors."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def __call__(self, items: Sequence[LabelledItem]) -> LabelledBatch:
        return LabelledBatch(
            images=pixels([item.image for item in items], items[0].image.pixels.shape[0]),
            inside=stack([item.image.inside for item in items], (4,), np.int32),
            labels=stack([item.labels for item in items], items[0].labels.shape, np.uint8),
            pictures=self.plan.batch_size,
            replaced=tuple(bad for item in items for bad in item.replaced),
        )


def labelled(index: Index, data: Data, seed: int, plan: Plan, labels: Path) -> Making:
    return Making(LabelledLoader(index, data, seed, plan.epoch, labels), LabelledCollate(plan))
