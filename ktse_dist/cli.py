"""`ktse VERB ...`: every `python -m ktse_dist.X` under one command."""

import importlib
import sys
from difflib import get_close_matches
from typing import NamedTuple

from ktse_dist.errors import UserError, run_main


class Verb(NamedTuple):
    module: str
    about: str


VERBS = {
    "pack": Verb("ktse_dist.data.pack.__main__", "pictures and tags to shards: voc, coco, folder, stickers"),
    "inspect": Verb("ktse_dist.data.inspect", "what a packed data set holds, and whether it is whole"),
    "train": Verb("ktse_dist.train", "the network that finds tagged things (KTSE), on one machine or a cluster"),
    "tune": Verb("ktse_dist.tune", "a search for settings, or a grid"),
    "masks": Verb("ktse_dist.masks", "a run's masks: CAMs, then the CRF or IRN"),
    "segment": Verb("ktse_dist.segment", "a network that learns from the masks and needs no tags"),
    "evaluate": Verb("ktse_dist.evaluate", "scores against ground truth"),
    "report": Verb("ktse_dist.report", "one page of curves, scores and pictures"),
    "predict": Verb("ktse_dist.predict", "masks of new pictures, by a run or by a network's file"),
    "export": Verb("ktse_dist.export", "masks of a run, or predicted ones, for other tools; the network as ONNX"),
    "convert": Verb("ktse_dist.models.convert", "published weights to safetensors"),
}


def dispatch(arguments: list[str]) -> None:
    """Hand the rest of the line to the verb's module; only that module is imported."""
    if not arguments or arguments[0] in ("-h", "--help"):
        verbs = "\n".join(f"  {name:10}{verb.about}" for name, verb in VERBS.items())
        print(f"usage: ktse VERB ...\n\n{verbs}\n\n`ktse VERB --help` says more. --debug shows an error's traceback.")
        return
    verb, *rest = arguments
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, n=1)
        mend = f"did you mean '{close[0]}'?" if close else f"it comes first, and allowed are {', '.join(VERBS)}"
        raise UserError(f"'{verb}' is no verb; {mend}")
    importlib.import_module(VERBS[verb].module).main(rest)


def main() -> None:
    run_main(dispatch, sys.argv[1:])
