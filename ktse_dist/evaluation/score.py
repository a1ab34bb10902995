"""The honest score of a run: seeds, masks and tags, on val at what train chose."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_settings import asked, kept_settings
from ktse_dist.data.mask_shards import MaskIndex, says_nothing
from ktse_dist.data.reader import Reader
from ktse_dist.evaluation.counts import read_counts
from ktse_dist.evaluation.mask_score import MaskScore
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.evaluation.sweep import ThresholdSweep
from ktse_dist.evaluation.tags import average_precisions, choose_threshold, mean_average_precision, probabilities
from ktse_dist.files import read_json
from ktse_dist.run_folder import RunFolder

BACKGROUND = "background"  # its name among the classes of summary.json


@dataclass(frozen=True)
class TagScores:
    """Logits [N,C] of the pictures at some rows of an index, and their tags [N,C]."""

    rows: np.ndarray
    logits: np.ndarray
    labels: np.ndarray

    def of_tags(self) -> dict[int, float]:
        """row -> mean probability of the picture's own tags; pictures without tags are left out."""
        tagged = self.labels > 0
        shares = np.where(tagged, probabilities(self.logits), 0).sum(1) / np.maximum(tagged.sum(1), 1)
        some = tagged.any(1)
        return dict(zip(self.rows[some].tolist(), shares[some].tolist(), strict=True))

    def by_class(self, classes: list[str]) -> dict[str, dict[str, float]]:
        """class -> how many pictures bear its tag, and the average precision of its score in percent."""
        counts, precisions = (self.labels > 0).sum(0), average_precisions(self.logits, self.labels)
        pairs = zip(classes, counts.tolist(), precisions.tolist(), strict=True)
        return {name: {"pictures": count, "ap": precision} for name, count, precision in pairs}


@dataclass(frozen=True)
class Seeds:
    """What `ktse masks` counted of one network's seeds on one split."""

    sweep: ThresholdSweep
    tags: TagScores
    with_truth: int

    @property
    def tag_map(self) -> float:
        return mean_average_precision(self.tags.logits, self.tags.labels)


SEEDS = ("rows", "scores", "with_truth", "counts", "thresholds")  # what a file of them holds, at least


def read_seeds(folder: Path, index: Index) -> Seeds:
    """Add up the per-shard counts of a split. index: of the pictures that masks were asked for; none of its shards may
    be left out."""
    mend = "delete it, if it is there, and give the ktse masks command of its run again"
    files = [folder / f"{Path(shard.name).stem}.seeds.npz" for shard in index.shards if shard.samples]
    states = [read_counts(file, mend, SEEDS) for file in files]
    sweep = ThresholdSweep.from_state(states[0])
    for state in states[1:]:
        sweep.merge(ThresholdSweep.from_state(state))
    rows, scores = (np.concatenate([state[name] for state in states]) for name in ("rows", "scores"))
    truths = sum(int(state["with_truth"]) for state in states)
    return Seeds(sweep, TagScores(rows, scores, index.labels(rows)), truths)


def mask_score(folder: Path, index: Index) -> MaskScore:
    """Masks against the ground truth of the same pictures, streamed; pictures that could not be read are left out."""
    masks, reader = MaskIndex(folder, index), Reader(index)
    found = MaskScore(len(index.classes))
    for row in range(len(index)):
        mask = decode_mask(masks.read(row, "mask")) if masks.has(row) else None
        truth = None if mask is None or says_nothing(mask) else reader.truth(row)
        if truth is not None:
            found.update(mask, truth)
    return found


