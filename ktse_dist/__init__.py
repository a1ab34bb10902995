"""Image-level tags in, segmentation masks out: KTSE (ECCV 2024) at any scale."""

import os
from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"

# OpenMP threads that wait should sleep: spinning ones fight every other process for its core, and a step on two threads
# of a busy machine took 5 to 15 times as long. Read when torch is imported, so it stands before everything else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _check_kernels() -> None:
    """Hugging Face publishes a package of the same name as our kernels/; with that one in front nothing would work."""
    found = find_spec("kernels")
    origin = found.origin if found else None
    if origin is None or not Path(origin).with_name("dispatch.py").is_file():
        raise ImportError(
            f"ktse_dist needs its own package 'kernels', but Python finds {origin or 'none'}; "
            "pip uninstall kernels (Hugging Face's), then pip install --force-reinstall --no-deps ktse_dist"
        )


_check_kernels()
