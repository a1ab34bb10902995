"""Stage 2 for test_segment_layouts.py: `segment_runs.py WORLD RUN OUT NAME:KEY,KEY...` starts WORLD processes."""

import sys
from dataclasses import replace
from pathlib import Path

from ranks import Rank, joined, start

from ktse_dist import segment
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.loop import run

KEYS = ["data.crop=64", "train.batch=[[0,4]]", "train.epochs=4", "train.phase1_epochs=2", "segment.sure=0.2"]
KEYS += ["segment.networks=2", "model.weights=imagenet"]  # the run itself was never trained


def train(rank: int, world: int, port: int, folder: Path, out: Path, jobs: list[str]) -> None:
    with joined(rank, world, port):
        made = RunFolder(folder)
        for job in jobs:
            name, _, keys = job.partition(":")
            config = segment.stage2(made, [*KEYS, f"ray.workers={world}", *keys.split(",")])
            run(replace(segment.job_of(made, config), folder=RunFolder(out / name)), Rank(rank, world))


if __name__ == "__main__":
    processes, run_folder, target, *planned = sys.argv[1:]
    start(train, int(processes), Path(run_folder), Path(target), planned)
