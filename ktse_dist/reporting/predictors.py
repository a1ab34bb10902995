"""What looks at new pictures: a run's classification network, or a segmentation network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from ktse_dist.data.augment import Resize
from ktse_dist.data.palette import voc_palette
from ktse_dist.evaluation.tags import probabilities
from ktse_dist.inference.boundaries import BoundaryNetwork, boundaries
from ktse_dist.inference.finish import Answer, Picture
from ktse_dist.inference.generate import shrunk, side_within
from ktse_dist.inference.multiscale import CamNetwork, Looks, look
from ktse_dist.inference.refine import Task, Walk
from ktse_dist.inference.segmentation import LogitNetwork, segmented
from ktse_dist.reporting.prediction import CamJob, NetworkJob
from ktse_dist.reporting.predictions import Loaded


@dataclass(frozen=True)
class CamPredictor:
    """A run's network and all that turns its CAMs into masks, for the tags that are given or found."""

    network: CamNetwork
    classes: list[str]
    refine: Literal["crf", "none", "irn"]
    strength: float
    scales: Sequence[float]
    resize: Resize
    threshold: float
    long_side: int
    max_pixels: int
    processes: int
    settings: dict[str, Any] = field(default_factory=dict)
    refinement: BoundaryNetwork | None = None  # with irn
    beta: float = 0

    @property
    def device(self) -> torch.device:
        return torch.device(self.network.device)

    def jobs(self, batch: Sequence[Loaded]) -> Iterator[CamJob]:
        palette = np.asarray(voc_palette(len(self.classes) + 1), np.uint8)
        rgb = np.stack([one.picture.rgb for one in batch])
        seen = look(self.network, rgb, self.scales, self.resize, self.max_pixels)
        small = [within(picture, self.max_pixels) for picture in rgb]  # as ktse masks makes them
        seen = replace(seen, size=small[0].shape[:2])
        likely = probabilities(seen.scores)
        tags = self._tags(batch, likely)
        walks = self._walks(small, seen, tags) if self.refinement else [None] * len(batch)
        for one, picture, cams, walk, chances in zip(batch, small, seen.cams(tags), walks, likely, strict=True):
            size, strengths = one.picture.size, (self.strength,)
            task = Task(picture, cams.keys, cams.cams, self.refine, strengths, palette, size, walk)
            source = "predicted" if one.wanted.tags is None else "given"
            yield CamJob(one.wanted.name, task, self.classes, chances, source)

    def _tags(self, batch: Sequence[Loaded], likely: np.ndarray) -> np.ndarray:
        """Which classes each picture has, [B,C]."""
        tags = (likely >= self.threshold).astype(np.float32)
        for place, one in enumerate(batch):
            if one.wanted.tags is not None:
                tags[place] = 0
                tags[place, list(one.wanted.tags)] = 1
        return tags

    def _walks(self, pictures: Sequence[np.ndarray], seen: Looks, tags: np.ndarray) -> list[Walk]:
        edges = (boundaries(self.refinement, rgb) for rgb in pictures)
        coarse = seen.coarse_cams(tags)
        return [Walk(found.cams, edge, self.beta) for found, edge in zip(coarse, edges, strict=True)]


@dataclass(frozen=True)
class NetworkPredictor:
    """A segmentation network, which needs no tags."""

    network: LogitNetwork
    classes: list[str]
    scales: Sequence[float]
    crf: Picture
    long_side: int
    max_pixels: int
    processes: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.network.device

    def jobs(self, batch: Sequence[Loaded]) -> Iterator[NetworkJob]:
        palette = np.asarray(voc_palette(len(self.classes) + 1), np.uint8)
        for one in batch:
            rgb = within(one.picture.rgb, self.max_pixels)
            found = segmented(self.network, rgb, self.scales).probabilities
            answer = Answer(rgb, found, self.crf, palette, one.picture.size)
            yield NetworkJob(one.wanted.name, answer, self.classes)


def within(rgb: np.ndarray, max_pixels: int) -> np.ndarray:
    """A picture of at most so many pixels: what is made of it takes no more memory however large it was."""
    return shrunk(rgb, None, side_within(rgb.shape[:2], max_pixels))[0]
