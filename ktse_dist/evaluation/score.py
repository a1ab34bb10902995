"""The honest score of a run: seeds, masks and tags, on val at what train chose (DESIGN section 8)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.evaluation.sweep import ThresholdSweep
from ktse_dist.evaluation.tags import mean_average_precision
from ktse_dist.inference.mask_shards import MaskIndex
from ktse_dist.run_folder import RunFolder


@dataclass(frozen=True)
class Seeds:
    """What `ktse masks` counted of one network's seeds on one split."""

    sweep: ThresholdSweep
    tag_map: float
    pictures: int
    with_truth: int


def read_seeds(folder: Path, index: Index) -> Seeds:
    """Add up the per-shard counts of a split."""
    files = sorted(folder.glob(f"{index.split}-*.seeds.npz"))
    if not files:
        raise UserError(f"{folder}: no seeds of split '{index.split}' there; run ktse masks first")
    states = [dict(np.load(file)) for file in files]
    sweep = ThresholdSweep.from_state(states[0])
    for state in states[1:]:
        sweep.merge(ThresholdSweep.from_state(state))
    rows, scores = (np.concatenate([state[name] for state in states]) for name in ("rows", "scores"))
    truths = sum(int(state["with_truth"]) for state in states)
    return Seeds(sweep, mean_average_precision(scores, index.labels(rows)), len(rows), truths)


def mask_confusion(folder: Path, index: Index) -> Confusion:
    """Masks against the ground truth of the same pictures, streamed."""
    masks, reader = MaskIndex(folder, index), Reader(index)
    confusion = Confusion(len(index.classes))
    for row in range(len(index)):
        if masks.has(row) and index.samples["mask"]["size"][row]:
            truth = decode_mask(reader.read(row, "mask"))
            confusion.update(decode_mask(masks.read(row, "mask")), truth)
    return confusion


def score(folder: RunFolder, train: Index, val: Index) -> dict[str, Any]:
    """The fields of summary.json; scores are null without ground truth."""
    seeds = {index.split: read_seeds(folder.masks, index) for index in (train, val)}
    fields: dict[str, Any] = {
        "tag_map": round(seeds["val"].tag_map, 2),
        "pictures": {split: seed.pictures for split, seed in seeds.items()},
        "index_sha256": {index.split: index.sha256 for index in (train, val)},
    }
    if not (seeds["train"].with_truth and seeds["val"].with_truth):
        return fields | NO_SCORES
    masks = {index.split: mask_confusion(folder.masks, index) for index in (train, val)}
    threshold, at = chosen(seeds["train"].sweep)
    fields |= {"best_threshold": threshold, "seed_miou": at_threshold(seeds["val"].sweep, at).miou()}
    fields |= {"seed_miou_train": at_threshold(seeds["train"].sweep, at).miou()}
    fields |= {"mask_miou": masks["val"].miou(), "mask_miou_train": masks["train"].miou()}
    per_class = {"seed": at_threshold(seeds["val"].sweep, at).iou(), "mask": masks["val"].iou()}
    fields |= {"baseline_seed_miou": None, "baseline_seed_miou_train": None}
    if folder.baseline.masks.exists():
        baseline = {index.split: read_seeds(folder.baseline.masks, index) for index in (train, val)}
        fields["baseline_best_threshold"], at = chosen(baseline["train"].sweep)
        confusions = {split: at_threshold(seed.sweep, at) for split, seed in baseline.items()}
        fields |= {"baseline_seed_miou": confusions["val"].miou(), "baseline_tag_map": baseline["val"].tag_map}
        fields |= {"baseline_seed_miou_train": confusions["train"].miou()}
        per_class["baseline"] = confusions["val"].iou()
    return rounded(fields | {"per_class": by_class(["background", *val.classes], per_class)})


NO_SCORES = dict.fromkeys(
    ("seed_miou", "baseline_seed_miou", "mask_miou", "seed_miou_train", "baseline_seed_miou_train", "mask_miou_train",
     "best_threshold", "per_class")
)


def chosen(sweep: ThresholdSweep) -> tuple[float, int]:
    """The best threshold of a sweep over training pictures, and its place."""
    threshold, _ = sweep.best()
    return threshold, int(np.argmin(np.abs(sweep.thresholds - threshold)))


def at_threshold(sweep: ThresholdSweep, place: int) -> Confusion:
    return sweep.confusion(place)


def by_class(names: list[str], ious: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {name: {kind: float(iou[i]) for kind, iou in ious.items()} for i, name in enumerate(names)}


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 2)
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value
