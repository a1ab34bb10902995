"""From class probabilities to a mask: the last CRF, and PNG files. Free of torch: it runs in a pool."""

from typing import Literal, NamedTuple

import numpy as np

from ktse_dist.data.palette import IGNORE
from ktse_dist.inference.crf import DEEPLAB_CRF, crf
from ktse_dist.inference.formats import encode_confidence, encode_mask
from ktse_dist.inference.refine import Blank, Refined, nothing, sized

MEAN = (122.675, 116.669, 104.008)  # that the published test subtracts

Picture = Literal["none", "plain", "wrapped"]  # what the CRF looks at


class Answer(NamedTuple):
    """rgb uint8 [H,W,3], probabilities float32 [K,H,W]; size: (height, width) of the files to make."""

    rgb: np.ndarray
    probabilities: np.ndarray
    crf: Picture
    palette: np.ndarray
    size: tuple[int, int]


class Finished(NamedTuple):
    """PNG files of the answer's size, and the label map uint8 [H,W] that they show."""

    files: Refined
    labels: np.ndarray


def finish(answer: Answer | Blank) -> Finished:
    if isinstance(answer, Blank):
        return Finished(nothing(answer), np.full(answer.size, IGNORE, np.uint8))
    planes = settled(answer)
    labels = sized(planes.argmax(0).astype(np.uint8), answer.size)
    surety = sized(planes.max(0), answer.size)
    return Finished(Refined(encode_mask(labels, answer.palette), encode_confidence(surety)), labels)


def settled(answer: Answer) -> np.ndarray:
    """Probabilities float32 [K,H,W] after the CRF, if there is to be one."""
    if answer.crf == "none":
        return answer.probabilities
    return crf(seen(answer.rgb, answer.crf), answer.probabilities, DEEPLAB_CRF)


def seen(rgb: np.ndarray, picture: Picture) -> np.ndarray:
    """The picture for the CRF. wrapped: less the mean and cast to bytes, so that dark becomes bright (quirk 27)."""
    return rgb if picture == "plain" else (rgb - np.array(MEAN, np.float32)).astype(np.int16).astype(np.uint8)
