"""Files of what was counted over some pictures: named arrays, whole or not there."""

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike

from ktse_dist.errors import UserError
from ktse_dist.files import atomic


def write_counts(path: Path, **counts: ArrayLike) -> None:
    with atomic(path) as file:
        np.savez_compressed(file, **counts)


def read_counts(path: Path) -> dict[str, np.ndarray]:
    """UserError for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as counts:
            return dict(counts)
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and give the same ktse command again") from None
