"""Block sizes and warps of every kernel: a static table by architecture, so that ranks never differ.

Nothing is tried at run time: autotuning would let two ranks choose differently, and breaks Triton's interpreter.
A row of an architecture replaces the default row of the same kernel. `num_warps`, `num_stages` and `maxnreg` go to
the compiler, every other entry is a constexpr of the kernel.
"""

from functools import lru_cache

import torch

Options = dict[str, int]

DEFAULT: dict[str, Options] = {
    "extrema": {"BLOCK": 512, "num_warps": 4},
    "strongest": {"BLOCK": 512, "num_warps": 4},
    "hinge_value": {"BLOCK": 1024, "num_warps": 4},
    "hinge_slope": {"BLOCK": 1024, "num_warps": 4},
    "pool": {"BLOCK": 16, "num_warps": 4, "num_stages": 1},
    "gate_forward": {"CLASSES": 16, "BLOCK": 32, "num_warps": 8, "num_stages": 1},
    "gate_backward": {"CLASSES": 16, "BLOCK": 32, "num_warps": 8, "num_stages": 1},
    "weight_backward": {"CLASSES": 16, "BLOCK": 32, "SPAN": 512, "num_warps": 4, "num_stages": 1},
    "pool_backward": {"BLOCK": 16, "num_warps": 2, "num_stages": 1},
    "group_sizes": {"BLOCK": 4096, "num_warps": 8},
    "tile_losses": {"num_warps": 2, "maxnreg": 192},
    "total_loss": {"BLOCK": 8192, "num_warps": 32},
    "logit_grad": {"BLOCK": 1024, "num_warps": 8},
    "affinity": {"PIXELS": 128, "num_warps": 4},
    "propagate": {"PIXELS": 128, "num_warps": 4},
}
BY_ARCHITECTURE: dict[str, dict[str, Options]] = {
    "sm_80": {},
    "sm_90": {},
}


def options(kernel: str, architecture: str) -> Options:
    """The row of `kernel` for an architecture ("sm_90"; any unknown name takes the default row)."""
    return BY_ARCHITECTURE.get(architecture, {}).get(kernel, DEFAULT[kernel])


@lru_cache(maxsize=64)
def architecture(device: torch.device) -> str:
    """ "sm_90" for a CUDA device of capability 9.0; "default" for the CPU, where only the interpreter runs kernels."""
    if device.type != "cuda":
        return "default"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
