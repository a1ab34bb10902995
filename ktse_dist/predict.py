"""`python -m ktse_dist.predict IMAGES... (--run RUN | --model FILE)`: masks, overlays and scores of new pictures.

--run: by the CAMs of a run; without --tags its classifier decides which classes a picture holds. --model: by the
segmentation network that ktse segment learnt, as .safetensors, or as the .onnx of ktse export. Finished pictures stay,
so the same command goes on after an interruption and adds what is new. Files that cannot be read are named at the end,
with exit status 1.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ktse_dist.config.stages import Segment
from ktse_dist.data.mask_settings import kept_settings
from ktse_dist.data.pool import WorkerDied
from ktse_dist.data.search import find_pictures
from ktse_dist.data.tag_file import read_tags
from ktse_dist.errors import Parser, UserError, run_main
from ktse_dist.evaluate import evaluated
from ktse_dist.inference.segmentation import LogitNetwork, SegmentationNetwork
from ktse_dist.mask_work import check_undamaged, inference_device, inference_network, refinement_from, trained_model
from ktse_dist.models.onnx_file import load_onnx
from ktse_dist.models.segmenter import load_segmenter
from ktse_dist.reporting.prediction_log import PredictionLog
from ktse_dist.reporting.predictions import predict, wanted
from ktse_dist.reporting.predictors import CamPredictor, NetworkPredictor
from ktse_dist.reporting.voc_results import check_classes, listed, write_results
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.checkpoint import file_digest

LARGEST = 1024  # longest side that a segmentation network works at, unless --long-side says more
PROCESSES = 2
BEYOND_TRAINING = 1.25  # larger pictures than this, times the longest side in training, are shrunk to it
SHOWN = 20  # unreadable files that are named


def main(arguments: list[str]) -> None:
    options = parser().parse_intermixed_args(arguments)
    predictor = of_network(options) if options.model else of_run(options)
    given = read_tags(options.tags, predictor.classes) if options.tags else {}
    found = [one for one in find_pictures(options.images, options.recursive) if not made_by_us(one.path, options.out)]
    if options.voc_list:
        check_classes(predictor.classes)
        found = listed(found, options.voc_list)
    if given and not any(picture.path in given for picture in found):
        raise UserError(
            f"--tags {options.tags}: names none of the {len(found)} pictures; its paths start at the folder it lies in"
        )
    log = PredictionLog(options.out, predictor.settings)
    try:
        failed = predict(predictor, wanted(found, given, log), log)
        scores = log.write_scores(failed)
        if options.voc_list and not failed:
            results = write_results(options.out, {picture.path.stem: log.name_for(picture) for picture in found})
            print(f"for VOC's test server: {len(found)} masks in {results}")
    except OSError as error:
        raise UserError(f"--out {options.out}: {error}; make room there, the same command then goes on") from None
    except WorkerDied as error:
        raise UserError(f"--processes: {error}; the same command goes on from what is finished") from None
    except torch.OutOfMemoryError as error:
        why = str(error).partition(". ")[0]
        raise UserError(f"--long-side: no room on the GPU ({why}); give a smaller one, and another --out") from error
    finally:
        log.close()
    told = f"; tags of {sum(p.path in given for p in found)} were given" if given else ""
    print(f"predicted: {len(found) - len(failed)} of {len(found)} pictures{told}\nscores: {scores}")
    if failed:
        raise SystemExit(unreadable(failed))


def made_by_us(picture: Path, out: Path) -> bool:
    """Whether it is a mask or an overlay of an earlier command, which `.` and `**` find, too."""
    return picture.is_relative_to(out.absolute())


def parser() -> Parser:
    whole = Parser(prog="ktse predict", description=__doc__)
    whole.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, or quoted patterns: 'a/**/*.jpg'")
    who = whole.add_mutually_exclusive_group(required=True)
    who.add_argument("--run", type=Path, help="the folder that ktse train printed")
    who.add_argument("--model", type=Path, metavar="FILE", help="a segmentation network: .safetensors or .onnx")
    whole.add_argument("--tags", type=Path, metavar="FILE", help="CSV or JSON lines of path,tags: use these tags")
    whole.add_argument("--out", type=Path, default=Path("predictions"), help="folder to fill (default: %(default)s)")
    about = "predict the pictures of this list alone, and make the folder for VOC's test server"
    whole.add_argument("--voc-list", type=Path, metavar="TEST.txt", help=about)
    whole.add_argument("--threshold", type=probability, metavar="P", help="probability (0 to 1) that makes a tag")
    whole.add_argument("--recursive", action="store_true", help="also the subfolders of folders")
    whole.add_argument("--long-side", type=pixels, metavar="N", help="shrink larger pictures to N pixels for the work")
    whole.add_argument("--quick", action="store_true", help="with --model: at one scale, without CRF")
    whole.add_argument("--processes", type=processes_beside, metavar="N", help="beside the network's own; 0: none")
    return whole


def bounded(option: str, kind: type, least: float, most: float, allowed: str) -> Callable[[str], Any]:
    """What argparse reads an option's value with: a number from `least` to `most`."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise UserError(f"{option}: found '{text}'; allowed is a number") from None
        if not least <= value <= most:
            raise UserError(f"{option}: found {text}; allowed {allowed}")
        return value

    return read


