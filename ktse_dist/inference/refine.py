"""From one picture's CAMs to label maps, with a choice of background strengths. Free of torch: it runs in a pool."""

from typing import Literal, NamedTuple

import cv2
import numpy as np

from ktse_dist.data.palette import IGNORE
from ktse_dist.inference.crf import PictureCRF, background_power
from ktse_dist.inference.formats import encode_confidence, encode_mask
from ktse_dist.inference.walked import irn_labels, over_background, spread, surest_half


class Walk(NamedTuple):
    """What the random walk of `irn` starts from: cams float32 [n,h,w], edge [h,w], beta (random_walk.py)."""

    cams: np.ndarray
    edge: np.ndarray
    beta: float


class Task(NamedTuple):
    """One picture: rgb uint8 [H,W,3], keys int [n], cams float32 [n,H,W].

    strengths: for `crf` the exponents alpha of the background (1 - CAM)^alpha, else thresholds.
    size: (height, width) of the files to make.
    """

    rgb: np.ndarray
    keys: np.ndarray
    cams: np.ndarray
    refine: Literal["crf", "none", "irn"]
    strengths: tuple[float, ...]
    palette: np.ndarray
    size: tuple[int, int]
    walk: Walk | None = None


class LabelTask(NamedTuple):
    """One picture of which IRN learns, as `irn_labels` takes it; size as in Task."""

    rgb: np.ndarray
    keys: np.ndarray
    cams: np.ndarray
    high: float
    low: float
    palette: np.ndarray
    size: tuple[int, int]


class Blank(NamedTuple):
    """Instead of the task of a picture that cannot be read: its mask says nothing, so that none is missing."""

    palette: np.ndarray
    size: tuple[int, int]


class Refined(NamedTuple):
    """As PNG files of the task's size a label map (class + 1, 0 background) and how sure it is: the winner's
    probability, or 1 and 0 (irn: the surer half)."""

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
    return Refined(encode_mask(labels, task.palette), encode_confidence(np.zeros(task.size)))


def refine_labels(task: LabelTask | Blank) -> Refined:
    """What IRN is told: sure is what is not 255."""
    if isinstance(task, Blank):
        return nothing(task)
    labels = sized(irn_labels(task.rgb, task.keys, task.cams, task.high, task.low), task.size)
    return Refined(encode_mask(labels, task.palette), encode_confidence(labels != IGNORE))


def label_maps(task: Task) -> list[np.ndarray]:
    """The label map [H,W] for each strength."""
    return [label_map(task, scores) for scores in planes(task)]


def planes(task: Task) -> list[np.ndarray]:
    """Probabilities, or (irn) scores, [1+n,H,W] for each strength: the background, then the tagged classes."""
    if task.walk:
        walked = foreground(task)
        return [over_background(walked, level) for level in task.strengths]
    if task.refine == "none":
        return thresholded(task)
    field = PictureCRF(task.rgb, len(task.keys) + 1)
    return [field.refine(background_power(task.cams, alpha)) for alpha in task.strengths]


def foreground(task: Task) -> np.ndarray:
    """What stands against a threshold, float32 [n,H,W]: the CAMs, after the random walk if there is one."""
    if not task.walk:
        return task.cams
    return spread(task.walk.cams, task.walk.edge, task.rgb.shape[:2], task.walk.beta)


def label_map(task: Task, probabilities: np.ndarray) -> np.ndarray:
    """The most probable plane's mask value in each pixel: uint8 [H,W]."""
    return values(task)[probabilities.argmax(0)]


def values(task: Task) -> np.ndarray:
    """The mask value of each plane, uint8 [1+n]."""
    return np.concatenate([[0], np.asarray(task.keys) + 1]).astype(np.uint8)


def thresholded(task: Task) -> list[np.ndarray]:
    """The CAMs under a constant background plane, as shares that sum to 1."""
    planes = (over_background(task.cams, level) for level in task.strengths)
    return [p / p.sum(0, keepdims=True) for p in planes]


def finish(task: Task, probabilities: np.ndarray) -> Refined:
    winners, sure = strongest(probabilities, task.size)
    if task.walk:
        sure = sized(surest_half(probabilities).astype(np.uint8), task.size)
    return Refined(encode_mask(values(task)[winners], task.palette), encode_confidence(sure))


def strongest(planes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which of the planes [K,h,w] is the highest in each pixel, and how high, at (height, width) `size`: they are
    enlarged linearly, one at a time."""
    if planes.shape[1:] == tuple(size):
        return planes.argmax(0), planes.max(0)
    winners, best = np.zeros(size, np.intp), np.full(size, -np.inf, np.float32)
    for place, plane in enumerate(planes):
        plane = cv2.resize(plane.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
        higher = plane > best
        winners[higher], best[higher] = place, plane[higher]
    return winners, best


def sized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H,W] to (height, width) by the nearest pixel."""
    return pixels if pixels.shape == tuple(size) else cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_NEAREST)
