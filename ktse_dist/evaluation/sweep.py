"""Every background threshold of a sweep in one pass over the pictures, exactly (docs/method.md 2).

At threshold t the published label is the arg-max over [t, CAM of class 1, ..., CAM of class C] in float32, absent
classes being 0. The first index wins ties, so for t >= 0 a pixel is foreground exactly when its best CAM exceeds t, and
then it has the first class that reaches this best value. Hence three facts decide a pixel at all thresholds: its truth,
its best class and how many thresholds lie below its best value.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ktse_dist.evaluation.miou import Confusion, check_truth

PUBLISHED_THRESHOLDS = tuple(step / 100 for step in range(10, 30))


class ThresholdSweep:
    """Counts int64 [classes+1 (truth), classes (best class), thresholds+1 (how many are exceeded)] over pictures."""

    def __init__(self, classes: int, thresholds: Sequence[float] = PUBLISHED_THRESHOLDS):
        """thresholds: ascending, none negative (an absent class would win there), at most 255; else ValueError."""
        self.classes = classes
        self.thresholds = np.asarray(thresholds, np.float64)
        steps = np.diff(self.thresholds)
        if not 0 < len(self.thresholds) <= 255 or self.thresholds[0] < 0 or (steps <= 0).any():
            raise ValueError(f"thresholds must be 1 to 255 ascending numbers from 0 upwards, not {list(thresholds)}")
        self.counts = np.zeros((classes + 1, classes, len(self.thresholds) + 1), np.int64)

    def update(self, keys: np.ndarray, cams: np.ndarray, truth: np.ndarray) -> None:
        """Count one picture: keys int [n] (0-based classes, distinct), cams float32 [n,H,W], truth uint8 [H,W].

        A truth that is no class: UserError.
        """
        assert cams.shape == (len(keys), *truth.shape), (cams.shape, len(keys), truth.shape)
        check_truth(truth, self.classes)
        best, exceeded = self._best(keys, cams, truth.shape)
        rows = np.minimum(truth, self.classes + 1).astype(np.int64)  # one row more, for ignored pixels
        cells = (rows * self.classes + best) * self.counts.shape[2] + exceeded
        ends = (self.classes + 2, *self.counts.shape[1:])
        self.counts += np.bincount(cells.ravel(), minlength=np.prod(ends)).reshape(ends)[:-1]

    def _best(self, keys: np.ndarray, cams: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The best class int32 [H,W] and how many thresholds it exceeds uint8 [H,W]."""
        exceeded = np.zeros(shape, np.uint8)
        if len(keys) == 0:
            return np.zeros(shape, np.int32), exceeded
        ascending = np.argsort(keys)
        best = np.full(shape, keys[ascending[0]], np.int32)
        value = cams[ascending[0]].astype(np.float32)
        for row in ascending[1:]:
            np.copyto(best, np.int32(keys[row]), where=cams[row] > value)
            np.maximum(value, cams[row], out=value)
        for threshold in self.thresholds.astype(np.float32):  # faster than searchsorted for some dozens of them
            exceeded += value > threshold
        return best, exceeded

    def merge(self, other: "ThresholdSweep") -> None:
        """Add another worker's counts; both must have the same classes and thresholds."""
        assert self.classes == other.classes and np.array_equal(self.thresholds, other.thresholds)
        self.counts += other.counts

    def confusion(self, index: int) -> Confusion:
        """The full confusion counts at thresholds[index]."""
        result = Confusion(self.classes)
        result.counts[:, 0] = self.counts[:, :, : index + 1].sum((1, 2))
        result.counts[:, 1:-1] = self.counts[:, :, index + 1 :].sum(2)
        return result

    def iou(self) -> np.ndarray:
        """Percent per threshold and class, background first: float64 [thresholds, classes+1]."""
        return np.stack([self.confusion(index).iou() for index in range(len(self.thresholds))])

    def miou(self) -> np.ndarray:
        """Percent per threshold: float64 [thresholds]."""
        return self.iou().mean(1)

    def best(self) -> tuple[float, float]:
        """(threshold, mIoU in percent) of the highest mIoU, the lowest threshold among equals."""
        scores = self.miou()
        index = int(scores.argmax())
        return float(self.thresholds[index]), float(scores[index])

    def state(self) -> dict[str, np.ndarray]:
        """Arrays for np.savez, so that workers can add up through files."""
        return {"counts": self.counts, "thresholds": self.thresholds}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "ThresholdSweep":
        """The sweep that `state` described; also takes an opened npz file."""
        counts = state["counts"]
        sweep = cls(counts.shape[1], state["thresholds"])
        assert counts.shape == sweep.counts.shape, (counts.shape, sweep.counts.shape)
        sweep.counts += counts
        return sweep
