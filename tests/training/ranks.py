"""Training without Ray: one rank in the test itself, or the processes that *_runs.py beside this file start."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from ktse_dist.training.setup import prepare_process


class Rank:
    """The loop's context, which keeps what it is told. It asks to stop after so many steps; None: never."""

    step = 0

    def __init__(self, rank: int = 0, world: int = 1, steps: int | None = None):
        self.rank, self.world, self._left = rank, world, steps
        self.told = []

    def report(self, metrics, checkpoint_path=None):
        self.told.append(metrics)

    def should_stop(self) -> bool:
        if self._left is not None:
            self._left -= 1
        return self._left == 0


def start(train: Callable, world: int, *arguments: Any) -> None:
    """train(rank, world, port, *arguments) in `world` processes, one of them here."""
    arguments = (world, 29500 + os.getpid() % 2000, *arguments)
    if world == 1:
        train(0, *arguments)
    else:
        mp.start_processes(train, arguments, nprocs=world, start_method="spawn")


@contextmanager
def joined(rank: int, world: int, port: int) -> Iterator[None]:
    """This process as a rank of its group; it ends with the block, unless it is the only one."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    prepare_process(1)
    if world == 1:
        yield
        return
    dist.init_process_group("gloo", rank=rank, world_size=world)
    yield
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # past Python's finalisers, where tensors that gloo's threads still hold abort it at random
