"""`ktse VERB ...`: every `python -m ktse_dist.X` under one command."""

import importlib
import sys

from ktse_dist.errors import UserError, run_main

VERBS = {
    "pack": "ktse_dist.data.pack.__main__",
    "inspect": "ktse_dist.data.inspect",
    "train": "ktse_dist.train",
    "tune": "ktse_dist.tune",
    "masks": "ktse_dist.masks",
    "segment": "ktse_dist.segment",
    "evaluate": "ktse_dist.evaluate",
    "report": "ktse_dist.report",
    "predict": "ktse_dist.predict",
    "export": "ktse_dist.export",
    "convert": "ktse_dist.models.convert",
}


def dispatch(arguments: list[str]) -> None:
    """Hand the rest of the line to the verb's module; only that module is imported."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: ktse {{{','.join(VERBS)}}} ...\n\n`ktse VERB --help` says more.")
        return
    verb, *rest = arguments
    if verb not in VERBS:
        raise UserError(f"'{verb}' is no verb; allowed are {', '.join(VERBS)}")
    importlib.import_module(VERBS[verb]).main(rest)


def main() -> None:
    run_main(dispatch, sys.argv[1:])
