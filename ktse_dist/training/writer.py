"""Checkpoints written beside the training, by a thread of rank 0: a step waits for the copy of its tensors only.

At most one is being written: the next one waits for it, and so one interval bounds what a crash can cost on top of the
interval since. What went wrong with one is told when the next one begins, or at the end.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor

from ktse_dist.errors import UserError
from ktse_dist.run_folder import RunFolder
from ktse_dist.training import checkpoint
from ktse_dist.training.divergence import FRESH, check_weights
from ktse_dist.training.mirror import Mirror

log = logging.getLogger("ktse")


class Snapshot(NamedTuple):
    """CPU tensors that nobody changes until the writer has finished with them; state: JSON values."""

    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    state: dict[str, Any]


class Writer:
    """`with Writer(...) as writer`: leaving waits for what is being written. keep: how many step-N ones stay.
    fresh: as in Job.
    """

    def __init__(self, folder: RunFolder, keep: int, mirror: Mirror | None, fresh: str = FRESH):
        self._folder, self._keep, self._mirror, self._fresh = folder, keep, mirror, fresh
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def begin(self, names: list[str], snapshot: Snapshot) -> None:
        """Write it under each of the names, in their order. The one before must have been waited for."""
        assert self._writing is None
        self._writing = self._thread.submit(self._write, names, snapshot)

    def wait(self) -> None:
        """Until nothing is being written. UserError if what was being written is not there."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    @property
    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def publish(self, *files: Path) -> None:
        """Send files of the run's folder to its address, if it has one, in their order. UserError if that fails."""
        if self._mirror:
            self._mirror.send(*files)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        except UserError as failure:
            if kind is None:
                raise
            log.error(str(failure))  # beside what ends the run
        finally:
            self._thread.shutdown()

    def _write(self, names: list[str], snapshot: Snapshot) -> None:
        check_weights(names[-1], snapshot.weights, self._fresh)
        try:
            for name in names:
                checkpoint.save(self._folder.checkpoints, name, *snapshot, self._keep)
                if self._mirror:
                    self._mirror.send_checkpoint(name, self._keep)
            self.publish(self._folder.config_file, self._folder.metrics_file)
        except OSError as error:
            last = checkpoint.latest(self._folder.checkpoints)
            raise UserError(
                f"{self._folder.checkpoints}: {names[-1]} could not be written ({error.strerror or error}); free some "
                f"space there and run the same command again: it goes on from {last.name if last else 'the start'}"
            ) from None
