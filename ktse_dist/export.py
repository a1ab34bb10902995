"""`python -m ktse_dist.export (--run RUN | --predictions DIR) --format F --out DIR`: masks in other tools' formats.

--run: a run's masks of its data set. --predictions: what ktse predict left in its folder.
`--run RUN --format onnx --out FILE.onnx`: the segmentation network that `ktse segment` learnt.
"""

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ktse_dist.data.decode import BadSample
from ktse_dist.data.index import SPLITS, Index
from ktse_dist.data.mask_settings import masks_command
from ktse_dist.data.mask_shards import MaskIndex, is_whole_png
from ktse_dist.data.pack.picture import upright_jpeg
from ktse_dist.data.pack.writer import new_dataset
from ktse_dist.data.palette import voc_palette
from ktse_dist.data.reader import Reader
from ktse_dist.errors import Parser, UserError, run_main
from ktse_dist.inference.exports import FORMATS, Labelled, Names, new_bytes
from ktse_dist.mask_work import check_undamaged, other_masks, splits
from ktse_dist.models.onnx_file import save_onnx
from ktse_dist.models.segmenter import load_segmenter
from ktse_dist.reporting.prediction import mask_file
from ktse_dist.reporting.prediction_log import Predictions, read_scores
from ktse_dist.run_folder import RunFolder

log = logging.getLogger("ktse")

PREDICTED = "predicted"  # what stands for the split of pictures that belong to no data set


class Source(NamedTuple):
    """Masks to give away. labelled: one after the other; the pictures go into its argument, if that is a folder."""

    names: Names
    count: int
    labelled: Callable[[Path | None], Iterator[Labelled]]


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    if options.format == "onnx":
        export_network(options)
        return
    source = of_predictions(options) if options.predictions else of_run(options)
    with new_dataset(options.out) as unfinished:
        pictures = source.labelled(unfinished / "images" if options.pictures else None)
        FORMATS[options.format](unfinished, source.names, tqdm(pictures, "export", source.count, unit="picture"))
    print(f"exported: {source.count} masks as {options.format} to {options.out}")


def parser() -> Parser:
    whole = Parser(prog="ktse export", description=__doc__)
    whose = whole.add_mutually_exclusive_group(required=True)
    whose.add_argument("--run", type=Path, help="the folder that ktse train printed")
    whose.add_argument("--predictions", type=Path, metavar="DIR", help="the --out of ktse predict")
    whole.add_argument(
        "--format", choices=[*FORMATS, "onnx"], default="png", help="default: %(default)s, in VOC's layout"
    )
    whole.add_argument("--out", type=Path, required=True, help="a folder that is not there yet; onnx: a file")
    whole.add_argument("--split", action="append", choices=SPLITS, help="only this one; may be given twice")
    whole.add_argument("--pictures", action="store_true", help="also the pictures, as images/SPLIT/KEY.jpg")
    return whole


def export_network(options: argparse.Namespace) -> None:
    if options.predictions:
        raise UserError("--format onnx: predictions hold masks, no network; give --run")
    folder = RunFolder(options.run.absolute())
    folder.read_config()  # says so where this is no run
    if options.split or options.pictures:
        raise UserError("--format onnx: a network has neither splits nor pictures; leave out --split and --pictures")
    if not folder.segment.model.is_file():
        raise UserError(f"{folder.segment.model}: not there; learn the network first: ktse segment --run {folder.path}")
    if options.out.suffix != ".onnx" or options.out.exists() or not options.out.absolute().parent.is_dir():
        raise UserError(f"--out {options.out}: give a new file, NAME.onnx, in a folder that is there")
    check_undamaged(folder.segment.model)
    save_onnx(options.out, load_segmenter(folder.segment.model))
    print(f"exported: the network of {folder.segment.path} to {options.out}")
    if others := other_masks(folder):
        log.warning("%s", others)


def of_run(options: argparse.Namespace) -> Source:
    folder = RunFolder(options.run.absolute())
    indices = [index for index in splits(folder.read_config()) if index.split in (options.split or SPLITS)]
    found = sum(count(folder, index) for index in indices)
    return Source(Names(indices[0].classes, indices[0].palette), found, partial(labelled, folder, indices))


def of_predictions(options: argparse.Namespace) -> Source:
    if options.split:
        raise UserError("--split: predicted pictures belong to no split; leave it out")
    found = read_scores(options.predictions)
    names = Names(found.classes, voc_palette(len(found.classes) + 1))
    return Source(names, len(found.paths), partial(predicted, options.predictions, found))


def count(folder: RunFolder, index: Index) -> int:
    """How many pictures have a mask; their names are checked before they name files."""
    index.check_keys()
    masks = MaskIndex(folder.masks, index)
    found = sum(map(masks.has, range(len(index))))
    if not found:
        raise UserError(f"{folder.masks}: no masks of split '{index.split}'; make them: {masks_command(folder.masks)}")
    return found


def labelled(folder: RunFolder, indices: list[Index], images: Path | None) -> Iterator[Labelled]:
    """Every mask of the run, a split after the other; its picture is copied into `images` on the way."""
    for index in indices:
        masks, reader = MaskIndex(folder.masks, index), Reader(index)
        for row in filter(masks.has, range(len(index))):
            key = index.key(row)
            if images:
                copy_picture(reader, row, images / index.split / f"{key}.jpg")
            source = str(json.loads(reader.read(row, "json")).get("source", ""))
            yield Labelled(index.split, key, source, masks.read(row, "mask"))


def predicted(folder: Path, predictions: Predictions, images: Path | None) -> Iterator[Labelled]:
    """Every mask that ktse predict made, under the picture's name."""
    for name, path in predictions.paths.items():
        file = folder / mask_file(name)
        content = file.read_bytes() if file.is_file() else b""
        if not is_whole_png(content):
            raise UserError(f"{file}: damaged or not there; delete it and give the same ktse predict again")
        try:
            if images:
                new_bytes(images / PREDICTED / f"{name}.jpg", upright_jpeg(path.read_bytes())[0])
        except (FileNotFoundError, BadSample) as error:
            mend = "bring it back, or leave --pictures out"
            raise UserError(f"--pictures: {path} cannot be read ({error}); {mend}") from None
        yield Labelled(PREDICTED, name, str(path), content)


def copy_picture(reader: Reader, row: int, file: Path) -> None:
    """Unless it cannot be read, which its mask says, too."""
    try:
        new_bytes(file, reader.read(row, "image"))
    except BadSample as bad:
        log.warning("no picture: %s", bad)


if __name__ == "__main__":
    run_main(main)
