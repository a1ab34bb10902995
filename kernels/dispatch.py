"""Which implementation of an op runs: one switch for the process, overridden by KTSE_KERNELS in the environment."""

import os
from collections.abc import Callable

MODES = ("auto", "reference")
_chosen = "auto"


def mode() -> str:
    """The mode in force: KTSE_KERNELS if it is set, else what `set_mode` chose, else "auto".

    Raises ValueError if KTSE_KERNELS names no mode.
    """
    environment = os.environ.get("KTSE_KERNELS")
    return _known(environment, "KTSE_KERNELS") if environment else _chosen


def set_mode(name: str) -> None:
    """Choose the implementation for this process: "auto" (the fast path) or "reference" (the plain formulas).

    KTSE_KERNELS in the environment wins over it. Raises ValueError if `name` is no mode.
    """
    global _chosen
    _chosen = _known(name, "kernels.mode")


def choose(reference: Callable, fast: Callable) -> Callable:
    """The one of the two that the mode in force asks for."""
    return reference if mode() == "reference" else fast


def _known(name: str, origin: str) -> str:
    if name not in MODES:
        raise ValueError(f"{origin}: {name!r} is not a mode (allowed: {', '.join(MODES)})")
    return name
