"""From one picture's CAMs to label maps, with a choice of background strengths. Free of torch: it runs in a pool."""

from typing import Literal, NamedTuple

import cv2
import numpy as np

from ktse_dist.data.palette import IGNORE
from ktse_dist.inference.crf import PictureCRF, background_power
from ktse_dist.inference.formats import encode_confidence, encode_mask


class Task(NamedTuple):
    """One picture: rgb uint8 [H,W,3], keys int [n], cams float32 [n,H,W].

    strengths: for `crf` the exponents alpha of the background (1 - CAM)^alpha, for `none` thresholds.
    size: (height, width) of the files to make.
    """

    rgb: np.ndarray
    keys: np.ndarray
    cams: np.ndarray
    refine: Literal["crf", "none"]
    strengths: tuple[float, ...]
    palette: np.ndarray
    size: tuple[int, int]


class Blank(NamedTuple):
    """Instead of the task of a picture that cannot be read: its mask says nothing, so that none is missing."""

    palette: np.ndarray
    size: tuple[int, int]


class Refined(NamedTuple):
    """A label map uint8 [H,W] (class + 1, 0 background), and as PNG files of the task's size the map and the
    winner's probability."""

    labels: np.ndarray
    mask: bytes
    confidence: bytes


def refine(task: Task | Blank) -> list[Refined]:
    """One result for each strength."""
    if isinstance(task, Blank):
        return [nothing(task)]
    return [finish(task, scores) for scores in planes(task)]


def nothing(task: Blank) -> Refined:
    """255 everywhere, at a confidence of 0."""
    labels = np.full(task.size, IGNORE, np.uint8)
    return Refined(labels, encode_mask(labels, task.palette), encode_confidence(np.zeros(task.size)))


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
    mask, sure = sized(labels, task.size), sized(probabilities.max(0), task.size)
    return Refined(labels, encode_mask(mask, task.palette), encode_confidence(sure))


def sized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H,W] to (height, width) by the nearest pixel."""
    return pixels if pixels.shape == tuple(size) else cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_NEAREST)
