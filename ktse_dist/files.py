"""Files that are whole or not there."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ktse_dist.errors import UserError

PARTIAL = ".partial"  # how the name of an unfinished file ends


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of `path`, on the disk, when the block ends well; else nothing changes there.

    Other processes may do the same at the same time: the last to end wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """`replacing`, as an open file."""
    with replacing(path) as partial, partial.open("wb") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text)


def read_json(path: Path, mend: str) -> Any:
    """UserError that ends in `mend` for a damaged file."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); {mend}") from None


def remove_partials(folder: Path, of: str = "*") -> None:
    """What killed processes left of files called `of`; only for whoever knows that no other is at work there."""
    for partial in folder.glob(f".{of}.*{PARTIAL}"):
        partial.unlink(missing_ok=True)
