"""Files that are whole or not there."""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
    except OSError as error:
        if error.filename in (None, str(partial)):  # a full disk does not say where
            error.filename = str(path)
        raise
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


def read_json(path: Path, mend: str, needs: Sequence[str] = ()) -> dict[str, Any]:
    """A file that holds one object with the keys `needs`. UserError that ends in `mend` for any other."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not there; {mend}") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); {mend}") from None
    missing = [key for key in needs if key not in found] if isinstance(found, dict) else [*needs, "an object"]
    if missing:
        raise UserError(f"{path}: damaged, {missing[0]} is missing; {mend}")
    return found


def finished_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a file of JSON lines and what it says; what a full disk or a power cut left of one says nothing."""
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and "step" in said:
                yield line, said


def remove_partials(folder: Path, of: str = "*") -> None:
    """What killed processes left of files called `of`; only for whoever knows that no other is at work there."""
    for partial in folder.glob(f".{of}.*{PARTIAL}"):
        partial.unlink(missing_ok=True)
