"""The order of an epoch: a pure function of (seed, epoch) and the sizes of the shards, tested without I/O.

Shards are shuffled, dealt to lanes and grouped into windows, and each window is shuffled inside (docs/data_order.md).
Global batch k is positions [kB, (k+1)B); rank r takes positions r, r+W, ... of it. Nothing depends on the number of
workers. Memory: 4 bytes a sample; 20 while it is made.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ktse_dist.data import keyed

SHARDS, SAMPLES, PARTNER_CLASS, PARTNER, REPLACEMENT = range(5)  # what a key is for
AT_ONCE = 1 << 15  # keys that fit the processor's cache


@dataclass(frozen=True)
class Epoch:
    """samples int32 [N]: row of the index at each position, the lanes taking turns.

    starts int64 [S+1]: first row of each shard; window_of_shard int32 [S]: windows are counted over all lanes.
    """

    samples: np.ndarray
    starts: np.ndarray
    window_of_shard: np.ndarray
    seed: int
    number: int

    def window_of(self, row: int) -> int:
        return int(self.window_of_shard[np.searchsorted(self.starts, row, "right") - 1])

    def rows_of(self, window: int) -> np.ndarray:
        """The rows of a window, ascending: int32."""
        return _rows(self.starts, np.flatnonzero(self.window_of_shard == window))


def epoch_order(
    shard_sizes: Sequence[int] | np.ndarray, seed: int, epoch: int, window_shards: int | None = None, lanes: int = 1
) -> Epoch:
    """Every row once, but for the last N mod lanes. Rows are counted shard by shard.

    window_shards: how many shards of a lane are shuffled together; None: all of them.
    """
    starts = np.concatenate([[0], np.cumsum(shard_sizes, dtype=np.int64)])
    window_of_shard = np.empty(len(shard_sizes), np.int32)
    rows, count = [], 0
    for shards in deal(shard_sizes, seed, epoch, lanes):
        lane = np.empty(int(np.asarray(shard_sizes)[shards].sum()), np.int32)
        filled, step = 0, window_shards or max(1, len(shards))
        for first in range(0, len(shards), step):
            window = shards[first : first + step]
            ordered = shuffled(_rows(starts, window), seed, epoch)
            lane[filled : filled + len(ordered)] = ordered
            filled += len(ordered)
            window_of_shard[window] = count
            count += 1
        rows.append(lane)
    return Epoch(take_turns(rows), starts, window_of_shard, seed, epoch)


def deal(shard_sizes: Sequence[int] | np.ndarray, seed: int, epoch: int, lanes: int) -> list[np.ndarray]:
    """The shards of each lane, in order. The next shard goes to the lane that has the fewest samples so far."""
    places = keyed.key(seed, epoch, SHARDS, np.arange(len(shard_sizes)))
    hands: list[list[int]] = [[] for _ in range(lanes)]
    least = [(0, lane) for lane in range(lanes)]
    for shard in np.argsort(places).tolist():
        samples, lane = least[0]
        hands[lane].append(shard)
        heapq.heapreplace(least, (samples + int(shard_sizes[shard]), lane))
    return [np.array(hand, np.int64) for hand in hands]


def take_turns(lanes: Sequence[np.ndarray]) -> np.ndarray:
    """One sequence whose position p belongs to lane p mod L. What long lanes have too much is read by short ones."""
    if len(lanes) == 1:
        return lanes[0]
    length = sum(map(len, lanes)) // len(lanes)
    spare, given = np.concatenate([lane[length:] for lane in lanes]), 0
    turns = np.empty((length, len(lanes)), np.int32)
    for number, lane in enumerate(lanes):
        own = lane[:length]
        turns[: len(own), number] = own
        turns[len(own) :, number] = spare[given : given + length - len(own)]
        given += length - len(own)
    return turns.reshape(-1)


def _rows(starts: np.ndarray, shards: np.ndarray) -> np.ndarray:
    if len(shards) == len(starts) - 1:
        return np.arange(starts[-1], dtype=np.int32)
    return np.concatenate([np.arange(starts[s], starts[s + 1], dtype=np.int32) for s in shards])


def shuffled(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Rows int32 in the order of their keys.

    A word of a key's upper bits and its row sorts several times as fast as an index does. Where upper bits are equal,
    which is rare, the whole keys decide; no two of them are equal.
    """
    bits = np.uint64(int(rows.max(initial=0)).bit_length())
    words = np.empty(len(rows), np.uint64)
    for first in range(0, len(rows), AT_ONCE):
        part = rows[first : first + AT_ONCE]
        words[first : first + AT_ONCE] = keyed.key(seed, epoch, SAMPLES, part) >> bits << bits | part.astype(np.uint64)
    words.sort()
    ordered = (words & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int32)
    words >>= bits
    twins = np.flatnonzero(words[1:] == words[:-1])
    for run in np.split(twins, np.flatnonzero(np.diff(twins) > 1) + 1) if len(twins) else ():
        equal = ordered[run[0] : run[-1] + 2]
        equal[:] = equal[np.argsort(keyed.key(seed, epoch, SAMPLES, equal))]
    return ordered


def rank_positions(batch: int, batch_size: int, rank: int, world: int) -> np.ndarray:
    """Positions in the epoch that a rank takes of global batch number `batch`."""
    return np.arange(batch * batch_size + rank, (batch + 1) * batch_size, world)
