"""IRN's labels to learn from, and its masks after the random walk (docs/method.md 3). Free of torch: runs in a pool."""

import cv2
import numpy as np

from ktse_dist.data.palette import IGNORE
from ktse_dist.inference.crf import crf_labels
from ktse_dist.inference.random_walk import random_walk

STRIDE = 4  # pixels of the picture to one of the walk's


def irn_labels(rgb: np.ndarray, keys: np.ndarray, cams: np.ndarray, high: float, low: float) -> np.ndarray:
    """What IRN is told of a picture: rgb uint8 [H,W,3], keys int [n], cams float32 [n,H,W] -> uint8 [H,W].

    A class (value + 1) where it beats a background of `high`, 0 where nothing beats one of `low`, else 255; each
    decided after a CRF.
    """
    sure, possible = (crf_labels(rgb, over_background(cams, level).argmax(0), len(keys) + 1) for level in (high, low))
    values = np.concatenate([[0], np.asarray(keys) + 1]).astype(np.uint8)
    return np.where(sure > 0, values[sure], np.where(possible == 0, 0, IGNORE)).astype(np.uint8)


def over_background(planes: np.ndarray, level: float) -> np.ndarray:
    """Planes [n,H,W] behind one of the constant `level`: float32 [1+n,H,W]."""
    return np.concatenate([np.full((1, *planes.shape[1:]), level, np.float32), planes])


def spread(cams: np.ndarray, edge: np.ndarray, size: tuple[int, int], beta: float) -> np.ndarray:
    """CAMs after the random walk, at the picture's size: cams [n,h,w], edge [h,w] -> float32 [n,H,W].

    All classes are divided by one number, so that the highest value of all is 1.
    """
    height, width = edge.shape
    walked = random_walk(cams, edge, beta)
    large = [cv2.resize(cam, (STRIDE * width, STRIDE * height), interpolation=cv2.INTER_LINEAR) for cam in walked]
    scores = np.array(large, np.float32).reshape(len(cams), STRIDE * height, STRIDE * width)[:, : size[0], : size[1]]
    highest = scores.max(initial=0)
    return scores / highest if highest > 0 else scores


def surest_half(planes: np.ndarray) -> np.ndarray:
    """Of the pixels of each winning plane, the half that wins most clearly: [K,H,W] -> bool [H,W].

    Clearly: best minus second best value; planes that share the best value count as none.
    """
    best = planes.max(0)
    margins = (best - np.where(planes == best, 0, planes).max(0)).reshape(-1)
    winners, sure = planes.argmax(0).reshape(-1), np.zeros(margins.shape, bool)
    for winner in np.unique(winners):
        pixels = np.flatnonzero(winners == winner)
        sure[pixels[np.argsort(-margins[pixels], kind="stable")[: len(pixels) // 2]]] = True
    return sure.reshape(best.shape)
