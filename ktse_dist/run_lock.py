"""One command at a time works in a folder; the system frees the lock of one that is killed."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ktse_dist.errors import UserError
from ktse_dist.files import write_text

LEASE_SECONDS = 120.0  # file servers keep the locks of a machine that is lost for about 90 s

log = logging.getLogger("ktse")


@contextmanager
def alone(folder: Path, command: str) -> Iterator[None]:
    """While nobody else works there. UserError, which names the command, if somebody does.

    A lock of another machine is waited for: that may be gone, and this the start after it.
    """
    lock, owner = FileLock(folder / ".lock"), folder / ".owner"
    try:
        take(lock, owner)
    except Timeout:
        raise UserError(f"{folder}: another {command} is at work there; wait for its end") from None
    try:
        write_text(owner, socket.gethostname())
        yield
    finally:
        lock.release()


def take(lock: FileLock, owner: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        host = owner.read_text() if owner.is_file() else socket.gethostname()
        if host == socket.gethostname():
            raise
        log.info(f"{owner.parent}: {host} works there, or is lost; waiting up to {LEASE_SECONDS:.0f} s for its lock")
        lock.acquire(timeout=LEASE_SECONDS)