def score(folder: RunFolder, train: Index, val: Index) -> dict[str, Any]:
    """The fields of summary.json; scores are null without ground truth."""
    train, val = (asked(index, kept_settings(folder.masks)) for index in (train, val))
    seeds = {index.split: read_seeds(folder.masks, index) for index in (train, val)}
    baseline = {}
    if folder.baseline.masks.exists():
        baseline = {index.split: read_seeds(folder.baseline.masks, index) for index in (train, val)}
    tags = seeds["val"].tags
    threshold = choose_threshold(tags.logits, tags.labels)
    exact = {"tag_threshold": threshold.probability}  # rounded to two decimals it would pass some scores
    fields: dict[str, Any] = {
        "tag_map": seeds["val"].tag_map,
        "phase1_tag_map": read_seeds(folder.phase1_scores, val).tag_map if folder.phase1_scores.exists() else None,
        "baseline_tag_map": baseline["val"].tag_map if baseline else None,
        "tag_f1": threshold.f1,
        "tags": tags.by_class(val.classes),
        "pictures": {split: len(seed.tags.rows) for split, seed in seeds.items()},
        "background": background(folder),
        "index_sha256": {index.split: index.sha256 for index in (train, val)},
    }
    if not (seeds["train"].with_truth and seeds["val"].with_truth):
        return rounded(fields | NO_SCORES) | exact
    masks = {index.split: mask_score(folder.masks, index) for index in (train, val)}
    answers = {split: mask.confusion for split, mask in masks.items()}
    found = {"seed": at_chosen(seeds), "mask": answers} | ({"baseline": at_chosen(baseline)} if baseline else {})
    fields |= NO_SCORES | {"best_threshold": seeds["train"].sweep.best()[0]}
    fields["scored"] = {split: mask.pictures for split, mask in masks.items()}
    fields["mask_fwiou"] = answers["val"].frequency_weighted()
    fields["mask_boundary_miou"] = masks["val"].boundary.miou()
    masks["val"].write_table(folder.confusion, [BACKGROUND, *val.classes])
    if baseline:
        fields["baseline_best_threshold"] = baseline["train"].sweep.best()[0]
    for kind, counts in found.items():
        name = "baseline_seed_miou" if kind == "baseline" else f"{kind}_miou"
        fields |= {name: counts["val"].miou(), f"{name}_train": counts["train"].miou()}
    per_class = {kind: counts["val"].iou() for kind, counts in found.items()}
    per_class["mask_boundary"] = masks["val"].boundary.iou()
    return rounded(fields | {"per_class": by_class([BACKGROUND, *val.classes], per_class)}) | exact


NO_SCORES = dict.fromkeys(
    (
        "seed_miou",
        "baseline_seed_miou",
        "mask_miou",
        "seed_miou_train",
        "baseline_seed_miou_train",
        "mask_miou_train",
        "mask_fwiou",
        "mask_boundary_miou",
        "scored",
        "best_threshold",
        "baseline_best_threshold",
        "per_class",
    )
)


def background(folder: RunFolder) -> dict[str, Any]:
    """What masks put against the CAMs, an exponent (CRF) or a threshold; who chose it, on how many pictures."""
    mend = f"delete it, if it is there, and give the ktse masks command of {folder.path} again"
    found = read_json(folder.masks / "calibration.json", mend, needs=("strength", "pictures"))
    chosen_by = found.get("chosen_by", "train" if found["pictures"] else "default")
    kept = {"strength": found["strength"], "chosen_by": chosen_by, "pictures": found["pictures"]}
    return {"refine": kept_settings(folder.masks).refine} | kept


def at_chosen(seeds: Mapping[str, Seeds]) -> dict[str, Confusion]:
    """Counts of both splits at the threshold that is best on the training pictures."""
    place = int(seeds["train"].sweep.miou().argmax())
    return {split: seed.sweep.confusion(place) for split, seed in seeds.items()}


def by_class(names: list[str], ious: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {name: {kind: float(iou[i]) for kind, iou in ious.items()} for i, name in enumerate(names)}


def rounded(value: Any) -> Any:
    """For JSON: two decimals, and null for what is no number."""
    if isinstance(value, float):
        return round(value, 2) if np.isfinite(value) else None  # no picture has a tag: no mean precision
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value
