"""`python -m ktse_dist.export --run RUN --format F --out DIR`: a run's masks in the formats of other tools.

`--format onnx --out FILE.onnx`: the segmentation network that `ktse segment` learnt from them.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ktse_dist.data.decode import BadSample
from ktse_dist.data.index import SPLITS, Index
from ktse_dist.data.pack.writer import new_dataset
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError, run_main
from ktse_dist.inference.exports import FORMATS, Labelled, Names, new_bytes
from ktse_dist.inference.mask_shards import MaskIndex
from ktse_dist.mask_work import splits
from ktse_dist.models.onnx_file import save_onnx
from ktse_dist.models.segmenter import load_segmenter
from ktse_dist.run_folder import RunFolder

log = logging.getLogger("ktse")


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    folder = RunFolder(options.run.absolute())
    config = folder.read_config()
    if options.format == "onnx":
        export_network(folder, options)
        return
    indices = [index for index in splits(config) if index.split in (options.split or SPLITS)]
    found = sum(count(folder, index) for index in indices)
    names = Names(indices[0].classes, indices[0].palette)
    with new_dataset(options.out) as unfinished:
        pictures = labelled(folder, indices, unfinished / "images" if options.pictures else None)
        FORMATS[options.format](unfinished, names, tqdm(pictures, "export", found, unit="picture"))
    print(f"exported: {found} masks as {options.format} to {options.out}")


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="ktse export", description=__doc__, allow_abbrev=False)
    whole.add_argument("--run", type=Path, required=True, help="the folder that ktse train printed")
    whole.add_argument(
        "--format", choices=[*FORMATS, "onnx"], default="png", help="default: %(default)s, in VOC's layout"
    )
    whole.add_argument("--out", type=Path, required=True, help="a folder that is not there yet; onnx: a file")
    whole.add_argument("--split", action="append", choices=SPLITS, help="only this one; may be given twice")
    whole.add_argument("--pictures", action="store_true", help="also the pictures, as images/SPLIT/KEY.jpg")
    return whole


def export_network(folder: RunFolder, options: argparse.Namespace) -> None:
    if options.split or options.pictures:
        raise UserError("--format onnx: a network has neither splits nor pictures; leave out --split and --pictures")
    if not folder.segment.model.is_file():
        raise UserError(f"{folder.segment.model}: not there; learn the network first: ktse segment --run {folder.path}")
    if options.out.suffix != ".onnx" or options.out.exists() or not options.out.absolute().parent.is_dir():
        raise UserError(f"--out {options.out}: give a new file, NAME.onnx, in a folder that is there")
    save_onnx(options.out, load_segmenter(folder.segment.model))
    print(f"exported: the network of {folder.segment.path} to {options.out}")


def count(folder: RunFolder, index: Index) -> int:
    """How many pictures have a mask; their names are checked before they name files."""
    index.check_keys()
    masks = MaskIndex(folder.masks, index)
    found = sum(map(masks.has, range(len(index))))
    if not found:
        raise UserError(f"{folder.masks}: no masks of split '{index.split}'; make them: ktse masks --run {folder.path}")
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


def copy_picture(reader: Reader, row: int, file: Path) -> None:
    """Unless it cannot be read, which its mask says, too."""
    try:
        new_bytes(file, reader.read(row, "image"))
    except BadSample as bad:
        log.warning("no picture: %s", bad)


if __name__ == "__main__":
    run_main(main)
