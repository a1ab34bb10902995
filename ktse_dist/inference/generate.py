"""Seeds and masks of a data set: CAM, refinement and PNG in one pass over the pictures, a mask shard a picture shard.

Everything here is one piece of work; mask_work.py says which pieces a run consists of.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ktse_dist.config import Masks
from ktse_dist.data.augment import Resize, resize_picture, target_size
from ktse_dist.data.decode import BadSample
from ktse_dist.data.index import Index
from ktse_dist.data.pool import ordered_map
from ktse_dist.data.reader import Reader
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.evaluation.sweep import ThresholdSweep
from ktse_dist.inference.mask_shards import MaskFiles, atomic, write_mask_shard
from ktse_dist.inference.multiscale import CamNetwork, PictureCams, multiscale_cam
from ktse_dist.inference.refine import Blank, Task, refine, sized
from ktse_dist.run_folder import write_text

THRESHOLDS = tuple(step / 100 for step in range(2, 61))
CALIBRATION = 150  # training pictures that choose the background strength; their CAMs wait in memory
# Where no ground truth can choose: near the best on two sets that had one, and about the same
# as each other: (1 - 0.3)^3 = 0.34. The published exponents 6 to 24 let in the context that our wider CAMs follow.
DEFAULT_THRESHOLD, DEFAULT_ALPHA = 0.3, 3.0

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

    size: (height, width) as packed; H, W are smaller where masks.long_side shrank the picture.
    """

    row: int
    rgb: np.ndarray
    cams: PictureCams
    truth: np.ndarray | None
    size: tuple[int, int]


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
        with atomic(path) as file:
            counted = {"rows": np.array(self.rows, np.int64), "with_truth": self.with_truth}
            counted["scores"] = np.array(self.scores, np.float32).reshape(len(self.rows), self.sweep.counts.shape[1])
            np.savez(file, **counted, unreadable=[one.row for one in self.unreadable], **self.sweep.state())


class SeedSource:
    """The seeds of one network over one split. UserError for an index whose keys can name no file."""

    def __init__(self, network: CamNetwork, index: Index, config: Masks, resize: Resize):
        index.check_keys()
        self.network, self.index, self.config, self.resize = network, index, config, resize
        self.reader = Reader(index)
        self.kept: dict[int, Seed] = {}  # calibration's pictures, which are soon asked for again

    def look(self, row: int) -> Seed | Unreadable:
        try:
            return self.seed(row)
        except BadSample as bad:
            return Unreadable(row, str(bad), self.reader.size(row))

    def seed(self, row: int) -> Seed:
        """BadSample for a picture, or a ground truth, that cannot be read."""
        return self.kept.pop(row, None) or self._compute(row)

    def _compute(self, row: int) -> Seed:
        packed, truth = self.reader.picture(row), self.reader.truth(row)
        rgb, truth = shrunk(packed, truth, self.config.long_side)
        cams = multiscale_cam(self.network, rgb, self.index.labels([row])[0], self.config.scales, self.resize)
        return Seed(row, rgb, cams, truth, packed.shape[:2])

    def new_scores(self) -> SeedScores:
        return SeedScores(ThresholdSweep(len(self.index.classes), THRESHOLDS))

    def tasks(self, seeds: Iterator[Seed | Unreadable], strengths: tuple[float, ...]) -> Iterator[Task | Blank]:
        palette = np.asarray(self.index.palette, np.uint8)
        for seed in seeds:
            if isinstance(seed, Unreadable):
                yield Blank(palette, seed.size)
                continue
            yield Task(seed.rgb, seed.cams.keys, seed.cams.cams, self.config.refine, strengths, palette, seed.size)


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


def calibrate(source: SeedSource, path: Path, tick: Tick = lambda: None) -> dict[str, Any]:
    """The background strength for masks, and who chose it; kept in `path`.

    Returns {"strength", "chosen_by", "pictures", "miou"}. chosen_by `config`: masks.strength; `train`: the first
    training pictures with ground truth, so many and so good; `default`: there is none (pictures 0, no miou).
    """
    if path.exists():
        return json.loads(path.read_text())
    given, crf = source.config.strength, source.config.refine == "crf"
    strengths = source.config.alphas if crf else THRESHOLDS
    pictures, scores = strength_scores(source, truth_rows(source.index, source.config), strengths, tick)
    if pictures:
        best = int(np.argmax(scores))
        found = {"strength": strengths[best], "chosen_by": "train", "pictures": pictures, "miou": scores[best]}
    else:
        default = DEFAULT_ALPHA if crf else DEFAULT_THRESHOLD
        found = {"strength": given or default, "chosen_by": "config" if given else "default", "pictures": 0}
    write_text(path, json.dumps(found) + "\n")
    return found


def truth_rows(index: Index, config: Masks) -> list[int]:
    """The pictures that can choose the strength; none where the config gives it."""
    if config.strength:
        return []
    has_truth = np.asarray(index.samples["mask"]["size"]) > 0
    return [row for part in parts(index, config) for row in part.rows if has_truth[row]][:CALIBRATION]


def strength_scores(
    source: SeedSource, rows: Sequence[int], strengths: tuple[float, ...], tick: Tick
) -> tuple[int, list[float]]:
    """How many of `rows` can be read, and mIoU in percent of their label maps for each strength; keeps their seeds for
    the pass that follows."""
    counts, read = [Confusion(len(source.index.classes)) for _ in strengths], []

    def keeping() -> Iterator[Seed]:
        for row in rows:
            seed = source.look(row)
            tick()
            if isinstance(seed, Seed):
                source.kept[row] = seed
                read.append(row)
                yield seed

    results = ordered_map(refine, source.tasks(keeping(), strengths), source.config.processes)
    for place, refined in enumerate(results):
        for count, one in zip(counts, refined, strict=True):
            count.update(one.labels, source.kept[read[place]].truth)
    return len(read), [count.miou() for count in counts]
