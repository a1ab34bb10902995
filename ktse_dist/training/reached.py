"""How far a run has come, kept beside its checkpoints, so that a start after a crash can say what it does again."""

import os
from pathlib import Path

from ktse_dist.run_folder import RunFolder
from ktse_dist.training import checkpoint

DIGITS = 12


class Reached:
    """Rank 0 notes every step in place, without waiting for the disk: only a crash of the machine loses some."""

    def __init__(self, folder: RunFolder) -> None:
        self._file = place(folder).open("w+b", buffering=0)

    def note(self, step: int) -> None:
        os.pwrite(self._file.fileno(), b"%0*d\n" % (DIGITS, step), 0)

    def close(self) -> None:
        self._file.close()


def last_step(folder: RunFolder) -> int | None:
    """The last step that was noted; None where none was, as in a working folder on a new machine."""
    file = place(folder)
    text = file.read_text() if file.exists() else ""
    return int(text) if text.strip().isdigit() else None


def going_on(folder: RunFolder, first: int) -> str | None:
    """The line for a run that goes on after `first` steps; None for one that begins."""
    last = last_step(folder)
    if last is None and not checkpoint.latest(folder.checkpoints):
        last = first  # nothing was done here yet: the beginning, or that of a fork
    if last is None or last < first:  # another machine went further, or this one lost its notes
        return f"goes on from step {first}; how many steps are done again is not known on this machine"
    return f"goes on from step {first}; {last - first} steps are done again" if last else None


def place(folder: RunFolder) -> Path:
    return folder.path / "reached"
