"""From an index to the batches of one rank: ordered rows, read, decoded, cropped, collated.

A webdataset pipeline whose source is our order, so that it can start at any global batch.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ktse_dist.config.data import Data
from ktse_dist.data import keyed
from ktse_dist.data.augment import Crop, augment, draw
from ktse_dist.data.bad_samples import Replaced
from ktse_dist.data.decode import BadSample
from ktse_dist.data.index import Index
from ktse_dist.data.order import epoch_order, rank_positions
from ktse_dist.data.partners import ATTEMPTS, Partners, Windows
from ktse_dist.data.pool import WorkerDied
from ktse_dist.data.prefetch import while_fetching
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError
from ktse_dist.method.batch import Batch

AUGMENTATION, DROPOUT = 16, 17  # what a sample's key is for; order.py has the uses below
IMAGE, PARTNER = range(2)  # roles


class Place(NamedTuple):
    """A place in the epoch: whose it is, whether a loss looks at a partner, and its window's class lists."""

    anchor: int
    paired: bool
    window: Partners


class Item(NamedTuple):
    """A loaded sample. key is for the noise of its network passes; replaced: what could not be read on the way."""

    image: Crop
    label: np.ndarray
    key: int
    partner: Crop | None
    partner_label: np.ndarray | None
    replaced: tuple[Replaced, ...]


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


class Making(NamedTuple):
    """How places become samples, and samples a batch; both can be sent to a loading process."""

    load: Callable[[Place], Any]
    collate: Callable[[Sequence], Any]


def stream(index: Index, data: Data, seed: int, plan: Plan, making: Making | None = None) -> Iterator[Any]:
    """This rank's batches of one epoch, from global batch `plan.first_batch` on; the last incomplete one is dropped.

    making: None for crops with partners, `Batch`es.
    """
    batches = load(index, data, seed, plan, making or Making(Loader(index, data, seed, plan.epoch), Collate(plan)))
    return while_fetching(index, data, seed, plan, batches) if index.remote else batches


def load(index: Index, data: Data, seed: int, plan: Plan, making: Making) -> Iterator[Any]:
    pipeline = wds.DataPipeline(
        Places(index, data, seed, plan),
        wds.map(making.load),
        wds.batched(plan.pictures, collation_fn=making.collate, partial=False),
    )
    if not data.workers:
        yield from pipeline
        return
    # a forked child of a process with Ray's threads may hang: workers come from a clean server process, which has
    # imported what they need
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload([__name__])
    loader = DataLoader(
        Told(pipeline),
        batch_size=None,
        num_workers=data.workers,
        multiprocessing_context=clean,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in watched(loader):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def watched(loader: DataLoader) -> Iterator[Any]:
    """What the loading processes make. WorkerDied if one of them dies."""
    try:
        yield from loader
    except (RuntimeError, OSError, EOFError) as error:  # the last two while torch still thinks that it lives
        if "Caught" in str(error) or (isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error)):
            raise  # what the pipeline itself raised over there
        raise WorkerDied(
            "data.workers: a loading process died (killed, or out of memory?); lower data.workers or train.batch, or "
            "look into the system's log; the same command goes on from the last checkpoint"
        ) from error


class Told(IterableDataset):
    """A pipeline whose UserError is its last item: raised, it would leave the process with a traceback around it."""

    def __init__(self, pipeline: IterableDataset):
        self.pipeline = pipeline

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.pipeline
        except UserError as error:
            yield error


class Places(IterableDataset):
    """What one loading process of one rank takes, in order: local batches w, w+n, ... of n processes."""

    def __init__(self, index: Index, data: Data, seed: int, plan: Plan):
        self.index, self.data, self.seed, self.plan = index, data, seed, plan

    def __iter__(self) -> Iterator[Place]:
        plan, data = self.plan, self.data
        order = epoch_order(self.index.shard_sizes, self.seed, plan.epoch, data.window_shards, data.lanes)
        worker = get_worker_info()
        first, step = (plan.first_batch + worker.id, worker.num_workers) if worker else (plan.first_batch, 1)
        windows = Windows(order, self.index.labels, data.lanes)
        for batch in range(first, len(self.index) // plan.batch_size, step):
            positions = rank_positions(batch, plan.batch_size, plan.rank, plan.world)
            for place, row in enumerate(order.samples[positions].tolist()):
                yield Place(row, place < plan.loaded_pairs, windows.of(row))


class Loader:
    """Places to pixels: read with its checksum, decoded, cropped as its key says."""

    def __init__(self, index: Index, data: Data, seed: int, epoch: int):
        self.reader, self.index, self.data, self.seed, self.epoch = Reader(index), index, data, seed, epoch
        cv2.setNumThreads(1)  # ranks and loading processes are the parallelism

    def __reduce__(self) -> tuple:
        return Loader, (self.index, self.data, self.seed, self.epoch)  # a loading process, too, works on one thread

    def __call__(self, place: Place) -> Item:
        row, picture, replaced = self.own(place)
        own, partner, partner_label = self._crop(picture, place.anchor, IMAGE), None, None
        if place.paired:
            chosen, picture = self._readable(place.window.of(row), place.window, row, replaced)
            partner, partner_label = self._crop(picture, place.anchor, PARTNER), self.index.labels([chosen])[0]
        key = keyed.word(self.seed, self.epoch, DROPOUT, place.anchor)
        signed = key - (key >> 63 << 64)  # torch has int64 only
        return Item(own, self.index.labels([row])[0], signed, partner, partner_label, tuple(replaced))

    def own(self, place: Place) -> tuple[int, np.ndarray, list[Replaced]]:
        """The place's own picture, or one instead of it, which row it is, and what could not be read before."""
        replaced: list[Replaced] = []
        row, picture = self._readable(place.anchor, place.window, place.anchor, replaced)
        return row, picture, [bad._replace(own=True) for bad in replaced[:1]] + replaced[1:]

    def _readable(self, row: int, window: Partners, like: int, replaced: list[Replaced]) -> tuple[int, np.ndarray]:
        """The row's picture, or the first readable one of those drawn for its place; adds those that are not."""
        tried = row
        for attempt in range(ATTEMPTS + 1):
            try:
                return tried, self.reader.picture(tried)
            except BadSample as bad:
                replaced.append(Replaced(tried, str(bad), False))
                tried = window.replacement(row, attempt, like)
        raise UserError(f"{self.index.path}: {ATTEMPTS} pictures in a row cannot be read; the last: {replaced[-1].why}")

    def _crop(self, picture: np.ndarray, anchor: int, role: int) -> Crop:
        key = keyed.word(self.seed, self.epoch, AUGMENTATION, anchor, role)
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
            replaced=tuple(bad for item in items for bad in item.replaced),
        )


def stack(rows: Sequence, shape: tuple[int, ...], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype).reshape(-1, *shape))


def pixels(crops: Sequence[Crop], side: int) -> torch.Tensor:
    """uint8 [B,3,S,S], channels last; written where the training process will read it, if a loading process asks."""
    length = len(crops) * side * side * 3
    # as torch's own collation does it: what is shared from the start need not be copied on its way to that process
    storage = torch.UntypedStorage._new_shared(length) if get_worker_info() else torch.UntypedStorage(length)
    batch = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (len(crops), side, side, 3))
    for place, crop in zip(batch.numpy(), crops, strict=True):
        place[:] = crop.pixels
    return batch.permute(0, 3, 1, 2)
