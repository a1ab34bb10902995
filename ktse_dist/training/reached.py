"""How far a run has come, kept beside its checkpoints, so that a start after a crash can say what it does again."""

import os
from pathlib import Path

from ktse_dist.run_folder import RunFolder

DIGITS = 12


class Reached:
    """Rank 0 notes every step in place, without waiting for the disk: only a crash of the machine loses some."""

    def __init__(self, folder: RunFolder) -> None:
        self._file = place(folder).open("w+b", buffering=0)

    def note(self, step: int) -> None:
        os.pwrite(self._file.fileno(), b"%0*d\n" % (DIGITS, step), 0)

    def close(self) -> None:
        self._file.close()


def last_step(folder: RunFolder) -> int:
    """The last step that was noted; 0 where none was, as in a working folder on a new machine."""
    file = place(folder)
    text = file.read_text() if file.exists() else ""
    return int(text) if text.strip().isdigit() else 0


def place(folder: RunFolder) -> Path:
    return folder.path / "reached"
