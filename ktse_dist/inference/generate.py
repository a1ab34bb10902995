"""Seeds and masks of a data set: CAM, refinement and PNG in one pass over the pictures, a mask shard a picture shard.

Nothing is made twice: a finished shard stays, so an interrupted run goes on where it stopped.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ktse_dist.config import Masks
from ktse_dist.data.augment import Resize, resize_picture, target_size
from ktse_dist.data.index import Index
from ktse_dist.data.pool import ordered_map
from ktse_dist.data.reader import Reader
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.evaluation.sweep import ThresholdSweep
from ktse_dist.inference.mask_shards import MaskFiles, write_mask_index, write_mask_shard
from ktse_dist.inference.multiscale import CamNetwork, PictureCams, multiscale_cam
from ktse_dist.inference.refine import Task, refine, sized
from ktse_dist.run_folder import write_text

THRESHOLDS = tuple(step / 100 for step in range(2, 61))
CALIBRATION = 150  # training pictures that choose the background strength; their CAMs wait in memory
# Where no ground truth can choose: near the best on two sets that had one, and about the same
# as each other: (1 - 0.3)^3 = 0.34. The published exponents 6 to 24 let in the context that our wider CAMs follow.
DEFAULT_THRESHOLD, DEFAULT_ALPHA = 0.3, 3.0


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
    """What the seeds of some pictures are worth: threshold sweep, and class scores for tag mAP."""

    sweep: ThresholdSweep
    rows: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    with_truth: int = 0

    def add(self, seed: Seed) -> None:
        self.rows.append(seed.row)
        self.scores.append(seed.cams.scores)
        if seed.truth is not None:
            self.with_truth += 1
            self.sweep.update(seed.cams.keys, seed.cams.cams, seed.truth)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as file:
            counted = {"rows": self.rows, "scores": np.array(self.scores), "with_truth": self.with_truth}
            np.savez(file, **counted, **self.sweep.state())
        temporary.replace(path)


class SeedSource:
    """The seeds of one network over one split. UserError for an index whose keys can name no file."""

    def __init__(self, network: CamNetwork, index: Index, config: Masks, resize: Resize):
        index.check_keys()
        self.network, self.index, self.config, self.resize = network, index, config, resize
        self.reader = Reader(index)
        self.kept: dict[int, Seed] = {}  # calibration's pictures, which are soon asked for again

    def seed(self, row: int) -> Seed:
        return self.kept.pop(row, None) or self._compute(row)

    def _compute(self, row: int) -> Seed:
        packed, truth = self.reader.picture(row), self.reader.truth(row)
        rgb, truth = shrunk(packed, truth, self.config.long_side)
        cams = multiscale_cam(self.network, rgb, self.index.labels([row])[0], self.config.scales, self.resize)
        return Seed(row, rgb, cams, truth, packed.shape[:2])

    def has_truth(self, row: int) -> bool:
        return bool(self.index.samples["mask"]["size"][row])

    def new_scores(self) -> SeedScores:
        return SeedScores(ThresholdSweep(len(self.index.classes), THRESHOLDS))

    def rows_by_shard(self) -> Iterator[tuple[str, list[int]]]:
        """(shard name without .tar, rows) of the pictures that are asked for."""
        shard_of_row = np.asarray(self.index.samples["shard"])[: getattr(self.config.pictures, self.index.split)]
        for number, shard in enumerate(self.index.shards):
            rows = np.flatnonzero(shard_of_row == number).tolist()
            if rows:
                yield Path(shard.name).stem, rows

    def tasks(self, seeds: Iterator[Seed], strengths: tuple[float, ...]) -> Iterator[Task]:
        palette = np.asarray(self.index.palette, np.uint8)
        for seed in seeds:
            yield Task(seed.rgb, seed.cams.keys, seed.cams.cams, self.config.refine, strengths, palette, seed.size)


def shrunk(rgb: np.ndarray, truth: np.ndarray | None, long_side: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Picture and ground truth at a longer side of at most `long_side` pixels; None: as they are."""
    if long_side is None or max(rgb.shape[:2]) <= long_side:
        return rgb, truth
    height, width = target_size(*rgb.shape[:2], long_side)
    return resize_picture(rgb, height, width, "opencv"), None if truth is None else sized(truth, (height, width))


