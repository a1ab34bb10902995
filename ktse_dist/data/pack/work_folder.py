"""The folder beside the data set in which it comes into being, and what of it is finished already.

`.NAME.unfinished/` holds `set/`, which becomes the data set by one rename, `parts/` with a note and a part of the index
for every finished shard, and `lock`, on which a second packer is refused. A note is written last, so it speaks of a
whole shard.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ktse_dist.data.index import Shard
from ktse_dist.data.pack.writer import disk_may_be_full, write_whole
from ktse_dist.errors import UserError


class Finished(NamedTuple):
    """A shard that is done. skipped: [name, reason] of the pictures left out; encoded: how many were not copied."""

    shard: Shard
    skipped: list[list[str]]
    encoded: int


class WorkFolder:
    def __init__(self, folder: Path):
        self.folder, self.set, self.parts = folder, folder / "set", folder / "parts"

    def file(self, split: str, number: int) -> Path:
        return self.set / f"{split}-{number:05d}.tar"

    def part(self, split: str, number: int) -> Path:
        return self.parts / f"{split}-{number:05d}.part"

    def note(self, split: str, number: int, digest: str, finished: Finished) -> None:
        about = {"digest": digest, "part": self.part(split, number).stat().st_size} | finished._asdict()
        about["shard"] = finished.shard._asdict()
        write_whole(self._note(split, number), json.dumps(about).encode())

    def finished(self, split: str, number: int, digest: str) -> Finished | None:
        """The shard, if it lies there whole and was made of just these files."""
        try:
            about = json.loads(self._note(split, number).read_bytes())
            sizes = self.file(split, number).stat().st_size, self.part(split, number).stat().st_size
        except (FileNotFoundError, ValueError):
            return None
        if about["digest"] != digest or sizes != (about["shard"]["bytes"], about["part"]):
            return None
        return Finished(Shard(**about["shard"]), about["skipped"], about["encoded"])

    def forget(self, split: str, number: int) -> None:
        """Before a shard is written anew: its note would speak of the old one."""
        self._note(split, number).unlink(missing_ok=True)

    def keep_only(self, names: set[str]) -> None:
        """Remove what an earlier plan has left in the set."""
        for file in self.set.iterdir():
            if file.name not in names:
                file.unlink()

    def _note(self, split: str, number: int) -> Path:
        return self.parts / f"{split}-{number:05d}.json"


@contextmanager
def work_folder(out: Path) -> Iterator[WorkFolder | None]:
    """The folder to work in, alone; None where `out` was finished by a packer that was killed right after that.

    UserError where `out` is taken, cannot be made, or another process packs to it.
    """
    out = out.absolute()
    folder = out.with_name(f".{out.name}.unfinished")
    if out.exists() and not folder.exists():
        raise UserError(f"{out}: exists already; remove it or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); give a folder that you may write to") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is packing to it; wait for it, or give another folder") from None
        if out.exists():
            yield from _after_the_end(out, folder)
            return
        work = WorkFolder(folder)
        with disk_may_be_full(out):
            work.set.mkdir(exist_ok=True)
            work.parts.mkdir(exist_ok=True)
            yield work


def _after_the_end(out: Path, folder: Path) -> Iterator[None]:
    if (folder / "set").exists():
        raise UserError(f"{out}: exists already; remove it (or {folder}, which is unfinished), or give another folder")
    shutil.rmtree(folder)
    yield None


def finish(work: WorkFolder, out: Path) -> None:
    """The set becomes `out`: until this rename there is nothing, after it everything."""
    work.set.rename(out.absolute())
    shutil.rmtree(work.folder)
