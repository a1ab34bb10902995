"""Trainings for test_layouts.py: `layout_runs.py WORLD DATASET OUT JOB...` starts WORLD processes; a JOB is
NAME:ENGINE:PRESET:STOPS with stops like 7+10, after each of which the run is left and gone on with."""

import sys
from pathlib import Path

from ranks import Rank, joined, start

from ktse_dist.config import Config
from ktse_dist.config_file import load_config
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.irn import IRNTask, irn_config
from ktse_dist.training.job import Job
from ktse_dist.training.loop import run

ENGINES = {
    "torch": ("torch", 2),
    "ddp": ("ddp", 2),
    "zero1": ("deepspeed", 1),
    "zero2": ("deepspeed", 2),
    "zero3": ("deepspeed", 3),
}

IRN = "irn"  # instead of a preset: IRN's network on the labels in OUT/labels


def config_of(dataset: Path, engine: str, preset: str, world: int, *more: str) -> Config:
    """Batches of 6, of which 4 have partners; 3 steps an epoch, 2 epochs of each phase."""
    name, zero = ENGINES[engine]
    keys = [
        f"method.preset={preset}",
        f"engine.name={name}",
        f"engine.zero={zero}",
        f"data.path={dataset}",
        "data.crop=224",
        "data.long_side=[224,352]",
        "train.precision=fp32",
        "train.batch=[[0,6]]",
        "train.epochs=4",
        "train.phase1_epochs=2",
        "train.baseline=false",
        f"ray.workers={world}",
        "method.transfer.pairs=4",
        *more,
    ]
    return load_config(None, keys)


def job_of(config: Config, out: Path, name: str, preset: str) -> Job:
    if preset == IRN:
        return Job(irn_config(config), RunFolder(out / name), task=IRNTask(out / "labels", None))
    return Job(config, RunFolder(out / name))


def train(rank: int, world: int, port: int, dataset: Path, out: Path, jobs: list[str]) -> None:
    with joined(rank, world, port):
        for job in jobs:
            name, engine, preset, stops, *more = job.split(":")
            config = config_of(dataset, engine, "corrected" if preset == IRN else preset, world, *more)
            done = 0
            for stop in [*(int(s) for s in stops.split("+") if s), None]:
                steps = None if stop is None else stop - done
                run(job_of(config, out, name, preset), Rank(rank, world, steps))
                done = stop or done


if __name__ == "__main__":
    processes, data, target, *planned = sys.argv[1:]
    start(train, int(processes), Path(data), Path(target), planned)
