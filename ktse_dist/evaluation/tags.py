"""How well class scores find the tags of pictures: mean average precision, for data without masks."""

import numpy as np


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision per class in percent: scores, labels [N,C] -> float64 [C]; NaN for a class without positives.

    The area under the precision steps at each distinct score, so the order of equal scores does not matter.
    """
    return np.array([_average_precision(s, t > 0) for s, t in zip(scores.T, labels.T, strict=True)])


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `average_precisions` over the classes that have a positive, in percent; NaN when none has."""
    precisions = average_precisions(scores, labels)
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if known.size else float("nan")


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(positive[order])[last_of_ties]
    precision = found / (last_of_ties + 1)
    return float(100 * np.sum(precision * np.diff(found, prepend=0)) / positive.sum())
