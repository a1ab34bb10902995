"""From one picture's CAMs to label maps, with a choice of background strengths. Free of torch: it runs in a pool."""

from typing import Literal, NamedTuple

import numpy as np

from ktse_dist.inference.crf import PictureCRF, background_power
from ktse_dist.inference.formats import encode_confidence, encode_mask


class Task(NamedTuple):
    """One picture: rgb uint8 [H,W,3], keys int [n], cams float32 [n,H,W].

    strengths: for `crf` the exponents alpha of the background (1 - CAM)^alpha, for `none` thresholds.
    """

    rgb: np.ndarray
    keys: np.ndarray
    cams: np.ndarray
    refine: Literal["crf", "none"]
    strengths: tuple[float, ...]
    palette: np.ndarray


class Refined(NamedTuple):
    """A label map uint8 [H,W] (class + 1, 0 background) and its PNG files; confidence: the winner's probability."""

    labels: np.ndarray
    mask: bytes
    confidence: bytes


def refine(task: Task) -> list[Refined]:
    """One result for each strength."""
    return [finish(task, scores) for scores in planes(task)]


def planes(task: Task) -> list[np.ndarray]:
    """Probabilities [1+n,H,W] for each strength: the background, then the tagged classes."""
    if task.refine == "none":
        return thresholded(task)
    field = PictureCRF(task.rgb, len(task.keys) + 1)
    return [field.refine(background_power(task.cams, alpha)) for alpha in task.strengths]


def label_map(task: Task, probabilities: np.ndarray) -> np.ndarray:
    """The most probable plane's mask value in each pixel: uint8 [H,W]."""
    return np.concatenate([[0], np.asarray(task.keys) + 1]).astype(np.uint8)[probabilities.argmax(0)]


def thresholded(task: Task) -> list[np.ndarray]:
    """The CAMs under a constant background plane, as shares that sum to 1."""
    shape = (1, *task.rgb.shape[:2])
    planes = (np.concatenate([np.full(shape, level, np.float32), task.cams]) for level in task.strengths)
    return [p / p.sum(0, keepdims=True) for p in planes]


def finish(task: Task, probabilities: np.ndarray) -> Refined:
    labels = label_map(task, probabilities)
    return Refined(labels, encode_mask(labels, task.palette), encode_confidence(probabilities.max(0)))
