"""Boundary IoU by streaming counts (Cheng et al., CVPR 2021): how well the edges of regions fit, large or small."""

import cv2
import numpy as np

from ktse_dist.data.palette import IGNORE

WIDTH = 0.02  # of the picture's diagonal, as in the paper


class BoundaryCounts:
    """Pixels near the edge of each region, for `classes` foreground classes and background 0.

    The band of a region are those of its pixels that are at most WIDTH of the picture's diagonal (at least 1 pixel)
    away from a pixel that is not its own; the picture's border counts as an edge. Where the truth is 255 a region ends
    for the prediction, too. counts int64 [2, classes+1]: pixels in both bands, and in any of them.
    """

    def __init__(self, classes: int):
        self.counts = np.zeros((2, classes + 1), np.int64)

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one picture: prediction and truth, uint8 [H,W]."""
        known = truth != IGNORE
        width = max(1, round(WIDTH * float(np.hypot(*truth.shape))))
        for value in np.union1d(prediction[known], truth[known]):
            if value < self.counts.shape[1]:
                found, true = (band(labels == value, known, width) for labels in (prediction, truth))
                self.counts[:, value] += (found & true).sum(), (found | true).sum()

    def iou(self) -> np.ndarray:
        """Percent, background first: float64 [classes+1]; NaN for a class that neither side ever shows."""
        common, either = self.counts
        return np.where(either > 0, 100 * common / np.maximum(either, 1), np.nan)

    def miou(self) -> float:
        """Percent, the mean over the classes and background that occur; NaN without any."""
        found = self.iou()
        return float(found[~np.isnan(found)].mean()) if (self.counts[1] > 0).any() else float("nan")


def band(region: np.ndarray, known: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a region bool [H,W] that are at most `width` steps (a king's on a chessboard) from outside."""
    inside = np.pad((region & known).astype(np.uint8), 1)
    return (cv2.distanceTransform(inside, cv2.DIST_C, 3)[1:-1, 1:-1] <= width) & (inside[1:-1, 1:-1] > 0)
