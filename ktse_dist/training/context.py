"""What the loop knows of the world around it. launch/ implements it with Ray, this file with one process."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any, Protocol


class RunContext(Protocol):
    rank: int
    world: int
    step: int  # finished ones; the loop writes it

    def report(self, metrics: dict[str, Any], checkpoint_path: Path | None = None) -> None:
        """Tell whoever watches."""

    def should_stop(self) -> bool:
        """Whether to write a checkpoint and leave after this step. The same answer on every rank at the same step."""


class LocalContext:
    """One process. SIGTERM asks it to stop after the current step."""

    rank, world, step = 0, 1, 0

    def __init__(self) -> None:
        self._stop = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop = True

    def report(self, metrics: dict[str, Any], checkpoint_path: Path | None = None) -> None:
        pass  # metrics.jsonl and the progress line have said it

    def should_stop(self) -> bool:
        return self._stop
