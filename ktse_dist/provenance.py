"""Which code made a result."""

import contextlib
import importlib.metadata
import subprocess
from pathlib import Path

PACKAGES = ("ktse_dist", "torch", "ray", "deepspeed", "webdataset", "opencv-python-headless", "pydensecrf2")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_revision() -> str | None:
    """The revision of this source tree; None for an installed package."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
