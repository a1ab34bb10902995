"""How strongly the background stands against the CAMs in all masks of a run: what training pictures with ground truth
choose, if there are any."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ktse_dist.config.stages import Masks
from ktse_dist.data.index import Index
from ktse_dist.data.pool import ordered_map
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.evaluation.sweep import ThresholdSweep
from ktse_dist.files import read_json, write_text
from ktse_dist.inference.generate import THRESHOLDS, Seed, SeedSource, Tick, parts
from ktse_dist.inference.refine import Blank, Task, foreground, label_maps

CALIBRATION = 150  # training pictures that choose the background strength
# Where no ground truth can choose: near the best on two sets that had one, and about the same
# as each other: (1 - 0.3)^3 = 0.34. The published exponents 6 to 24 let in the context that our wider CAMs follow.
DEFAULT_STRENGTHS = {"none": 0.3, "crf": 3.0, "irn": 0.25}  # irn: the published one


def calibrate(source: SeedSource, path: Path, tick: Tick = lambda: None) -> dict[str, Any]:
    """The background strength for masks, and who chose it; kept in `path`.

    Returns {"strength", "chosen_by", "pictures", "miou"}. chosen_by `config`: masks.strength; `train`: the first
    training pictures with ground truth, so many and so good; `default`: there is none (pictures 0, no miou).
    """
    if path.exists():
        return read_json(path, "delete it and give the same command again", needs=("strength", "pictures"))
    given, how = source.config.strength, source.config.refine
    strengths = source.config.alphas if how == "crf" else THRESHOLDS
    pictures, scores = strength_scores(source, truth_rows(source.index, source.config), strengths, tick)
    if pictures:
        best = int(np.argmax(scores))
        found = {"strength": strengths[best], "chosen_by": "train", "pictures": pictures, "miou": scores[best]}
    else:
        found = {"strength": given or DEFAULT_STRENGTHS[how], "pictures": 0}
        found["chosen_by"] = "config" if given else "default"
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
    count, ahead = 0, deque[Seed]()  # those whose label maps are being made

    def readable() -> Iterator[Seed]:
        nonlocal count
        for row in rows:
            seed = source.look(row)
            tick()
            if isinstance(seed, Seed):
                source.keep(seed)
                ahead.append(seed)
                count += 1
                yield seed

    score = exponent_scores if source.config.refine == "crf" else threshold_scores
    scores = score(source, source.tasks(readable(), strengths), strengths, ahead)
    return count, scores


def exponent_scores(
    source: SeedSource, tasks: Iterator[Task | Blank], strengths: tuple[float, ...], seeds: deque[Seed]
) -> list[float]:
    """mIoU of the label maps for each exponent of the CRF's background. seeds: of the tasks under way, in order."""
    counts = [Confusion(len(source.index.classes)) for _ in strengths]
    for maps in ordered_map(label_maps, tasks, source.config.processes):
        seed = seeds.popleft()
        for count, labels in zip(counts, maps, strict=True):
            count.update(labels, seed.truth)
    return [count.miou() for count in counts]


def threshold_scores(
    source: SeedSource, tasks: Iterator[Task | Blank], strengths: tuple[float, ...], seeds: deque[Seed]
) -> list[float]:
    """As `exponent_scores`, for thresholds: one pass over a picture's planes counts for all of them."""
    sweep = ThresholdSweep(len(source.index.classes), strengths)
    for planes in ordered_map(foreground, tasks, source.config.processes):
        seed = seeds.popleft()
        sweep.update(seed.cams.keys, planes, seed.truth)
    return sweep.miou().tolist()
