"""The files of one predicted picture: refinement, mask and overlay, written whole or not at all. Runs in a pool."""

import io
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ktse_dist.inference.formats import encode_mask
from ktse_dist.inference.refine import Task, label_map, planes, sized
from ktse_dist.reporting.overlay import Entry, overlay

MASKS, OVERLAYS, PARTIAL = "masks", "overlays", ".partial"
QUALITY = 85
NOTHING = "no class: background only"


class Job(NamedTuple):
    """A picture to finish. task: at working size, with one strength.

    probabilities: of all classes, float [C].
    """

    name: str
    task: Task
    classes: list[str]
    probabilities: np.ndarray


def mask_file(name: str) -> str:
    return f"{MASKS}/{name}.png"


def overlay_file(name: str) -> str:
    return f"{OVERLAYS}/{name}.jpg"


def finish_picture(out: Path, job: Job) -> dict[str, float]:
    """Write a picture's two files below `out`; returns {class or "background": share of its pixels}."""
    cv2.setNumThreads(1)  # the processes share the cores already
    labels = mask_of(job.task)
    full = sized(labels, job.task.size)
    drawn = overlay(job.task, labels, legend(job))
    write_whole(out, overlay_file(job.name), jpeg(drawn))
    write_whole(out, mask_file(job.name), encode_mask(full, job.task.palette))
    counts = np.bincount(full.ravel(), minlength=len(job.classes) + 1)
    names = ["background", *job.classes]
    return {names[value]: round(int(counts[value]) / full.size, 6) for value in [0, *(job.task.keys + 1).tolist()]}


def mask_of(task: Task) -> np.ndarray:
    """The label map uint8 [H,W] of a task with one strength."""
    if len(task.keys) == 0:
        return np.zeros(task.rgb.shape[:2], np.uint8)
    (probabilities,) = planes(task)
    return label_map(task, probabilities)


def legend(job: Job) -> list[Entry]:
    tags = [Entry(int(k) + 1, f"{job.classes[k]}  {100 * job.probabilities[k]:.0f} %") for k in job.task.keys]
    return tags or [Entry(None, NOTHING)]


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
