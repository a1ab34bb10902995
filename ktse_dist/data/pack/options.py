"""What every kind of `ktse pack` has in common on the command line."""

import argparse
from pathlib import Path

from ktse_dist.data.pack.source import Source


def add_packing(parser: argparse.ArgumentParser) -> None:
    """The folder to make, and how."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes; changes only the time (default: one a CPU)"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out what cannot be used, and list it in OUT/skipped.txt"
    )


def run_packing(source: Source, options: argparse.Namespace) -> None:
    # not above: worker processes import this file again, and webdataset brings torch, two seconds of each worker
    from ktse_dist.data.pack.engine import pack

    packed = pack(source, options.out, options.workers, skip_bad=options.skip_bad)
    if packed is None:
        print(f"{options.out}: was finished already")
        return
    counts = " and ".join(f"{count:,} {split}" for split, count in packed.samples.items())
    print(f"{options.out}: {counts} pictures; {packed.encoded:,} encoded anew, {packed.skipped:,} left out")
