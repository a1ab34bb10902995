"""`calm_run.py KEY=VALUE...`: the ranks of a run without Ray, and so without anything that could disturb it."""

import os
import sys
import tempfile

import torch.distributed as dist
import torch.multiprocessing as mp

from ktse_dist.config import Config
from ktse_dist.config_file import load_config
from ktse_dist.run_folder import run_folder
from ktse_dist.training.job import Job
from ktse_dist.training.loop import run
from ktse_dist.training.setup import prepare_process


class Rank:
    """A rank that nobody stops."""

    step = 0

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world

    def report(self, metrics, checkpoint_path=None):
        pass

    def should_stop(self) -> bool:
        return False


def train(rank: int, config: Config, meeting: str) -> None:
    world = config.ray.workers
    os.environ["LOCAL_RANK"] = str(rank)
    prepare_process(config.ray.threads)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    run(Job(config, run_folder(config)), Rank(rank, world))
    dist.destroy_process_group()


if __name__ == "__main__":
    config = load_config(None, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(train, (config, f"{folder}/meeting"), nprocs=config.ray.workers, start_method="fork")
