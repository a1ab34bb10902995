"""Seeds and masks of a data set: CAM, refinement and PNG in one pass over the pictures, a mask shard a picture shard.

Everything here is one piece of work; mask_work.py says which pieces a run consists of.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ktse_dist.config.stages import Masks
from ktse_dist.data.augment import Resize, resize_picture, target_size
from ktse_dist.data.decode import BadSample
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskFiles, write_mask_shard
from ktse_dist.data.pool import ordered_map
from ktse_dist.data.reader import Reader
from ktse_dist.evaluation.counts import write_counts
from ktse_dist.evaluation.sweep import ThresholdSweep
from ktse_dist.inference.boundaries import BoundaryNetwork, boundaries
from ktse_dist.inference.multiscale import CamNetwork, Looks, PictureCams, look
from ktse_dist.inference.refine import (
    Blank,
    LabelTask,
    Task,
    Walk,
    refine,
    refine_labels,
    sized,
)

KEPT_BYTES = 1 << 30
THRESHOLDS = tuple(step / 100 for step in range(2, 61))

Tick = Callable[[], object]  # called when a picture is done


class Part(NamedTuple):
    """The pictures of one picture shard that are asked for. name: the shard's, without .tar."""

    name: str
    rows: list[int]


class Unreadable(NamedTuple):
    """A picture that training, too, had to leave out: why, and the size that its empty mask gets."""

    row: int
    why: str
    size: tuple[int, int]


class Seed(NamedTuple):
    """One picture with its CAMs and, where the data set has it, its ground truth uint8 [H,W].

    size: (height, width) as packed; H, W are smaller where masks.long_side or masks.max_pixels shrank the picture.
    walk: with a refinement network what its random walk starts from.
    """

    row: int
    rgb: np.ndarray
    cams: PictureCams
    truth: np.ndarray | None
    size: tuple[int, int]
    walk: Walk | None = None


@dataclass
class SeedScores:
    """What the seeds of some pictures are worth: threshold sweep, and class scores for tag mAP.

    unreadable: pictures that are part of neither.
    """

    sweep: ThresholdSweep
    rows: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    with_truth: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)

    def add(self, seed: Seed | Unreadable) -> None:
        if isinstance(seed, Unreadable):
            self.unreadable.append(seed)
            return
        self.rows.append(seed.row)
        self.scores.append(seed.cams.scores)
        if seed.truth is not None:
            self.with_truth += 1
            self.sweep.update(seed.cams.keys, seed.cams.cams, seed.truth)

    def save(self, path: Path) -> None:
        counted = {"rows": np.array(self.rows, np.int64), "with_truth": self.with_truth}
        counted["scores"] = np.array(self.scores, np.float32).reshape(len(self.rows), self.sweep.counts.shape[1])
        counted["unreadable"] = np.array([one.row for one in self.unreadable], np.int64)
        write_counts(path, **counted, **self.sweep.state())


