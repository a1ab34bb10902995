"""Which implementation of an op runs: one switch for the process, overridden by KTSE_KERNELS in the environment."""

import logging
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

log = logging.getLogger("ktse")

MODES = ("auto", "reference", "triton")
HAS_TRITON = find_spec("triton") is not None
_chosen = "auto"


def mode() -> str:
    """The mode in force: KTSE_KERNELS if it is set, else what `set_mode` chose, else "auto".

    Raises ValueError if KTSE_KERNELS names no mode, or one that this machine cannot run.
    """
    environment = os.environ.get("KTSE_KERNELS")
    return _usable(environment, "KTSE_KERNELS") if environment else _chosen


def set_mode(name: str) -> None:
    """Choose the implementation for this process.

    "auto": the Triton kernels for CUDA tensors where triton is installed, else the fast path in plain torch.
    "reference": the plain formulas. "triton": the kernels and nothing else; for CPU tensors they run in Triton's
    interpreter, slowly, if TRITON_INTERPRET=1 was in the environment from the start.
    KTSE_KERNELS in the environment wins over it. Raises ValueError if `name` is no mode, or one that this machine
    cannot run.
    """
    global _chosen
    _chosen = _usable(name, "kernels.mode")


def choose(op: str, tensor: Tensor) -> ModuleType:
    """The module of kernels.ops.`op` that the mode in force asks for, for tensors on the device of `tensor`.

    Raises ValueError in mode "triton" for CPU tensors outside Triton's interpreter: it never falls back.
    """
    chosen = mode()
    check_device(tensor.is_cuda)
    if chosen == "reference":
        return import_module(f"kernels.ops.{op}.reference")
    if chosen == "triton" or (tensor.is_cuda and HAS_TRITON):
        return import_module(f"kernels.ops.{op}.function")
    if tensor.is_cuda:
        _say_that_triton_is_missing()
    return import_module(f"kernels.ops.{op}.eager")


def check_device(is_cuda: bool) -> None:
    """Raises ValueError if the mode in force is "triton" and tensors will be neither on a GPU nor interpreted."""
    if mode() == "triton" and not (is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        raise ValueError("kernels.mode: 'triton' got CPU tensors; it needs a CUDA device, or TRITON_INTERPRET=1")


@cache  # once is enough
def _say_that_triton_is_missing() -> None:
    log.warning("kernels.mode: a GPU without the package triton takes the torch path; faster: pip install triton")


def _usable(name: str, origin: str) -> str:
    if name not in MODES:
        raise ValueError(f"{origin}: {name!r} is not a mode (allowed: {', '.join(MODES)})")
    if name == "triton" and not HAS_TRITON:
        raise ValueError(f"{origin}: 'triton' needs the package triton, not installed here (Linux: pip install triton)")
    return name
