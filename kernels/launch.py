"""How every kernel starts: on the device of its tensors, with the options of the tuning table."""

from collections.abc import Callable
from contextlib import nullcontext

import torch

from kernels.tuning import architecture, options

Grid = Callable[[dict], tuple[int, ...]]


def launch(kernel, grid: Grid, device: torch.device, *arguments, **constants) -> None:
    """Start `kernel` (a function under triton.jit) on `device`.

    grid: number of programs from the kernel's constants, those of the tuning table included.
    """
    tuned = options(kernel.fn.__name__, architecture(device))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants, **tuned)
