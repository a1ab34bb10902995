"""Checkpoints that any engine on any number of workers can go on from: a directory of safetensors and JSON.

<folder>/step-00000123/ holds weights.safetensors, optimizer.safetensors (SGD momentum) and state.json, which carries
the digests of all three. Only rank 0 writes. A checkpoint is there whole or not at all. Nothing calls one the best:
training computes no score that would tell, and losses of different phases and rates do not compare.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ktse_dist.errors import UserError
from ktse_dist.models.weights import save_tensors

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
FILES = (WEIGHTS, OPTIMIZER, STATE)  # in the order of writing
FORMAT = 1
STEP = re.compile(r"step-\d+")  # what save() prunes and latest() finds; other names are kept for good
UNFINISHED, REPLACED = ".unfinished-", ".replaced-"


@dataclass(frozen=True)
class Checkpoint:
    """weights and momentum as Engine.load takes them; state is what was saved, as JSON gives it back."""

    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    state: dict[str, Any]


def save(
    folder: Path, name: str, weights: dict[str, Tensor], momentum: dict[str, Tensor], state: dict[str, Any], keep: int
) -> None:
    """Write <folder>/<name>, replacing one of that name, then delete all but the last `keep` (at least 1) step-N ones.

    name: `step-00000123`, or any other without a leading dot for one that stays (`phase1`). weights, momentum:
    CPU tensors. state: JSON values. A crash leaves the older checkpoints as they were; the next save clears away what
    it was writing. OSError for a full disk and the like, after which nothing of it is left.
    """
    with new_directory(folder, name) as unfinished:
        for file, tensors in ((WEIGHTS, weights), (OPTIMIZER, momentum)):
            save_tensors({key: tensor.contiguous() for key, tensor in tensors.items()}, unfinished / file)
        digests = {file: file_digest(unfinished / file) for file in (WEIGHTS, OPTIMIZER)}
        record = {"format": FORMAT, "state": state, "files": digests}
        (unfinished / STATE).write_text(json.dumps(record | {"digest": _digest(record)}, indent=2) + "\n")
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)


@contextmanager
def new_directory(folder: Path, name: str) -> Iterator[Path]:
    """A directory to be filled, which takes its place as <folder>/<name> when it is; an error leaves nothing of it."""
    folder.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    unfinished = folder / f"{UNFINISHED}{name}"
    unfinished.mkdir()
    try:
        yield unfinished
        for path in (*unfinished.iterdir(), unfinished):
            _sync(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _put_in_place(unfinished, folder / name)


def latest(folder: Path) -> Path | None:
    """The step-N checkpoint with the highest step, or None."""
    steps = _steps(folder) if folder.is_dir() else []
    return steps[-1] if steps else None


def steps(names: Iterable[str]) -> list[str]:
    """Those that are step-N, in the order of their steps."""
    return sorted(filter(STEP.fullmatch, names), key=lambda name: int(name.removeprefix("step-")))


def whole(files: Iterable[str]) -> set[str]:
    """Names of the checkpoints that paths like `step-00000123/state.json` show to be whole."""
    return {path.removesuffix(f"/{STATE}") for path in files if path.endswith(f"/{STATE}")}


def load(path: Path) -> Checkpoint:
    """Read a checkpoint directory. UserError if it is none, is damaged, or would have to be unpickled."""
    if not (path / STATE).is_file():
        if (path / WEIGHTS).is_file():
            raise _damaged(path, str(path), STATE)
        raise UserError(
            f"{path}: not a checkpoint of ktse (a directory with {STATE} and two safetensors files). Files of PyTorch, "
            "DeepSpeed and mxnet are pickles, which can run code, so they are not opened here: for the weights alone, "
            "`ktse convert FILE OUT.safetensors` and model.weights=OUT.safetensors"
        )
    record = verify(path, str(path))
    return Checkpoint(load_file(path / WEIGHTS), load_file(path / OPTIMIZER), record["state"])


def verify(path: Path, place: str) -> dict[str, Any]:
    """The record in state.json; UserError, which says `place` for `path`, unless all three files are as written."""
    record = _read_record(path, place)
    for file in (WEIGHTS, OPTIMIZER):
        if not (path / file).is_file() or file_digest(path / file) != record["files"][file]:
            raise _damaged(path, place, file)
    return record


def _read_record(path: Path, place: str) -> dict[str, Any]:
    """state.json without its own digest, once that is verified."""
    try:
        record = json.loads((path / STATE).read_text())
        found, digest = record["format"], record.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(path, place, STATE) from None
    if found != FORMAT:
        raise UserError(
            f"{place}/{STATE}: checkpoint format {found!r}, this version reads {FORMAT}; use the ktse that wrote it"
        )
    if digest != _digest(record):
        raise _damaged(path, place, STATE)
    return record


def _damaged(path: Path, place: str, file: str) -> UserError:
    found = _steps(path.parent)
    older = found[: found.index(path)] if path in found else []
    rest = f"the run goes on from {older[-1].name}" if older else "the run starts anew, since there is no older one"
    if not STEP.fullmatch(path.name):  # phase1
        rest = "masks do without; to fork from it train phase 1 again, under a new run.name"
    if str(path) != place:
        rest = "the run goes on from the one before it"
    return UserError(
        f"{place}/{file}: missing or damaged (its sha256 is not the one written); delete {place} and {rest}"
    )


def _steps(folder: Path) -> list[Path]:
    return [folder / name for name in steps(path.name for path in folder.iterdir())]


def _recover(folder: Path) -> None:
    """Undo what a killed save left: half-written directories go, a replaced one without its successor comes back."""
    for stale in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(stale)
    for old in folder.glob(f"{REPLACED}*"):
        successor = folder / old.name.removeprefix(REPLACED)
        if successor.exists():
            shutil.rmtree(old)
        else:
            old.rename(successor)


def _put_in_place(finished: Path, target: Path) -> None:
    """Rename; a directory cannot be renamed over another one, so the old one steps aside first."""
    replaced = target.with_name(f"{REPLACED}{target.name}")
    if target.exists():
        target.rename(replaced)
    finished.rename(target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
