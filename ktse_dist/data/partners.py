"""Which other sample of the same class and window stands beside a sample, or in its place if it cannot be read."""

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property

import numpy as np

from ktse_dist.data import keyed
from ktse_dist.data.order import PARTNER, PARTNER_CLASS, REPLACEMENT, Epoch

SAME_CLASS, ATTEMPTS = 8, 256  # draws for a replacement from the sample's classes, and then from the whole window
AT_ONCE = 1 << 15  # samples whose tags are unpacked together

Labels = Callable[[np.ndarray | list[int]], np.ndarray]  # rows [n] -> tags [n,C], 0 or 1


class Partners:
    """The class lists of one window, made when they are first needed. Memory: 4 bytes a sample and tag."""

    def __init__(self, epoch: Epoch, window: int, labels: Labels):
        self._epoch, self._labels = epoch, labels
        self._rows = epoch.rows_of(window)

    def of(self, row: int) -> int:
        """The same-class partner of a sample (docs/method.md 1.1).

        A present class is drawn uniformly, then a sample of that class, uniformly from the window (it may be the
        anchor). A sample without tags is its own partner.
        """
        present = np.flatnonzero(self._labels([row])[0])
        if not len(present):
            return row
        seed, number = self._epoch.seed, self._epoch.number
        chosen = present[keyed.word_below(keyed.word(seed, number, PARTNER_CLASS, row), len(present))]
        members = self._members(chosen)
        return int(members[keyed.word_below(keyed.word(seed, number, PARTNER, row), len(members))])

    def replacement(self, row: int, attempt: int, like: int) -> int:
        """What stands in for a sample that cannot be read: a sample of a class that it shares with `like`.

        Without such a class, one without tags. From attempt SAME_CLASS on any sample of the window, since a class may
        have no readable sample.
        """
        key = keyed.word(self._epoch.seed, self._epoch.number, REPLACEMENT, row, attempt)
        candidates = self._rows
        if attempt < SAME_CLASS:
            own, other = self._labels([row, like])
            shared = np.flatnonzero(own * other)
            chosen = shared[keyed.word_below(keyed.word(key, 0), len(shared))] if len(shared) else len(own)
            candidates = self._members(chosen)
        return int(candidates[keyed.word_below(keyed.word(key, 1), len(candidates))])

    def _members(self, chosen: int) -> np.ndarray:
        """The window's rows of a class, ascending; class number C: those without any tag."""
        members, starts = self._lists
        return members[starts[chosen] : starts[chosen + 1]]

    @cached_property
    def _lists(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows class by class, and where each class begins."""
        counts = sum(self._classes(first)[1] for first in range(0, len(self._rows), AT_ONCE))
        starts = np.concatenate([[0], np.cumsum(counts)])
        members, ends = np.empty(starts[-1], np.int32), starts[:-1].copy()
        for first in range(0, len(self._rows), AT_ONCE):
            places, counts = self._classes(first)
            begins = np.concatenate([[0], np.cumsum(counts)])
            for number in np.flatnonzero(counts):
                rows = self._rows[first + places[begins[number] : begins[number + 1]]]
                members[ends[number] : ends[number] + len(rows)] = rows
            ends += counts
        return members, starts

    def _classes(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Of AT_ONCE rows: their places class by class, and how many each of the C+1 classes has."""
        tags = self._labels(self._rows[first : first + AT_ONCE]) > 0
        tags = np.concatenate([tags, ~tags.any(1, keepdims=True)], axis=1)
        places, classes = np.nonzero(tags)
        by_class = np.argsort(classes.astype(np.uint16), kind="stable")
        return places[by_class], np.bincount(classes, minlength=tags.shape[1])


class Windows:
    """The class lists of the windows that successive positions need: one a lane, made anew for each epoch."""

    def __init__(self, epoch: Epoch, labels: Labels, lanes: int):
        self._epoch, self._labels, self._lanes = epoch, labels, lanes
        self._partners: OrderedDict[int, Partners] = OrderedDict()

    def of(self, row: int) -> Partners:
        window = self._epoch.window_of(row)
        if window not in self._partners:
            if len(self._partners) == self._lanes:
                self._partners.popitem(last=False)
            self._partners[window] = Partners(self._epoch, window, self._labels)
        self._partners.move_to_end(window)
        return self._partners[window]
