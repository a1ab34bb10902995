"""From an index to the batches of one rank: ordered rows, read, decoded, cropped, collated.

A webdataset pipeline whose source is our order, so that it can start at any global batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ktse_dist.config import Data
from ktse_dist.data import keyed
from ktse_dist.data.augment import Crop, augment, draw
from ktse_dist.data.index import Index
from ktse_dist.data.order import Epoch, Partners, epoch_order, rank_positions
from ktse_dist.data.reader import Reader
from ktse_dist.method.batch import Batch

AUGMENTATION, DROPOUT = 16, 17  # what a sample's key is for; order.py has the uses below
IMAGE, PARTNER = range(2)  # roles


class Rows(NamedTuple):
    """A sample of the epoch and, where a loss looks at it, its partner."""

    anchor: int
    partner: int | None


class Item(NamedTuple):
    """A loaded sample. key is for the noise of its network passes."""

    image: Crop
    label: np.ndarray
    key: int
    partner: Crop | None
    partner_label: np.ndarray | None


@dataclass(frozen=True)
class Plan:
    """Which part of an epoch one rank loads. pairs: how many pictures of a global batch need partners."""

    epoch: int
    batch_size: int
    first_batch: int
    pairs: int
    rank: int
    world: int

    @property
    def real_pairs(self) -> int:
        """This rank's pictures among the first `pairs` positions of each global batch."""
        return len(range(self.rank, self.pairs, self.world))

    @property
    def loaded_pairs(self) -> int:
        """At least one where there are pairs at all: every rank makes the same network passes."""
        return max(1, self.real_pairs) if self.pairs else 0

    @property
    def pictures(self) -> int:
        return len(range(self.rank, self.batch_size, self.world))


def stream(index: Index, data: Data, seed: int, plan: Plan) -> Iterator[Batch]:
    """This rank's batches of one epoch, from global batch `plan.first_batch` on; the last incomplete one is dropped."""
    pipeline = wds.DataPipeline(
        OrderedRows(index, data.window_shards, seed, plan),
        wds.map(Loader(index, data, seed, plan.epoch)),
        wds.batched(plan.pictures, collation_fn=Collate(plan), partial=False),
    )
    if not data.workers:
        return iter(pipeline)
    # a forked child of a process with Ray's threads may hang: workers come from a clean server process
    loader = DataLoader(
        pipeline,
        batch_size=None,
        num_workers=data.workers,
        multiprocessing_context="forkserver",
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


class OrderedRows(IterableDataset):
    """The rows that one loading process of one rank takes, in order: local batches w, w+n, ... of n processes."""

    def __init__(self, index: Index, window_shards: int | None, seed: int, plan: Plan):
        self.index, self.window_shards, self.seed, self.plan = index, window_shards, seed, plan

    def __iter__(self) -> Iterator[Rows]:
        plan = self.plan
        order = epoch_order(self.index.samples["shard"], self.seed, plan.epoch, self.window_shards)
        worker = get_worker_info()
        first, step = (plan.first_batch + worker.id, worker.num_workers) if worker else (plan.first_batch, 1)
        windows = WindowPartners(self.index, order)
        for batch in range(first, len(order.samples) // plan.batch_size, step):
            positions = rank_positions(batch, plan.batch_size, plan.rank, plan.world)
            for place, position in enumerate(positions):
                partner = windows.partner(position) if place < plan.loaded_pairs else None
                yield Rows(int(order.samples[position]), partner)


class WindowPartners:
    """Partners of successive positions; holds the class lists of the current window only."""

    def __init__(self, index: Index, order: Epoch):
        self._index, self._order = index, order
        self._window, self._partners = -1, None

    def partner(self, position: int) -> int:
        window = int(self._order.window[position])
        if window != self._window or self._partners is None:
            rows = self._order.samples[self._order.window == window]
            self._window, self._partners = window, Partners(self._order, window, self._index.labels(rows))
        return self._partners.of(int(self._order.samples[position]))


class Loader:
    """Rows to pixels: read with its checksum, decoded, cropped as its key says."""

    def __init__(self, index: Index, data: Data, seed: int, epoch: int):
        self.reader, self.index, self.data, self.seed, self.epoch = Reader(index), index, data, seed, epoch
        cv2.setNumThreads(1)  # ranks and loading processes are the parallelism

    def __reduce__(self) -> tuple:
        return Loader, (self.index, self.data, self.seed, self.epoch)  # a loading process, too, works on one thread

    def __call__(self, rows: Rows) -> Item:
        partner = None if rows.partner is None else self._crop(rows.partner, rows.anchor, PARTNER)
        partner_label = None if rows.partner is None else self.index.labels([rows.partner])[0]
        key = keyed.key(self.seed, self.epoch, DROPOUT, rows.anchor)
        own = self._crop(rows.anchor, rows.anchor, IMAGE)
        return Item(own, self.index.labels([rows.anchor])[0], int(key.astype(np.int64)), partner, partner_label)

    def _crop(self, row: int, anchor: int, role: int) -> Crop:
        picture = self.reader.picture(row)
        key = keyed.key(self.seed, self.epoch, AUGMENTATION, anchor, role)
        choices = draw(key, picture.shape[:2], self.data.long_side, self.data.crop)
        return augment(picture, choices, self.data.crop, self.data.resize)


class Collate:
    """Items of one local batch as tensors; pixels uint8, channels last in memory."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def __call__(self, items: Sequence[Item]) -> Batch:
        plan = self.plan
        paired = [item for item in items if item.partner is not None]
        crop, classes = items[0].image.pixels.shape[0], len(items[0].label)
        labels = stack([item.label for item in items], (classes,), np.float32)
        partner_labels = stack([item.partner_label for item in paired], (classes,), np.float32)
        return Batch(
            images=pixels([item.image for item in items], crop),
            inside=stack([item.image.inside for item in items], (4,), np.int32),
            labels=labels,
            keys=torch.tensor([item.key for item in items], dtype=torch.int64),
            partners=pixels([item.partner for item in paired], crop),
            partner_inside=stack([item.partner.inside for item in paired], (4,), np.int32),
            partner_labels=partner_labels,
            pictures=plan.batch_size,
            pairs=plan.pairs,
            local_pairs=plan.real_pairs,
            most_tags=max(1, int(torch.cat([labels, partner_labels]).sum(1).max())),
        )


def stack(rows: Sequence, shape: tuple[int, ...], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype).reshape(-1, *shape))


def pixels(crops: Sequence[Crop], side: int) -> torch.Tensor:
    return stack([crop.pixels for crop in crops], (side, side, 3), np.uint8).permute(0, 3, 1, 2)
