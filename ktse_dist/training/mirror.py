"""A run folder at an address (run.root=s3://...), and a working folder on this machine that follows it.

What is at the address counts: a start makes the working folder agree with it, and every file that another machine
needs to go on is sent there. A checkpoint is whole where its state.json is, which is sent last and deleted first.
TensorBoard's files, masks and reports stay in the working folder.
"""

import shutil
from pathlib import Path

from filelock import FileLock

from ktse_dist.config import Config
from ktse_dist.run_folder import RunFolder, run_folder
from ktse_dist.training import checkpoint
from ktse_dist.training.storage import Storage


class Mirror:
    """Both sides of one run. deadline: seconds that the storage may be away."""

    def __init__(self, folder: RunFolder, deadline: float):
        assert folder.address
        self.folder = folder
        self.files = Storage(folder.address, deadline)
        self.checkpoints = Storage(f"{folder.address}/{folder.checkpoints.name}", deadline)

    def bring(self, phase1: bool = False) -> None:
        """Make the working folder agree with the address: the run's files, its last checkpoint, with `phase1` that too.

        The processes of a machine take turns. UserError for a checkpoint that is damaged there.
        """
        folder = self.folder
        folder.path.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.path / ".bring.lock"):
            there = self.files.names()
            for file in (folder.config_file, folder.metrics_file, *published(folder)):
                self._bring_file(file, there)
            whole = checkpoint.whole(self.checkpoints.names())
            wanted = checkpoint.steps(whole)[-1:] + [name for name in (folder.phase1.name,) if phase1 and name in whole]
            for local in folder.checkpoints.glob("*"):
                being_written = local.name.startswith(checkpoint.UNFINISHED)  # by another process; a save clears them
                if local.name not in wanted and not being_written:
                    shutil.rmtree(local)
            for name in wanted:
                bring_checkpoint(self.checkpoints, name, folder.checkpoints)

    def _bring_file(self, file: Path, there: set[str]) -> None:
        if file.name not in there:
            file.unlink(missing_ok=True)
        elif file != self.folder.model or not is_the_model_of(self.folder):  # hundreds of megabytes
            self.files.get(file.name, file)

    def send(self, *files: Path) -> None:
        """Those of the run folder's files that exist."""
        for file in files:
            if file.is_file():
                self.files.put(file, file.name)

    def send_checkpoint(self, name: str, keep: int) -> None:
        """One of the working folder; then all but the last `keep` step-N ones are deleted, and what is not whole."""
        there = self.checkpoints.names()
        self._delete(name, there)
        for file in checkpoint.FILES:  # state.json comes last
            self.checkpoints.put(self.folder.checkpoints / name / file, f"{name}/{file}")
        kept = checkpoint.steps(checkpoint.whole(there) | {name})[-keep:]
        for old in {path.split("/")[0] for path in there} - {name, *kept}:
            if checkpoint.STEP.fullmatch(old):
                self._delete(old, there)

    def _delete(self, name: str, there: set[str]) -> None:
        for path in (f"{name}/{file}" for file in reversed(checkpoint.FILES)):
            if path in there:
                self.checkpoints.delete(path)


def published(folder: RunFolder) -> tuple[Path, ...]:
    """What a finished run consists of; the model comes last, since it shows that the run is finished."""
    return folder.summary_file, folder.card, folder.attribution, folder.model


def send(folder: RunFolder, config: Config, *files: Path) -> None:
    """Files of a run to its address, if `folder` is the working folder of one."""
    home = run_folder(config)
    if home.address and home.path == folder.path:
        Mirror(home, config.run.deadline).send(*files)


def is_the_model_of(folder: RunFolder) -> bool:
    """Whether the model is the one that summary.json tells of."""
    return folder.model.is_file() and folder.read_summary().get("model_sha256") == checkpoint.file_digest(folder.model)


def bring_checkpoint(storage: Storage, name: str, folder: Path) -> Path:
    """<folder>/<name> as it is at `storage`, brought unless it is here already. UserError if it is damaged there."""
    state = folder / name / checkpoint.STATE
    if state.is_file() and state.read_bytes() == storage.read(f"{name}/{checkpoint.STATE}"):
        return folder / name
    with checkpoint.new_directory(folder, name) as unfinished:
        for file in checkpoint.FILES:
            storage.get(f"{name}/{file}", unfinished / file)
        checkpoint.verify(unfinished, f"{storage.url}/{name}")
    return folder / name


def bring_fork(storage: Storage, name: str, folder: Path) -> Path | None:
    """The same for one that may not be there; the processes of a machine take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".bring.lock"):
        return bring_checkpoint(storage, name, folder) if name in checkpoint.whole(storage.names()) else None
