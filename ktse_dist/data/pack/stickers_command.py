"""`ktse pack stickers OUT`: make the embedded data set."""

import argparse
from pathlib import Path


def add_parser(kinds: argparse._SubParsersAction) -> None:
    stickers = kinds.add_parser("stickers", help="drawings of the 20 VOC classes over procedural scenes")
    stickers.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    stickers.add_argument("--train", type=int, default=1500, help="training pictures (default: %(default)s)")
    stickers.add_argument("--val", type=int, default=300, help="validation pictures (default: %(default)s)")
    stickers.add_argument("--seed", type=int, default=0, help="another seed, other pictures (default: %(default)s)")
    stickers.add_argument(
        "--workers", type=int, metavar="N", help="processes; changes only the time (default: one a CPU)"
    )
    stickers.add_argument("--preview", type=Path, help="also write a contact sheet to this PNG")
    stickers.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    # not above: worker processes import this file again, and webdataset brings torch, two seconds of each worker
    from ktse_dist.data.inspect import check_sheet
    from ktse_dist.data.pack.preview import contact_sheet
    from ktse_dist.data.pack.stickers import pack_stickers

    if options.preview:
        check_sheet(options.preview, "--preview")
    pack_stickers(options.out, options.train, options.val, options.seed, options.workers)
    if options.preview:
        contact_sheet(options.out, options.preview)
