"""What each stage earns on the stickers: seeds, masks after the CRF and after IRN, the network that learns from masks.

A seed is a row of stages.csv: KTSE as benchmarks/quality.py trains it, its masks after the CRF (of as many training
pictures as the demo takes) and after IRN (of `--pictures`), and `ktse segment` on IRN's. Seeds and masks are told the
pictures' tags, the network is not. A row that is there is not made again and every stage goes on where it stopped, so
the same command may be given again.        python benchmarks/stages.py [--seeds 5137 1 2] [--runs runs/quality]
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measuring import about
from quality import ARMS, FULL, RESULTS, append, config_of, phase1, read, train

from ktse_dist import segment
from ktse_dist.config import Config
from ktse_dist.evaluation.score import score
from ktse_dist.mask_work import splits
from ktse_dist.masks import make_masks
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.setup import prepare_process, start_logging

PRESET = "corrected"
PICTURES = 750  # half of them: more masks take as long as the training that they improve
MASKS = ("seeds", "crf", "irn")
LOOKS = ("single", "multi", "final")
SCORES = (*(f"{kind}_val" for kind in MASKS), *(f"network_{look}" for look in LOOKS))
TRAIN_SCORES = ("crf_train", "irn_train")
GAINS = {"masks_gain": "irn_val", "network_gain": "network_final"}  # over seeds_val
SECONDS = ("irn", "segment", "segment_test")
ABOUT = ("device", "torch", "python", "date")
COLUMNS = ("seed", *SCORES, *TRAIN_SCORES, "pictures", *(f"{stage}_s" for stage in SECONDS), "keys", *ABOUT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="where quality.py's lie (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of stages.csv (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5137, 1, 2])
    parser.add_argument("--pictures", type=int, default=PICTURES, help="training pictures to learn from (%(default)s)")
    parser.add_argument("--keys", nargs="*", default=[], metavar="a.b=c", help="for ktse segment")
    parser.add_argument("--quick", action="store_true", help="read the rows that are there, train nothing")
    options = parser.parse_args()
    start_logging()
    prepare_process(None)
    table = options.results / "stages.csv"
    for seed in [] if options.quick else options.seeds:
        if not any(row["seed"] == str(seed) for row in read(table)):
            append(table, COLUMNS, row_of(options.runs, seed, options.pictures, options.keys))
    print(json.dumps(summary(read(table))))


def row_of(runs: Path, seed: int, pictures: int, keys: list[str]) -> dict[str, Any]:
    source, config = trained(runs, seed)
    make_masks(source, config)
    crf = score(source, *splits(config))
    folder = refined(source, config_of(runs, PRESET, seed, "masks.refine=irn", f"masks.pictures.train={pictures}"))
    segment.main(["--run", str(folder.path), *keys])
    irn, summary = score(folder, *splits(config)), folder.read_summary()
    row = {"seed": seed, "seeds_val": crf["seed_miou"], "pictures": pictures, "keys": " ".join(keys)}
    for kind, found in (("crf", crf), ("irn", irn)):
        row |= {f"{kind}_val": found["mask_miou"], f"{kind}_train": found["mask_miou_train"]}
    row |= {f"network_{look}": summary[f"network_miou_{look}"] for look in LOOKS}
    row |= {f"{stage}_s": summary["seconds"].get(stage) for stage in SECONDS}
    return row | {name: text for name, text in about(torch.device("cpu")).items() if name in ABOUT}


def trained(runs: Path, seed: int) -> tuple[RunFolder, Config]:
    """KTSE's run of one seed, the one that quality.py calls the full method of `corrected`."""
    folder = RunFolder(runs.absolute() / f"seed-{seed}" / PRESET / FULL)
    config = config_of(runs, PRESET, seed, *(f"method.{part}={weight}" for part, weight in ARMS[FULL].items()))
    if not folder.model.exists():
        train(folder, config, phase1(runs, seed))
    return folder, config


def refined(source: RunFolder, config: Config) -> RunFolder:
    """A run beside `source` with the same network, and IRN's masks of it: a run has masks of one kind."""
    folder = RunFolder(source.path.with_name("stages"))
    folder.write_config(config)
    shutil.copyfile(source.model, folder.model)
    start = time.perf_counter()
    if make_masks(folder, config):
        folder.update_summary(seconds={"irn": round(time.perf_counter() - start, 1)})
    return folder


def summary(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Means over the seeds, and what masks and network gain over the seeds of the network that they come from."""
    figures: dict[str, float] = {}
    if rows:
        means = {name: statistics.mean(float(row[name]) for row in rows) for name in SCORES}
        gains = {gain: means[better] - means["seeds_val"] for gain, better in GAINS.items()}
        figures = {name: round(value, 2) for name, value in (means | gains).items()}
    targets = {gain: {"min": 0.0} for gain in GAINS}
    holds = all(figures.get(gain, float("-inf")) >= target["min"] for gain, target in targets.items())
    device = "; ".join(sorted({row["device"] for row in rows}))
    return {"benchmark": "stages", "device": device, "figures": figures, "targets": targets, "holds": holds}


if __name__ == "__main__":
    main()