def write_seed_scores(source: SeedSource, folder: Path) -> int:
    """Score a network's seeds without making masks: what a baseline needs. Returns how many shards it did."""
    made = 0
    for name, rows in source.rows_by_shard():
        path = folder / f"{name}.seeds.npz"
        if not path.exists():
            scores = source.new_scores()
            for row in tqdm(rows, desc=f"seeds of {name}", unit="picture"):
                scores.add(source.seed(row))
            scores.save(path)
            made += 1
    return made


def write_masks(source: SeedSource, strength: float, folder: Path) -> int:
    """Mask shards, seed scores and the mask index of one split: CAMs here, refinement in processes beside it.

    Returns how many shards it made.
    """
    made = 0
    for name, rows in source.rows_by_shard():
        shard, scores_file = folder / f"{name}.tar", folder / f"{name}.seeds.npz"
        if shard.exists() and scores_file.exists():
            continue
        scores = source.new_scores()

        def scored(rows: list[int] = rows, scores: SeedScores = scores) -> Iterator[Seed]:
            for row in rows:
                seed = source.seed(row)
                scores.add(seed)
                yield seed

        results = ordered_map(refine, source.tasks(scored(), (strength,)), source.config.processes)
        lines = tqdm(zip(rows, results, strict=True), total=len(rows), desc=f"masks of {name}", unit="picture")
        write_mask_shard(shard, (MaskFiles(source.index.key(r), one.mask, one.confidence) for r, (one,) in lines))
        scores.save(scores_file)
        made += 1
    write_mask_index(folder, source.index)
    return made


def calibrate(source: SeedSource, path: Path) -> dict[str, Any]:
    """The background strength for masks, and who chose it; kept in `path`.

    Returns {"strength", "chosen_by", "pictures", "miou"}. chosen_by `config`: masks.strength; `train`: the first
    training pictures with ground truth, so many and so good; `default`: there is none (pictures 0, no miou).
    """
    if path.exists():
        return json.loads(path.read_text())
    given, crf = source.config.strength, source.config.refine == "crf"
    rows = [] if given else truth_rows(source)
    if rows:
        strengths = source.config.alphas if crf else THRESHOLDS
        scores = strength_scores(source, rows, strengths)
        best = int(np.argmax(scores))
        found = {"strength": strengths[best], "chosen_by": "train", "pictures": len(rows), "miou": scores[best]}
    else:
        default = DEFAULT_ALPHA if crf else DEFAULT_THRESHOLD
        found = {"strength": given or default, "chosen_by": "config" if given else "default", "pictures": 0}
    write_text(path, json.dumps(found) + "\n")
    return found


def truth_rows(source: SeedSource) -> list[int]:
    return [r for _, rows in source.rows_by_shard() for r in rows if source.has_truth(r)][:CALIBRATION]


def strength_scores(source: SeedSource, rows: Sequence[int], strengths: tuple[float, ...]) -> list[float]:
    """mIoU in percent of the label maps of `rows` for each strength; keeps the seeds for the pass that follows."""
    counts = [Confusion(len(source.index.classes)) for _ in strengths]

    def keeping() -> Iterator[Seed]:
        for row in rows:
            source.kept[row] = source.seed(row)
            yield source.kept[row]

    results = ordered_map(refine, source.tasks(keeping(), strengths), source.config.processes)
    for row, refined in tqdm(zip(rows, results, strict=True), total=len(rows), desc="calibration", unit="picture"):
        for count, one in zip(counts, refined, strict=True):
            count.update(one.labels, source.kept[row].truth)
    return [count.miou() for count in counts]
