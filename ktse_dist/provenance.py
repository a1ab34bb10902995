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
    """The revision of this source tree; None for an installed package, which may lie in somebody else's tree."""
    tree = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(tree), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    top, _, revision = found.stdout.strip().partition("\n")
    return revision if revision and Path(top).resolve() == tree else None
