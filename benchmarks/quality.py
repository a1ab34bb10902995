"""What each part of KTSE earns: arms of the ablation on the stickers, forked from the same end of phase 1.

Every (preset, arm, seed) is one training on the same pictures and one row of the CSV. A row that is there is not made
again, and a training that was interrupted goes on, so the same command may be given again, or twice at the same time
with other seeds.        python benchmarks/quality.py [--seeds 5137 1 2] [--presets ...] [--arms ...]

`--try NAME a.b=c ...` looks for better settings: the full method with these keys over the `corrected` preset, scored on
training pictures alone, as a row of quality_search.csv.
"""

import argparse
import csv
import fcntl
import json
import platform
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ktse_dist.config import Config
from ktse_dist.config_file import load_config
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.evaluation.score import score
from ktse_dist.inference.calibration import calibrate
from ktse_dist.inference.generate import SeedSource, parts
from ktse_dist.mask_work import network_from, splits
from ktse_dist.masks import make_masks
from ktse_dist.run_folder import RunFolder
from ktse_dist.run_lock import alone
from ktse_dist.training.context import LocalContext
from ktse_dist.training.job import Job
from ktse_dist.training.loop import run
from ktse_dist.training.setup import fast_precision, prepare_process, start_logging

RESULTS = Path(__file__).parent / "results"
PRESETS = ("published", "corrected")
ARMS = {
    "GPP": {"sie": 0.0, "ssr": 0.0, "mga": 0.0},
    "+SIE": {"sie": 1.0, "ssr": 0.0, "mga": 0.0},
    "+SIE+SSR": {"sie": 1.0, "ssr": 1.0, "mga": 0.0},
    "+SIE+SSR+MGA": {"sie": 1.0, "ssr": 1.0, "mga": 1.0},
}
BASELINE, FULL = "GPP", "+SIE+SSR+MGA"
SCORES = ("seed_miou", "mask_miou", "tag_map", "threshold")
TRAIN_SCORES = ("seed_miou_train", "mask_miou_train")
COLUMNS = ("preset", "arm", "seed", *SCORES, "pictures", "seconds", *TRAIN_SCORES)
SEARCH_COLUMNS = ("name", "keys", "seed", *TRAIN_SCORES, "threshold", "pictures", "seconds")
TARGET_GAIN = 3.0  # points of val seed mIoU that `corrected` should gain over its baseline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="where trainings lie (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5137, 1, 2])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--try", nargs="+", dest="trial", metavar=("NAME", "a.b=c"), help="one row of the search")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the rows: a line a preset and seed")
    parser.add_argument("--quick", action="store_true", help="read the rows that are there, train nothing")
    options = parser.parse_args()
    start_logging()
    prepare_process(None)
    if options.trial:
        try_settings(options.runs, options.results / "quality_search.csv", options.seeds[0], *options.trial)
        return
    table = options.results / "quality.csv"
    if not options.quick:
        for seed in options.seeds:
            for preset in options.presets:
                for arm in options.arms:
                    add_arm(options.runs, table, preset, arm, seed)
    rows = read(table)
    if options.plot:
        plot(rows, options.plot)
    print(json.dumps(summary(rows)))


def config_of(runs: Path, preset: str, seed: int, *keys: str) -> Config:
    """The demo's settings in one process of its own."""
    data = runs.absolute() / "stickers"
    pack_stickers(data)
    fixed = ("engine.name=torch", "train.baseline=false", f"train.precision={fast_precision(False)}")
    return load_config(None, [f"method.preset={preset}", f"run.seed={seed}", f"data.path={data}", *fixed, *keys])


class UntilForked(LocalContext):
    """Stops where the checkpoint is there that runs fork from."""

    def __init__(self, fork: Path):
        super().__init__()
        self.fork = fork

    def should_stop(self) -> bool:
        return self.fork.exists() or super().should_stop()


def phase1(runs: Path, seed: int) -> Path:
    """The checkpoint that all arms of a seed fork from: phase 1 as `corrected` trains it."""
    folder = RunFolder(runs.absolute() / f"seed-{seed}" / "phase1")
    config = config_of(runs, "corrected", seed)
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be training it
        if not folder.phase1.exists():
            run(Job(config, folder), UntilForked(folder.phase1))
        if not folder.phase1.exists():
            raise SystemExit(f"stopped: {folder.path}; the same command goes on")
    return folder.phase1


