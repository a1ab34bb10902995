"""The files of one predicted picture: refinement, mask and overlay, written whole or not at all. Runs in a pool."""

import io
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from PIL import Image

from ktse_dist.inference.finish import Answer, settled
from ktse_dist.inference.formats import encode_mask
from ktse_dist.inference.refine import Task, label_map, planes, sized
from ktse_dist.reporting.overlay import Entry, overlay

MASKS, OVERLAYS, PARTIAL = "masks", "overlays", ".partial"
QUALITY = 85
NOTHING = [Entry(None, "no class: background only")]


class Job(Protocol):
    """A picture to finish: all that its files show."""

    name: str
    classes: list[str]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the mask."""

    @property
    def palette(self) -> np.ndarray: ...

    @property
    def expected(self) -> list[int]:
        """Mask values whose share is told even if it is 0."""

    def labels(self) -> np.ndarray:
        """The label map uint8 [H,W], at working size."""

    def drawn(self, labels: np.ndarray) -> Image.Image:
        """The overlay."""

    def about(self) -> dict[str, Any]:
        """What scores.json says of the picture beside its files."""


class CamJob(NamedTuple):
    """A picture whose tags are known. task: at working size, with one strength; probabilities: of all classes [C];
    tags_from: `given` or `predicted`."""

    name: str
    task: Task
    classes: list[str]
    probabilities: np.ndarray
    tags_from: str

    @property
    def size(self) -> tuple[int, int]:
        return self.task.size

    @property
    def palette(self) -> np.ndarray:
        return self.task.palette

    @property
    def expected(self) -> list[int]:
        return (self.task.keys + 1).tolist()

    def labels(self) -> np.ndarray:
        if len(self.task.keys) == 0:
            return np.zeros(self.task.rgb.shape[:2], np.uint8)
        (probabilities,) = planes(self.task)
        return label_map(self.task, probabilities)

    def drawn(self, labels: np.ndarray) -> Image.Image:
        named = [(k, f"{self.classes[k]}  {100 * self.probabilities[k]:.0f} %") for k in self.task.keys]
        return overlay(self.task, labels, [Entry(int(k) + 1, text) for k, text in named] or NOTHING)

    def about(self) -> dict[str, Any]:
        found = {
            "tags": [self.classes[key] for key in self.task.keys],
            "tags_from": self.tags_from,
            "probabilities": dict(zip(self.classes, self.probabilities.round(4).tolist(), strict=True)),
        }
        if not found["tags"]:
            why = "no tag was given" if self.tags_from == "given" else "no class reaches the threshold"
            found["note"] = f"{why}, so the mask is background only"
        return found


class NetworkJob(NamedTuple):
    """A picture that a segmentation network has looked at."""

    name: str
    answer: Answer
    classes: list[str]

    @property
    def size(self) -> tuple[int, int]:
        return self.answer.size

    @property
    def palette(self) -> np.ndarray:
        return self.answer.palette

    @property
    def expected(self) -> list[int]:
        return []

    def labels(self) -> np.ndarray:
        return settled(self.answer).argmax(0).astype(np.uint8)

    def drawn(self, labels: np.ndarray) -> Image.Image:
        values, counts = np.unique(labels[labels > 0], return_counts=True)
        shares = 100 * counts / labels.size
        entries = [Entry(int(v), f"{self.classes[v - 1]}  {s:.0f} %") for v, s in zip(values, shares, strict=True)]
        shown = Shown(self.answer.rgb, values.astype(int) - 1, self.answer.probabilities[values])
        return overlay(shown, labels, entries or NOTHING)

    def about(self) -> dict[str, Any]:
        return {"tags_from": "network"}


class Shown(NamedTuple):
    """As overlay.Tinted."""

    rgb: np.ndarray
    keys: np.ndarray
    cams: np.ndarray


def mask_file(name: str) -> str:
    return f"{MASKS}/{name}.png"


def overlay_file(name: str) -> str:
    return f"{OVERLAYS}/{name}.jpg"


def finish_picture(out: Path, job: Job) -> dict[str, float]:
    """Write a picture's two files below `out`; returns {class or "background": share of its pixels}."""
    cv2.setNumThreads(1)  # the processes share the cores already
    labels = job.labels()
    full = sized(labels, job.size)
    write_whole(out, overlay_file(job.name), jpeg(job.drawn(labels)))
    write_whole(out, mask_file(job.name), encode_mask(full, job.palette))
    counts = np.bincount(full.ravel(), minlength=len(job.classes) + 1)
    names = ["background", *job.classes]
    told = {0, *job.expected, *np.flatnonzero(counts).tolist()}
    return {names[value]: round(int(counts[value]) / full.size, 6) for value in sorted(told)}


def jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_whole(out: Path, relative: str, content: bytes) -> None:
    """A file below `out` that never exists in part."""
    target = out / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = out / PARTIAL / str(os.getpid())
    partial.write_bytes(content)
    partial.replace(target)
