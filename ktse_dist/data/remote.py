"""Bytes of files at an address: each request bounded in length and time, and tried again up to a deadline.

Credentials, endpoints and proxies come from the environment, as fsspec and its packages read them: no key of a config
holds them.
"""

import functools
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ktse_dist.errors import UserError

log = logging.getLogger("ktse")

SILENCE = 30.0  # seconds without a byte until a request is given up and made again
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds between two attempts
FINAL = (FileNotFoundError, PermissionError, ValueError)  # ValueError: wrong addresses, refused answers
FINAL_NAMES = {  # of botocore and aiohttp
    "NoCredentialsError", "ProfileNotFound", "ParamValidationError", "ClientConnectorCertificateError",
}  # fmt: skip
PASSING = (408, 425, 429)  # the only statuses below 500 after which another attempt may help
PART, PARTS_AT_ONCE = 16 << 20, 2  # bytes of a large file that travel as one part, and how many do at a time
# an address in a message: its password and query, which may hold a token, are left out
SECRET = re.compile(r"(\w+://)(?:[^\s/@]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


class NoRanges(ValueError):
    """A server that sends whole files only."""


class NotThere(UserError):
    """A file that is not at its address, or that we may not read."""


@dataclass(frozen=True)
class Remote:
    """A folder of files at `url`. deadline: seconds without an answer until UserError."""

    url: str
    deadline: float

    def __str__(self) -> str:
        return self.url

    def read(self, name: str, start: int, end: int, waiting_since: float | None = None) -> bytes:
        """Bytes [start, end) of a file, fewer if it ends before. UserError for what another attempt cannot mend.

        waiting_since: a time.monotonic() from which the deadline counts, if that was before this call.
        """
        address = f"{self.url}/{name}"
        files = file_system(self.url.partition("://")[0], self.deadline)
        call = functools.partial(files.cat_file, address, start=start, end=end, timeout=self.deadline)
        return persist(call, address, self.deadline, "data.cache.deadline", waiting_since)


def persist(
    call: Callable[[], Any], address: str, deadline: float, key: str, waiting_since: float | None = None
) -> Any:
    """What `call` gives, tried for `deadline` seconds; UserError, naming the `key` of the deadline, where it fails."""
    since = waiting_since or time.monotonic()
    for number, wait in enumerate(waits()):
        try:
            return call()
        except Exception as error:  # every protocol has its own kinds
            if is_final(error):
                kind = NotThere if is_absent(error) else UserError
                raise kind(f"{address}: {reason(error)}; {mend(error)}") from None
            if time.monotonic() + wait > since + deadline:
                raise UserError(
                    f"{address}: no answer for {deadline:g} s ({reason(error)}); see to the server and "
                    f"run the same command again, or raise {key}"
                ) from None
            if number == 0:
                log.warning(f"{address}: {reason(error)}; trying for {deadline:g} s")
        time.sleep(wait)
    raise AssertionError("waits() has no end")


def waits() -> Iterator[float]:
    """Seconds between attempts, doubling; drawn, so that many nodes do not come back at the same moment."""
    longest = FIRST_WAIT
    while True:
        yield random.uniform(longest / 2, longest)
        longest = min(2 * longest, LONGEST_WAIT)


def is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)  # aiohttp's name for it
    refused = isinstance(status, int) and 300 <= status < 500 and status not in PASSING
    return refused or isinstance(error, FINAL) or type(error).__name__ in FINAL_NAMES


def is_absent(error: Exception) -> bool:
    """Stores forbid what is not there to whoever may not list the folder."""
    return isinstance(error, FileNotFoundError | PermissionError) or getattr(error, "status", None) in (403, 404, 410)


def mend(error: Exception) -> str:
    if getattr(error, "status", None) == 416:  # it ends before the first byte that was asked for
        return "the copy there is cut short: upload the whole data set again"
    if isinstance(error, NoRanges):
        return "serve it with one that knows them, as nginx does and Python's http.server does not"
    return "see to the address and its access rights"


def reason(error: Exception) -> str:
    """One short line."""
    if isinstance(error, FileNotFoundError):
        return "not there"
    return SECRET.sub(r"\1\2", " ".join(str(error).split()))[:200] or type(error).__name__


@functools.cache
def file_system(scheme: str, deadline: float) -> Any:
    """fsspec's file system of one protocol; one a process, as each has its own connections."""
    silence = min(SILENCE, deadline)
    try:
        import fsspec

        if scheme == "s3":
            timeouts = {"connect_timeout": silence, "read_timeout": silence, "retries": {"max_attempts": 1}}
            return fsspec.filesystem(
                "s3", config_kwargs=timeouts, default_block_size=PART, max_concurrency=PARTS_AT_ONCE
            )
        if scheme == "gs":
            return fsspec.filesystem("gs")
        from ktse_dist.data.http_session import session

        return fsspec.filesystem(scheme, get_client=functools.partial(session, silence))
    except ImportError as error:
        extra = "gs" if scheme == "gs" else "remote"
        raise UserError(
            f"{scheme}:// needs {PACKAGES[scheme]}, not installed here ({error}); pip install 'ktse_dist[{extra}]'"
        ) from None
