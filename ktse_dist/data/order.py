"""The order of an epoch and the partner of a sample: pure functions of (seed, epoch), tested without I/O.

Shards are shuffled and grouped into windows, and each window is shuffled inside (docs/data_order.md). Global batch k is
positions [kB, (k+1)B); rank r takes positions r, r+W, ... of it. Nothing depends on the number of workers.
"""

from dataclasses import dataclass

import numpy as np

from ktse_dist.data import keyed

SHARDS, SAMPLES, PARTNER_CLASS, PARTNER = range(4)  # what a key is for


@dataclass(frozen=True)
class Epoch:
    """One epoch's order. samples int64 [N]: rows of the index; window int64 [N]: the window of each position."""

    samples: np.ndarray
    window: np.ndarray
    seed: int
    number: int


def epoch_order(shard_of_row: np.ndarray, seed: int, epoch: int, window_shards: int | None = None) -> Epoch:
    """Every row once. shard_of_row [N]: the shard of each row; window_shards None: one window over all shards."""
    shards = int(shard_of_row.max()) + 1
    rank_of_shard = np.empty(shards, np.int64)
    rank_of_shard[np.argsort(keyed.key(seed, epoch, SHARDS, np.arange(shards)), kind="stable")] = np.arange(shards)
    window = rank_of_shard[shard_of_row] // (window_shards or shards)
    shuffled = np.argsort(keyed.key(seed, epoch, SAMPLES, np.arange(len(shard_of_row))), kind="stable")
    rows = shuffled[np.argsort(window[shuffled], kind="stable")]
    return Epoch(rows, window[rows], seed, epoch)


def rank_positions(batch: int, batch_size: int, rank: int, world: int) -> np.ndarray:
    """Positions in the epoch that a rank takes of global batch number `batch`."""
    return np.arange(batch * batch_size + rank, (batch + 1) * batch_size, world)


class Partners:
    """The same-class partner of every sample in one window (docs/method.md 1.1).

    A present class is drawn uniformly, then a sample of that class, uniformly from the window (it may be the anchor).
    A sample without tags is its own partner. Memory: one int64 for each tag in the window.
    """

    def __init__(self, epoch: Epoch, window: int, labels: np.ndarray):
        """labels: [n, C] of the window's rows, ordered as epoch.samples[epoch.window == window]."""
        self._epoch = epoch
        rows = epoch.samples[epoch.window == window]
        by_row = np.argsort(rows)  # class lists in row order: independent of the shuffle
        self._rows, self._labels = rows[by_row], labels[by_row] > 0
        classes, members = np.nonzero(self._labels.T)
        self._members = self._rows[members]
        self._starts = np.searchsorted(classes, np.arange(labels.shape[1] + 1))

    def of(self, row: int) -> int:
        present = np.flatnonzero(self._labels[np.searchsorted(self._rows, row)])
        if not len(present):
            return row
        chosen = present[self._draw(row, PARTNER_CLASS, len(present))]
        start, end = self._starts[chosen], self._starts[chosen + 1]
        return int(self._members[start + self._draw(row, PARTNER, end - start)])

    def _draw(self, row: int, use: int, bound: int) -> int:
        return int(keyed.below(keyed.key(self._epoch.seed, self._epoch.number, use, row), bound))
