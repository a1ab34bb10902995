"""The one exception that means "the user can mend this", and how entry points show it."""

import io
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """One line: the key or file, what was found, what is allowed, and the mend."""


def run_main(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Call an entry point; a UserError becomes `ktse: ...` on stderr and exit status 2, Ctrl-C exit status 130.

    `--debug` anywhere on the command line shows the traceback instead.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress shows at once in a log file, too
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
