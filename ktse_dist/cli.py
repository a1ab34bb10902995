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
ABOUT = {
    "pack": "pictures and tags to shards: voc, coco, folder, stickers",
    "inspect": "what a packed data set holds, and whether it is whole",
    "train": "the network that finds tagged things (KTSE), on one machine or a cluster",
    "tune": "a search for settings, or a grid",
    "masks": "a run's masks: CAMs, then the CRF or IRN",
    "segment": "a network that learns from the masks and needs no tags",
    "evaluate": "scores against ground truth",
    "report": "one page of curves, scores and pictures",
    "predict": "masks of new pictures, by a run or by a network's file",
    "export": "masks as PNG, COCO, YOLO, Label Studio; the network as ONNX",
    "convert": "published weights to safetensors",
}


def dispatch(arguments: list[str]) -> None:
    """Hand the rest of the line to the verb's module; only that module is imported."""
    if not arguments or arguments[0] in ("-h", "--help"):
        verbs = "\n".join(f"  {verb:10}{about}" for verb, about in ABOUT.items())
        print(f"usage: ktse VERB ...\n\n{verbs}\n\n`ktse VERB --help` says more.")
        return
    verb, *rest = arguments
    if verb not in VERBS:
        raise UserError(f"'{verb}' is no verb; allowed are {', '.join(VERBS)}")
    importlib.import_module(VERBS[verb]).main(rest)


def main() -> None:
    run_main(dispatch, sys.argv[1:])
