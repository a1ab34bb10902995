"""How well class scores find the tags of pictures: mean average precision, and the threshold that finds most."""

from typing import NamedTuple

import numpy as np

UNCALIBRATED = 0.5  # the probability that training aims at, where no held-out tag can choose a better one


class TagThreshold(NamedTuple):
    """From which probability on a class is taken for a tag. f1: micro-F1 on the tags that chose it, in percent."""

    probability: float
    f1: float | None


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


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Logits to 0..1, any shape: float64."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(scores, np.float64)))


def choose_threshold(scores: np.ndarray, labels: np.ndarray) -> TagThreshold:
    """The threshold with the best micro-F1 over all pictures and classes: scores (logits), labels [N,C].

    It lies midway between the two scores that it parts, so that rounding changes no decision on these pictures; of
    equally good ones the highest. Without any tag, or with nothing but tags: UNCALIBRATED.
    """
    found, positive = probabilities(scores).ravel(), np.asarray(labels).ravel() > 0
    if positive.all() or not positive.any():
        return TagThreshold(UNCALIBRATED, None)
    order = np.argsort(-found, kind="stable")
    ranked = found[order]
    last_of_ties = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(positive[order])[last_of_ties]
    f1 = 2 * hits / (last_of_ties + 1 + positive.sum())
    best = int(f1.argmax())
    accepted = ranked[last_of_ties[best]]
    refused = ranked[last_of_ties[best] + 1] if best + 1 < len(last_of_ties) else 0.0
    return TagThreshold(float((accepted + refused) / 2), float(100 * f1[best]))


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(positive[order])[last_of_ties]
    precision = found / (last_of_ties + 1)
    return float(100 * np.sum(precision * np.diff(found, prepend=0)) / positive.sum())