def train(folder: RunFolder, config: Config, start: Path) -> float:
    """Phase 2 from the fork; returns its seconds."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with alone(folder.path, "training"):
        run(Job(config, folder, start=start), LocalContext())
    if not folder.model.exists():
        raise SystemExit(f"stopped: {folder.path}; the same command goes on")
    return folder.read_summary()["seconds"]["train"]


def add_arm(runs: Path, table: Path, preset: str, arm: str, seed: int) -> None:
    if any((row["preset"], row["arm"], row["seed"]) == (preset, arm, str(seed)) for row in read(table)):
        return
    folder = RunFolder(runs.absolute() / f"seed-{seed}" / preset / arm)
    config = config_of(runs, preset, seed, *(f"method.{part}={weight}" for part, weight in ARMS[arm].items()))
    seconds = train(folder, config, phase1(runs, seed))
    make_masks(folder, config)
    found = score(folder, *splits(config))
    row = {"preset": preset, "arm": arm, "seed": seed, "pictures": found["pictures"]["val"], "seconds": seconds}
    row |= {name: found["best_threshold" if name == "threshold" else name] for name in (*SCORES, *TRAIN_SCORES)}
    append(table, COLUMNS, row)


def try_settings(runs: Path, table: Path, seed: int, name: str, *keys: str) -> None:
    """Seeds and masks of training pictures under other settings; validation pictures are not looked at."""
    folder = RunFolder(runs.absolute() / f"seed-{seed}" / "search" / name)
    config = config_of(runs, "corrected", seed, *keys)
    seconds = train(folder, config, phase1(runs, seed))
    source = SeedSource(network_from(folder.model, config), splits(config)[0], config.masks, "opencv")
    masks = calibrate(source, folder.masks / "calibration.json")
    scores = source.new_scores()
    for _, rows in parts(source.index, source.config):
        for row in rows:
            scores.add(source.seed(row))
    threshold, miou = scores.sweep.best()
    found = {"seed_miou_train": miou, "mask_miou_train": masks["miou"], "threshold": threshold}
    about = {"name": name, "keys": " ".join(keys), "seed": seed, "pictures": len(scores.rows), "seconds": seconds}
    append(table, SEARCH_COLUMNS, about | {key: round(value, 2) for key, value in found.items()})


def read(table: Path) -> list[dict[str, str]]:
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def append(table: Path, columns: tuple[str, ...], row: dict[str, Any]) -> None:
    """One whole line, also where two processes write."""
    with table.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def summary(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Mean of val seed mIoU of each arm, the gain over paired baselines, and how seeds spread."""
    scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        scores[row["preset"], row["arm"]][row["seed"]] = float(row["seed_miou"])
    figures = {f"{preset} {arm}": round(statistics.mean(seeds.values()), 2) for (preset, arm), seeds in scores.items()}
    for preset in PRESETS:
        baseline, full = scores[preset, BASELINE], scores[preset, FULL]
        gains = [full[seed] - baseline[seed] for seed in full.keys() & baseline.keys()]
        if gains:
            figures[f"{preset}_gain"] = round(statistics.mean(gains), 2)
            figures[f"{preset}_spread"] = round(max(full.values()) - min(full.values()), 2)
    targets = {"corrected_gain": {"min": max(TARGET_GAIN, 2 * figures.get("corrected_spread", 0.0))}}
    holds = figures.get("corrected_gain", float("-inf")) >= targets["corrected_gain"]["min"]
    return {
        "benchmark": "quality",
        "device": f"cpu {platform.machine()}",
        "figures": figures,
        "targets": targets,
        "holds": holds,
    }


def plot(rows: list[dict[str, str]], file: Path) -> None:
    """Seeds on val, seeds on train and masks on val over the arms; a line joins the arms of one preset and seed."""
    panels = {"seed_miou": "seeds, val", "seed_miou_train": "seeds, train", "mask_miou": "masks after the CRF, val"}
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axis, (column, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axis.plot(list(ARMS), [float("nan")] * len(ARMS))  # the arms in their order
        for preset, colour in zip(PRESETS, ("tab:grey", "tab:blue"), strict=True):
            own = [row for row in rows if row["preset"] == preset]
            for seed in sorted({row["seed"] for row in own}):
                scores = {row["arm"]: float(row[column]) for row in own if row["seed"] == seed}
                arms = [arm for arm in ARMS if arm in scores]
                axis.plot(arms, [scores[arm] for arm in arms], color=colour, marker=".", linewidth=1)
            axis.plot([], color=colour, label=preset)
        axis.set(title=title, ylabel="mIoU in percent")
        axis.tick_params(axis="x", labelsize=7)
        axis.legend()
    figure.savefig(file)


if __name__ == "__main__":
    main()
