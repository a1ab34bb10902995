"""A folder of at most so many bytes, shared by the processes of a node.

A file appears under its name when it is whole and checked, and never changes. What was used least recently makes room.
Locks are the kernel's (flock), so those of a process that died are free at once.
"""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from ktse_dist.config.data import Cache as Settings
from ktse_dist.errors import UserError

GIGABYTE = 10**9
SET = re.compile(r"[0-9a-f]{64}")  # folders of ours: whatever else lies in the cache's folder is somebody's
PART = ".part"  # of a file that is on its way; as long as the whole from the start, so that its room is taken
POLL = 0.1  # seconds

Fill = Callable[[BinaryIO], None]


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ktse"


@dataclass(frozen=True)
class Cache:
    """Files in folders of `folder`. limit: bytes of all of them together; deadline: seconds to wait for room."""

    folder: Path
    limit: int
    deadline: float

    @classmethod
    def of(cls, settings: Settings) -> "Cache":
        folder = (settings.folder or default_folder()).expanduser().absolute()
        return cls(folder, int(settings.gigabytes * GIGABYTE), settings.deadline)

    def find(self, file: Path) -> BinaryIO | None:
        """The file, opened, and marked as used now; stays readable where it makes room for another one meanwhile."""
        try:
            stream = file.open("rb")
        except FileNotFoundError:
            return None
        mark_used(stream)
        return stream

    def obtain(self, file: Path, size: int, fill: Fill, wait: bool = True) -> BinaryIO | None:
        """The file, opened; where it is not there, `fill` writes it, at most `size` bytes, in one process of the node.

        None, without `wait`, while another process is at it.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock_of(file), blocking=wait):
                return self.find(file) or self._fill(file, size, fill)
        except Timeout:
            return None
        except OSError as error:
            raise UserError(
                f"data.cache.folder: {self.folder}: {error.strerror or error}; give a folder with room for "
                f"data.cache.gigabytes={self.limit / GIGABYTE:g} that you may write to"
            ) from None

    def _fill(self, file: Path, size: int, fill: Fill) -> BinaryIO:
        stream = self._reserve(file, size)
        part = Path(stream.name)
        try:
            fill(stream)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())  # or a power cut leaves a file of zeros under the name of a checked one
            mark_used(stream)
            part.rename(file)
        except BaseException:
            stream.close()
            part.unlink(missing_ok=True)
            raise
        return stream

    def _reserve(self, file: Path, size: int) -> BinaryIO:
        """An empty part of `size` bytes, once there is room for it. Others' parts are finished sooner or later."""
        part = file.with_name(file.name + PART)
        part.unlink(missing_ok=True)  # left by a process that died: we hold its lock
        if size > self.limit:
            raise UserError(
                f"data.cache.gigabytes: {self.limit / GIGABYTE:g}, too few for {file.name}, which may have "
                f"{size / GIGABYTE:g}; raise it"
            )
        last = time.monotonic() + self.deadline
        while time.monotonic() < last:
            with FileLock(self.folder / ".lock"):
                if self._make_room(size, file.parent):
                    return new_part(part, size)
            time.sleep(POLL)
        raise UserError(
            f"data.cache.gigabytes: {self.limit / GIGABYTE:g}, too few for {file.name} ({size / GIGABYTE:g}) beside "
            f"what other processes fetch into {self.folder}; raise it"
        )

    def _make_room(self, size: int, owner: Path) -> bool:
        """Remove what was used longest ago until `size` bytes fit, save the indexes of the data set `owner`."""
        files = sorted(used(self.folder))
        total = sum(size for _, size, _ in files)
        for _, length, path in files:
            if total + size <= self.limit:
                break
            if path.suffix == ".tar" or (path.suffix == PART and is_abandoned(path)) or is_other_index(path, owner):
                path.unlink(missing_ok=True)
                total -= length
        return total + size <= self.limit


def new_part(part: Path, size: int) -> BinaryIO:
    stream = part.open("w+b")
    try:
        stream.truncate(size)
    except OSError:
        part.unlink()
        stream.close()
        raise
    return stream


def mark_used(stream: BinaryIO) -> None:
    now = time.time_ns()  # the file system's own clock has ticks of milliseconds
    with suppress(OSError):  # another user's file, or a disk that is only read
        os.utime(stream.fileno(), ns=(now, now))


def used(folder: Path) -> list[tuple[int, int, Path]]:
    """(time of last use, bytes, path) of every file; others may come and go meanwhile."""
    found = []
    for own in (path for path in folder.iterdir() if SET.fullmatch(path.name)):
        for path in own.glob("[!.]*"):  # locks have dots
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
    return found


def lock_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.lock")


def is_abandoned(part: Path) -> bool:
    """Whether the process that filled a part is gone: then its lock is free."""
    try:
        with FileLock(lock_of(part.with_suffix("")), blocking=False):
            return True
    except Timeout:
        return False


def is_other_index(path: Path, owner: Path) -> bool:
    return path.parent != owner and path.suffix in (".index", ".json", ".md")
