"""Mean intersection over union by streaming counts (docs/method.md 2; tests/golden/README.md section 12)."""

import numpy as np

from ktse_dist.data.palette import IGNORE
from ktse_dist.errors import UserError


def check_truth(truth: np.ndarray, classes: int) -> None:
    """Raise UserError when a mask holds a value that is neither background, a class nor ignore."""
    wrong = truth[(truth > classes) & (truth != IGNORE)]
    if wrong.size:
        raise UserError(
            f"a ground-truth mask holds the value {wrong[0]}; allowed are 0 (background), 1 to {classes} "
            f"and {IGNORE} (ignore): check the class list or convert the masks"
        )


class Confusion:
    """Pixel counts of (truth, prediction) over pictures, for `classes` foreground classes and background 0.

    counts int64 [classes+1, classes+2]; the last column holds predictions that are no class (255: no answer). These are
    misses of the true class and hits of none, as in the published evaluation.
    """

    def __init__(self, classes: int):
        self.classes = classes
        self.counts = np.zeros((classes + 1, classes + 2), np.int64)

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one picture: prediction and truth, uint8 [H,W]. A truth that is no class: UserError."""
        assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
        check_truth(truth, self.classes)
        known = truth != IGNORE
        columns = self.classes + 2
        cells = truth[known].astype(np.intp) * columns + np.minimum(prediction[known], columns - 1)
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, other: "Confusion") -> None:
        """Add another worker's counts."""
        assert self.classes == other.classes, (self.classes, other.classes)
        self.counts += other.counts

    def iou(self) -> np.ndarray:
        """TP / (T + P - TP + 1e-10) in percent, background first: float64 [classes+1]; 0 for an unseen class."""
        answers = self.counts[:, :-1]
        hits = answers.diagonal()
        return 100 * hits / (self.counts.sum(1) + answers.sum(0) - hits + 1e-10)

    def frequency_weighted(self) -> float:
        """Percent: IoU weighted by the true pixels of each class. NaN without any pixel."""
        shares = self.counts.sum(1)
        return float((self.iou() * shares).sum() / shares.sum()) if shares.any() else float("nan")

    def miou(self) -> float:
        """Percent, the mean over all classes and background, also those that never occur."""
        return float(self.iou().mean())
