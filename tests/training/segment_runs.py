"""Stage 2 for test_segment_layouts.py: `segment_runs.py WORLD RUN OUT NAME:KEY,KEY...` starts WORLD processes."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from ktse_dist import segment
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.loop import run
from ktse_dist.training.setup import prepare_process

KEYS = ["data.crop=64", "train.batch=[[0,4]]", "train.epochs=4", "train.phase1_epochs=2", "segment.sure=0.2"]
KEYS += ["segment.networks=2", "model.weights=imagenet"]  # the run itself was never trained


class Rank:
    step = 0

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world

    def report(self, metrics, checkpoint_path=None):
        pass

    def should_stop(self) -> bool:
        return False


def train(rank: int, world: int, folder: Path, out: Path, jobs: list[str], port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(world)
    prepare_process(1)
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    made = RunFolder(folder)
    for job in jobs:
        name, _, keys = job.partition(":")
        config = segment.stage2(made, [*KEYS, f"ray.workers={world}", *keys.split(",")])
        run(replace(segment.job_of(made, config), folder=RunFolder(out / name)), Rank(rank, world))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # past Python's finalisers, where tensors that gloo's threads still hold abort it at random


if __name__ == "__main__":
    processes, run_folder, target, *planned = sys.argv[1:]
    arguments = (int(processes), Path(run_folder), Path(target), planned, 29500 + os.getpid() % 2000)
    if processes == "1":
        train(0, *arguments)
    else:
        mp.start_processes(train, arguments, nprocs=int(processes), start_method="spawn")
