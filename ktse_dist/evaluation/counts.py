"""Files of what was counted over some pictures: named arrays, whole or not there."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike

from ktse_dist.errors import UserError
from ktse_dist.files import atomic


def write_counts(path: Path, **counts: ArrayLike) -> None:
    with atomic(path) as file:
        np.savez_compressed(file, **counts)


def read_counts(path: Path, mend: str, needs: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of a file, `needs` among them. UserError that ends in `mend` for a damaged one, or none at all."""
    try:
        with np.load(path, allow_pickle=False) as counts:
            found = dict(counts)
    except FileNotFoundError:
        raise UserError(f"{path}: not there; {mend}") from None
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error):  # numpy's own words advise to open pickles
        raise UserError(f"{path}: damaged; {mend}") from None
    missing = [name for name in needs if name not in found]
    if missing:
        raise UserError(f"{path}: damaged, its {missing[0]} are missing; {mend}")
    return found
