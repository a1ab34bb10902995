"""`ktse pack KIND ...`: make a packed data set. Each kind's module adds its own part of the command line."""

from ktse_dist.data.pack import coco, folder, stickers_command, voc
from ktse_dist.errors import Parser, run_main

KINDS = (stickers_command, voc, coco, folder)  # light modules: every worker process imports them again


def parser() -> Parser:
    whole = Parser(prog="ktse pack", description="Make a packed data set.")
    kinds = whole.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind in KINDS:
        kind.add_parser(kinds)
    return whole


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    run_main(main)
