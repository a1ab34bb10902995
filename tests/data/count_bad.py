"""One of two ranks that count samples they could not read. `python count_bad.py RANK STORE` prints what check says."""

import os
import sys

import torch.distributed as dist

from ktse_dist.data.bad_samples import FEW, BadSamples, Replaced
from ktse_dist.errors import UserError


def main() -> None:
    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    bad = BadSamples(100, 0)
    bad.add(Replaced(2 * row + rank, f"key_{2 * row + rank}: torn", own=True) for row in range(FEW - 1 - rank))
    print(bad.check())
    bad.add([Replaced(50, "key_50: torn", own=True)] if rank else [])
    try:
        bad.check()
    except UserError as error:
        print(error)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # past Python's finalisers, where tensors that gloo's threads still hold abort it at random


if __name__ == "__main__":
    main()