class SeedSource:
    """The seeds of one network over one split. UserError for an index whose keys can name no file.

    refinement: what masks.refine=irn needs for its masks.
    """

    def __init__(
        self,
        network: CamNetwork,
        index: Index,
        config: Masks,
        resize: Resize,
        refinement: BoundaryNetwork | None = None,
    ):
        index.check_keys()
        self.network, self.index, self.config, self.resize = network, index, config, resize
        self.refinement = refinement
        self.reader = Reader(index)
        self._kept: dict[int, Seed] = {}
        self._room = 0 if config.workers else KEPT_BYTES  # with workers, another one may be asked for them

    def look(self, row: int) -> Seed | Unreadable:
        try:
            return self.seed(row)
        except BadSample as bad:
            return Unreadable(row, str(bad), self.reader.size(row))

    def seed(self, row: int) -> Seed:
        """BadSample for a picture, or a ground truth, that cannot be read."""
        return self._kept.pop(row, None) or self._compute(row)

    def keep(self, seed: Seed) -> None:
        """One that is soon asked for again, while there is room."""
        self._room -= seed.rgb.nbytes + seed.cams.cams.nbytes
        if self._room >= 0:
            self._kept[seed.row] = seed

    def _compute(self, row: int) -> Seed:
        packed, truth = self.reader.picture(row), self.reader.truth(row)
        (rgb, truth), looks = self._looked(packed, truth)
        tags, walk = self.index.labels([row]), None
        if self.refinement:
            edge = boundaries(self.refinement, rgb)
            walk = Walk(looks.coarse_cams(tags)[0].cams, edge, self.config.irn.beta)
        return Seed(row, rgb, looks.cams(tags)[0], truth, packed.shape[:2], walk)

    def _looked(
        self, packed: np.ndarray, truth: np.ndarray | None
    ) -> tuple[tuple[np.ndarray, np.ndarray | None], Looks]:
        """(Picture, truth) at the size that masks are made at, and what the network saw of the picture."""
        rgb, truth = shrunk(packed, truth, self.config.long_side)
        looks = look(self.network, rgb[None], self.config.scales, self.resize, self.config.max_pixels)
        small = shrunk(rgb, truth, side_within(rgb.shape[:2], self.config.max_pixels))
        return small, replace(looks, size=small[0].shape[:2])

    def label_task(self, row: int) -> LabelTask | Blank:
        palette = np.asarray(self.index.palette, np.uint8)
        try:
            packed = self.reader.picture(row)
        except BadSample:
            return Blank(palette, self.reader.size(row))
        (rgb, _), looks = self._looked(packed, None)
        keys, cams, _ = looks.label_cams(self.index.labels([row]))[0]
        return LabelTask(rgb, keys, cams, self.config.irn.high, self.config.irn.low, palette, packed.shape[:2])

    def new_scores(self) -> SeedScores:
        return SeedScores(ThresholdSweep(len(self.index.classes), THRESHOLDS))

    def tasks(self, seeds: Iterator[Seed | Unreadable], strengths: tuple[float, ...]) -> Iterator[Task | Blank]:
        palette = np.asarray(self.index.palette, np.uint8)
        for seed in seeds:
            if isinstance(seed, Unreadable):
                yield Blank(palette, seed.size)
                continue
            keys, cams, _ = seed.cams
            yield Task(seed.rgb, keys, cams, self.config.refine, strengths, palette, seed.size, seed.walk)


def side_within(size: tuple[int, int], max_pixels: int) -> int:
    """The longer side of a picture of (height, width) that is shrunk, if need be, to at most max_pixels."""
    return int(max(size) * min(1.0, (max_pixels / (size[0] * size[1])) ** 0.5))


def shrunk(rgb: np.ndarray, truth: np.ndarray | None, long_side: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Picture and ground truth at a longer side of at most `long_side` pixels; None: as they are."""
    if long_side is None or max(rgb.shape[:2]) <= long_side:
        return rgb, truth
    height, width = target_size(*rgb.shape[:2], long_side)
    return resize_picture(rgb, height, width, "opencv"), None if truth is None else sized(truth, (height, width))


def parts(index: Index, config: Masks) -> Iterator[Part]:
    """Of the pictures that masks.pictures asks for."""
    shard_of_row = np.asarray(index.samples["shard"])[: getattr(config.pictures, index.split)]
    for number, shard in enumerate(index.shards):
        rows = np.flatnonzero(shard_of_row == number).tolist()
        if rows:
            yield Part(Path(shard.name).stem, rows)


def scores_file(folder: Path, part: str) -> Path:
    return folder / f"{part}.seeds.npz"


def score_part(source: SeedSource, part: Part, folder: Path, tick: Tick) -> list[Unreadable]:
    """Score a network's seeds without making masks: what a baseline needs."""
    scores = source.new_scores()
    for row in part.rows:
        scores.add(source.look(row))
        tick()
    scores.save(scores_file(folder, part.name))
    return scores.unreadable


def mask_part(source: SeedSource, strength: float, part: Part, folder: Path, tick: Tick) -> list[Unreadable]:
    """A mask shard and its seed scores: CAMs here, refinement in processes beside it."""
    scores = source.new_scores()

    def scored() -> Iterator[Seed | Unreadable]:
        for row in part.rows:
            seed = source.look(row)
            scores.add(seed)
            yield seed

    def files() -> Iterator[MaskFiles]:
        results = ordered_map(refine, source.tasks(scored(), (strength,)), source.config.processes)
        for row, (one,) in zip(part.rows, results, strict=True):
            yield MaskFiles(source.index.key(row), one.mask, one.confidence)
            tick()

    write_mask_shard(folder / f"{part.name}.tar", files())
    scores.save(scores_file(folder, part.name))
    return scores.unreadable


def label_part(source: SeedSource, part: Part, folder: Path, tick: Tick) -> None:
    """A shard of the labels that IRN learns from; a picture that cannot be read has none."""

    def files() -> Iterator[MaskFiles]:
        results = ordered_map(refine_labels, map(source.label_task, part.rows), source.config.processes)
        for row, one in zip(part.rows, results, strict=True):
            yield MaskFiles(source.index.key(row), one.mask, one.confidence)
            tick()

    write_mask_shard(folder / f"{part.name}.tar", files())