probability = bounded("--threshold", float, 0, 1, "is a probability from 0 to 1")
pixels = bounded("--long-side", int, 32, 8192, "are 32 to 8192 pixels")
processes_beside = bounded("--processes", int, 0, 256, "are 0 to 256")


def of_run(options: argparse.Namespace) -> CamPredictor:
    if options.quick:
        raise UserError("--quick: only with --model; with --run, masks are made as ktse masks made them")
    folder = RunFolder(options.run.absolute())
    return predictor_of(folder, options.threshold, options.long_side, options.processes)


def of_network(options: argparse.Namespace) -> NetworkPredictor:
    for name in ("tags", "threshold"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: only with --run; a segmentation network sees by itself what a picture holds")
    network, classes = network_of(options.model)
    usual = Segment()
    own = {"scales": () if options.quick else usual.scales, "crf": "none" if options.quick else usual.crf}
    own |= {"long_side": options.long_side or LARGEST, "max_pixels": usual.max_pixels}
    settings = {"model": file_digest(options.model), **own, "scales": list(own["scales"]), "classes": list(classes)}
    workers = PROCESSES if options.processes is None else options.processes
    return NetworkPredictor(network, classes, processes=workers, settings=settings, **own)


def network_of(file: Path) -> tuple[LogitNetwork, list[str]]:
    """What looks at pictures, and its classes; an ONNX file on the CPU."""
    if file.suffix == ".onnx":
        return load_onnx(file)
    if file.is_dir():
        raise UserError(f"--model {file}: a folder; give a file: of a run, {RunFolder(file).segment.model}")
    if file.is_file():
        check_undamaged(file)
    model, device = load_segmenter(file), inference_device()
    return SegmentationNetwork([network.to(device) for network in model.networks], device), model.classes


def predictor_of(
    folder: RunFolder, threshold: float | None, long_side: int | None, processes: int | None
) -> CamPredictor:
    """None: the threshold that the run's held-out tags chose, the size and processes of its masks; where they had no
    size, one near that of training."""
    config = folder.read_config()
    model = trained_model(folder.model)
    network = inference_network(model.backbone, model.head, config)
    kept, summary = kept_settings(folder.masks), evaluated(folder)
    settings = {
        "model": file_digest(folder.model),
        "refine": summary["background"]["refine"],
        "strength": summary["background"]["strength"],
        "scales": list(kept.scales),
        "resize": config.data.resize,
        "threshold": summary["tag_threshold"] if threshold is None else threshold,
        "max_pixels": kept.max_pixels,
        "long_side": long_side or kept.long_side or round(BEYOND_TRAINING * config.data.long_side[1]),
    }
    own = {key: value for key, value in settings.items() if key != "model"}
    settings["classes"] = list(model.classes)
    if settings["refine"] == "irn":
        file = folder.refinement.model
        own |= {"refinement": refinement_from(file, config.train.precision), "beta": kept.irn.beta}
        settings |= {"refinement": file_digest(file), "beta": kept.irn.beta}
    workers = config.masks.processes if processes is None else processes
    return CamPredictor(network, model.classes, processes=workers, settings=settings, **own)


def unreadable(failed: Mapping[str, str]) -> str:
    some = "; ".join(f"{path}: {why}" for path, why in list(failed.items())[:SHOWN])
    return f"ktse: {len(failed)} could not be read ({' '.join(some.split())}{'; ...' if len(failed) > SHOWN else ''})"


if __name__ == "__main__":
    run_main(main)
