"""What is drawn over a picture: CAMs as tints, labels as areas and outlines. Free of torch: it also runs in a pool."""

from typing import TYPE_CHECKING

import cv2
import numpy as np

from ktse_dist.data.palette import IGNORE

if TYPE_CHECKING:
    from ktse_dist.inference.multiscale import PictureCams

COLOURS = ("#e69f00", "#0072b2", "#cc3d8e", "#009e73", "#d55e00", "#56b4e9", "#f0e442")  # told apart by all eyes


def seed_labels(cams: "PictureCams", threshold: float) -> np.ndarray:
    """uint8 [H,W]: class + 1 where the strongest CAM exceeds the threshold, else 0."""
    floor = np.full((1, *cams.cams.shape[1:]), threshold, np.float32)
    values = np.concatenate([[0], cams.keys + 1]).astype(np.uint8)
    return values[np.concatenate([floor, cams.cams]).argmax(0)]


def heat(rgb: np.ndarray, cams: "PictureCams", colours: dict[int, str]) -> np.ndarray:
    """The picture in grey, tinted by its strongest class as far as that is activated: uint8 [H,W,3]."""
    if len(cams.keys) == 0:
        return backdrop(rgb).astype(np.uint8)
    tints = np.stack([rgb_of(colours[int(key) + 1]) for key in cams.keys])
    return blend(backdrop(rgb), tints[cams.cams.argmax(0)], 0.9 * cams.cams.max(0))


def paint(rgb: np.ndarray, labels: np.ndarray, colours: dict[int, str]) -> np.ndarray:
    """The picture in grey under its labels uint8 [H,W]; what the ground truth ignores is white."""
    tints, weight = np.zeros((256, 3)), np.zeros(256)
    for value, colour in colours.items():
        tints[value], weight[value] = rgb_of(colour), 0.75
    tints[IGNORE], weight[IGNORE] = 255, 0.75
    return blend(backdrop(rgb), tints[labels], weight[labels])


def backdrop(rgb: np.ndarray) -> np.ndarray:
    """Grey with little contrast, so that colours over it are read as labels: float [H,W,3]."""
    grey = rgb @ np.array([0.299, 0.587, 0.114])
    return np.repeat((40 + 0.65 * grey)[..., None], 3, axis=2)


def blend(below: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    weight = weight[..., None]
    return np.rint(below * (1 - weight) + above * weight).astype(np.uint8)


def rgb_of(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)


def outline(pixels: np.ndarray, labels: np.ndarray, colours: dict[int, str], width: int = 2) -> np.ndarray:
    """The border of every labelled area in its colour, inside the area: pixels uint8 [H,W,3], labels uint8 [H,W]."""
    drawn = pixels.copy()
    around = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    for value, colour in colours.items():
        area = (labels == value).astype(np.uint8)
        drawn[(area > 0) & (cv2.erode(area, around, borderValue=0) == 0)] = rgb_of(colour)
    return drawn
