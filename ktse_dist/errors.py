"""The one exception that means "the user can mend this", and how entry points show it."""

import argparse
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

# nothing that a program can mend: the place, or another thing that lies there
FULL_OR_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
TAKEN = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
TOO_LONG = (errno.ENAMETOOLONG,)
OF_THE_PLACE = dict.fromkeys(FULL_OR_CLOSED, "give permission or make room there")
OF_THE_PLACE |= dict.fromkeys(TAKEN, "move away what lies there")
OF_THE_PLACE |= dict.fromkeys(TOO_LONG, "give it a shorter name")
STOPPED = 143  # exit status: what a shell reports for a process that SIGTERM ended


class UserError(Exception):
    """One line: the key or file, what was found, what is allowed, and the mend."""


class Parser(argparse.ArgumentParser):
    """Arguments that are wrong are a UserError, too, and no option is abbreviated."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help tells what is allowed")


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is Ctrl-C: what is half-written goes away on the way out."""


def run_main(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Call an entry point; a UserError becomes `ktse: ...` on stderr and exit status 2, Ctrl-C exit status 130, SIGTERM
    143 where no training handles it.

    A place that may not be written to, is full or taken is the user's to mend as well.
    Where nobody reads the output any more, as after `| head`, it ends quietly with 141, as shells say SIGPIPE.
    `--debug` anywhere on the command line shows the traceback instead.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        # progress shows at once in a log file, too; a name that the terminal cannot show is no reason to stop
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    asked_to_stop = signal.signal(signal.SIGTERM, terminate)
    try:
        main([a for a in arguments if a != "--debug"])
    except UserError as error:
        if debug:
            raise
        print(f"ktse: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("ktse: interrupted; the same command goes on from what is finished", file=sys.stderr)
        raise SystemExit(130) from None
    except Terminated:
        print("ktse: stopped; the same command goes on from what is finished", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except BrokenPipeError:
        if debug or not nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        raise SystemExit(141) from None
    except OSError as error:
        if debug or error.errno not in OF_THE_PLACE:
            raise
        mend = f"{OF_THE_PLACE[error.errno]}, the same command then goes on"
        print(f"ktse: {error.filename or 'the disk'}: {error.strerror}; {mend}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        signal.signal(signal.SIGTERM, asked_to_stop)


def terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose other end is closed; the broken pipe may also be another one."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    return bool(watched.poll(0))
