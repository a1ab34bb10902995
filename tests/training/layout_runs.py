"""Trainings for test_layouts.py: `layout_runs.py WORLD DATASET OUT JOB...` starts WORLD processes; a JOB is
NAME:ENGINE:PRESET:STOPS with stops like 7+10, after each of which the run is left and gone on with."""

import os
import sys
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from ktse_dist.config import Config
from ktse_dist.config_file import load_config
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.irn import IRNTask, irn_config
from ktse_dist.training.job import Job
from ktse_dist.training.loop import run
from ktse_dist.training.setup import prepare_process

ENGINES = {
    "torch": ("torch", 2),
    "ddp": ("ddp", 2),
    "zero1": ("deepspeed", 1),
    "zero2": ("deepspeed", 2),
    "zero3": ("deepspeed", 3),
}


IRN = "irn"  # instead of a preset: IRN's network on the labels in OUT/labels


class Rank:
    """A rank that asks to stop after so many steps of this process."""

    def __init__(self, rank: int, world: int, steps: int | None):
        self.rank, self.world, self._left = rank, world, steps

    def report(self, metrics, checkpoint_path=None):
        pass

    def should_stop(self) -> bool:
        if self._left is not None:
            self._left -= 1
        return self._left == 0


def config_of(dataset: Path, engine: str, preset: str, world: int, *more: str) -> Config:
    """Batches of 6, of which 4 have partners; 5 steps an epoch, 2 epochs of each phase."""
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


def train(rank: int, world: int, dataset: Path, out: Path, jobs: list[str], port: int) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
    }
    prepare_process(1)
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    for job in jobs:
        name, engine, preset, stops, *more = job.split(":")
        config = config_of(dataset, engine, "corrected" if preset == IRN else preset, world, *more)
        done = 0
        for stop in [*(int(s) for s in stops.split("+") if s), None]:
            steps = None if stop is None else stop - done
            run(job_of(config, out, name, preset), Rank(rank, world, steps))
            done = stop or done
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # past Python's finalisers, where tensors that gloo's threads still hold abort it at random


if __name__ == "__main__":
    processes, data, target, *planned = sys.argv[1:]
    arguments = (int(processes), Path(data), Path(target), planned, 29500 + os.getpid() % 2000)
    if processes == "1":
        train(0, *arguments)
    else:
        mp.start_processes(train, arguments, nprocs=int(processes), start_method="spawn")
