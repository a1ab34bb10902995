"""Samples that cannot be read: named once, counted over all ranks, and too many of them end the run."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist

from ktse_dist.errors import UserError

log = logging.getLogger("ktse")

FEW = 3  # bad samples in an epoch that no run minds


class Replaced(NamedTuple):
    """A sample that could not be read, and why. own: another one took its place in a batch, not just as a partner."""

    row: int
    why: str
    own: bool


class BadSamples:
    """What one rank replaced in the epoch at hand, against the budget of all ranks.

    A sample has one place in an epoch, so counting places over ranks counts samples.
    """

    def __init__(self, samples: int, fraction: float, before: int = 0, device: torch.device | str = "cpu"):
        """samples: of the split; before: the count of all ranks when the epoch was interrupted."""
        self.allowed = max(FEW, int(fraction * samples))
        self._samples, self._before, self._device = samples, before, device
        self._named: set[int] = set()
        self._here, self._last = 0, "another rank's log names them"

    def add(self, replaced: Iterable[Replaced]) -> None:
        for row, why, own in replaced:
            self._here += own
            self._last = why
            if row not in self._named:
                self._named.add(row)
                log.warning("replaced by another picture: %s", why)

    def check(self) -> int:
        """The count of the epoch so far, over all ranks, each of which calls this; UserError beyond the budget."""
        count = torch.tensor(self._here, device=self._device)
        if dist.is_initialized():
            dist.all_reduce(count)
        total = self._before + int(count)
        if total > self.allowed:
            raise UserError(
                f"data.max_bad_fraction: {total:,} of {self._samples:,} pictures could not be read in this epoch, "
                f"allowed are {self.allowed:,} ({self._last}); copy or pack the data set again, or raise it"
            )
        return total

    def next_epoch(self) -> None:
        self._here = self._before = 0
