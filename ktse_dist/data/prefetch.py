"""The next shards of an epoch, fetched in the background of the process that trains."""

import logging
import threading
from collections.abc import Iterator, Sequence
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ktse_dist.config.data import Data
from ktse_dist.data.cache import GIGABYTE
from ktse_dist.data.index import Index, Shard
from ktse_dist.data.order import deal
from ktse_dist.errors import UserError
from ktse_dist.method.batch import Batch

if TYPE_CHECKING:
    from ktse_dist.data.stream import Plan

log = logging.getLogger("ktse")


class Turn(NamedTuple):
    """A shard is wanted while its lane stands at samples [first, last) of the epoch: as long as its window lasts."""

    first: int
    last: int
    shard: Shard


def turns(index: Index, data: Data, seed: int, plan: "Plan") -> list[Turn]:
    """The shards of the lanes that a rank takes pictures from, in the order in which they are wanted."""
    found = []
    for lane, shards in enumerate(deal(index.shard_sizes, seed, plan.epoch, data.lanes)):
        if (lane - plan.rank) % shares(plan.world, data.lanes):
            continue
        first, step = 0, data.window_shards or max(1, len(shards))
        for window in (shards[start : start + step] for start in range(0, len(shards), step)):
            last = first + int(np.sum(index.shard_sizes[window]))
            found += [Turn(first, last, index.shards[number]) for number in window.tolist()]
            first = last
    return sorted(found, key=lambda turn: turn.first)


def shares(world: int, lanes: int) -> int:
    """Into how many parts the lanes fall, of which each rank reads one."""
    return gcd(world, lanes)


def while_fetching(index: Index, data: Data, seed: int, plan: "Plan", batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches of a remote data set, while a thread fetches the shards that come next."""
    share = plan.batch_size // data.lanes
    room = room_for_shards(index) // shares(plan.world, data.lanes)  # as if all ranks were on this node
    with Prefetch(index, turns(index, data, seed, plan), plan.first_batch * share, room) as ahead:
        for number, batch in enumerate(batches, plan.first_batch + 1):
            yield batch
            ahead.reach(number * share)


class Prefetch:
    """A thread that fetches shards in turn, never more at once than fit `room` bytes beside those still wanted."""

    def __init__(self, index: Index, wanted: Sequence[Turn], position: int, room: int):
        self._index, self._wanted, self._position, self._room = index, wanted, position, room
        self._held: list[Turn] = []  # fetched, and still wanted
        self._moved, self._stopped = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> "Prefetch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._stopped = True
            self._moved.notify()
        # not joined: a request under way may take its time, and what it brings is of use to others

    def reach(self, position: int) -> None:
        """Every lane is at this sample of the epoch now."""
        with self._moved:
            self._position = position
            self._moved.notify()

    def _run(self) -> None:
        for turn in self._wanted:
            with self._moved:
                self._moved.wait_for(lambda turn=turn: self._stopped or self._fits(turn))
                if self._stopped:
                    return
                if turn.last <= self._position:
                    continue
            for held in self._held:  # fetched early, they would seem the longest unused
                self._index.remote.keep(held.shard)
            self._held.append(turn)
            try:
                self._index.remote.fetch(turn.shard, wait=False)
            except UserError as error:
                log.warning(str(error))  # whoever reads the shard ends the run, if it is still so by then

    def _fits(self, turn: Turn) -> bool:
        self._held = [held for held in self._held if held.last > self._position]
        wanted_now = turn.first <= self._position
        return wanted_now or sum(held.shard.bytes for held in self._held) + turn.shard.bytes <= self._room


def room_for_shards(index: Index) -> int:
    """Bytes that the cache has beside what else it holds of this data set, the indexes above all."""
    return index.remote.cache.limit - sum(map(length, index.path.glob("*.[ijm]*")))


def length(file: Path) -> int:
    return file.stat().st_size


def check_room(index: Index, data: Data, world: int) -> None:
    """UserError for a remote data set of which the cache cannot hold one window: every picture would be a download."""
    if not index.remote:
        return
    sizes = sorted((shard.bytes for shard in index.shards), reverse=True)
    parts = shares(world, data.lanes)
    many = data.window_shards and data.window_shards * data.lanes // parts
    needed = sum(sizes[:many]) if many else sum(sizes) // parts
    if needed > room_for_shards(index):
        raise UserError(
            f"data.window_shards: {data.window_shards or 'all'} of {len(sizes)} shards are shuffled together, up to "
            f"{needed / GIGABYTE:.3g} GB, and data.cache.gigabytes={data.cache.gigabytes:g} hold fewer; lower it (each "
            f"shard has up to {sizes[0] / GIGABYTE:.3g} GB), or raise data.cache.gigabytes"
        )
