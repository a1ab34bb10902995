"""PASCAL VOC as it unpacks: VOCdevkit/VOC2012 with lists, XML tags and palette masks, and the augmented masks of SBD.

The field trains on 10,582 pictures (train_aug) and scores on 1,449 (val). Lists hold plain names, or pairs of paths as
"/JPEGImages/x.jpg /SegmentationClassAug/x.png". Tags are the objects of the XML files, those marked difficult included,
as the published WSSS codes have it; a picture without an XML file is tagged by its mask, or by --tags.
"""

import argparse
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ktse_dist.data.decode import BadSample, decode_mask
from ktse_dist.data.pack.options import add_packing, run_packing
from ktse_dist.data.pack.source import Item, MaskFile
from ktse_dist.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
TRAIN_LISTS = ("train_aug.txt", "trainaug.txt")
MAX_TEXT = 50_000_000  # bytes of a list; an XML file is far smaller
MAX_XML = 1_000_000


class VocSource:
    """One year of a VOCdevkit. lists: file of each split; masks: folder of the masks, None for a set without any."""

    kind, classes = "voc", CLASSES

    def __init__(self, root: Path, lists: dict[str, Path], masks: Path | None, tags: Path | None = None):
        self.root, self.masks = root, masks
        self.names = {split: read_list(file, f"--{split}-list") for split, file in lists.items()}
        self.tags = read_tags(tags) if tags else {}

    def items(self, split: str) -> Iterator[Item]:
        for name, picture, mask in self.names[split]:
            file = self._mask_file(mask or f"{name}.png", paired=bool(mask))
            path = self.root / (picture or f"JPEGImages/{name}.jpg")
            yield Item(f"{name}.jpg", path, self._labels(name, file), f"voc: {name}", file)

    def _mask_file(self, mask: str, paired: bool) -> MaskFile | None:
        if self.masks is None:
            return None
        path = self.root / mask if paired else self.masks / mask
        try:
            return MaskFile.at(path)
        except OSError as error:
            mend = "give the folder that has all masks with --masks, or --masks none"
            raise UserError(f"{path}: cannot be read ({error.strerror}); {mend}") from None

    def _labels(self, name: str, mask: MaskFile | None) -> tuple[int, ...]:
        if name in self.tags:
            return self.tags[name]
        annotation = self.root / "Annotations" / f"{name}.xml"
        if annotation.is_file():
            return labels_of_xml(annotation)
        if mask is None:
            raise UserError(f"{annotation}: missing, and {name} has no mask either; give its tags with --tags FILE")
        return labels_of_mask(mask)


def labels_of_xml(file: Path) -> tuple[int, ...]:
    """Class ids of the objects, difficult or not. UserError for what is no such file, or a class that VOC lacks."""
    if file.stat().st_size > MAX_XML:
        raise UserError(f"{file}: {file.stat().st_size:,} bytes; allowed are at most {MAX_XML:,}; mend the file")
    try:
        objects = ElementTree.parse(file).getroot().findall("object")
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError, ValueError) as error:
        raise UserError(f"{file}: not XML ({error}); mend the file, or give its tags with --tags FILE") from None
    return class_ids(file, [found.findtext("name", "").strip() for found in objects])


def labels_of_mask(mask: MaskFile) -> tuple[int, ...]:
    try:
        values = np.unique(decode_mask(mask.path.read_bytes()))
    except BadSample as error:
        raise UserError(f"{mask.path}: {error}; mend the mask") from None
    return tuple(int(value) - 1 for value in values if 0 < value <= len(CLASSES))


def read_list(file: Path, option: str) -> list[tuple[str, str, str]]:
    """(name, picture, mask) of each line, sorted by name; the paths are relative, empty for a plain name."""
    rows = {}
    for line in lines_of(file, option):
        picture, mask, *more = [*line.split(), ""] if len(line.split()) == 1 else line.split()
        if more or not line.isprintable() or ".." in Path(picture).parts + Path(mask).parts:
            raise UserError(f"{file}: '{line}' is no line of a list; allowed are 'NAME' and '/PICTURE.jpg /MASK.png'")
        name = Path(picture).stem if "/" in picture else picture
        if name in rows:
            raise UserError(f"{file}: '{name}' stands there twice; remove one line")
        rows[name] = (name, picture.lstrip("/") if "/" in picture else "", mask.lstrip("/"))
    return [rows[name] for name in sorted(rows, key=lambda name: f"{name}.jpg")]


def read_tags(file: Path) -> dict[str, tuple[int, ...]]:
    """Lines of "NAME class class ..."."""
    return {name: class_ids(file, names) for name, *names in map(str.split, lines_of(file, "--tags"))}


def lines_of(file: Path, option: str) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            text = stream.read(MAX_TEXT + 1)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give one with {option} FILE") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not text in UTF-8; give a list with one name a line") from None
    if len(text) > MAX_TEXT:
        raise UserError(f"{file}: more than {MAX_TEXT:,} characters; give a list with one name a line")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def class_ids(file: Path, names: Sequence[str]) -> tuple[int, ...]:
    for name in names:
        if name not in CLASSES:
            raise UserError(f"{file}: '{name}' is no class of VOC; allowed are {', '.join(CLASSES)}; mend the file")
    return tuple(sorted({CLASSES.index(name) for name in names}))


def add_parser(kinds: argparse._SubParsersAction) -> None:
    voc = kinds.add_parser("voc", help="PASCAL VOC: VOCdevkit with XML tags and palette masks")
    voc.add_argument("root", type=Path, metavar="VOCDEVKIT", help="folder that holds VOC2012")
    add_packing(voc)
    voc.add_argument("--year", type=int, default=2012, help="which year's folder (default: %(default)s)")
    voc.add_argument("--masks", default="SegmentationClassAug", help="folder of masks, or none (default: %(default)s)")
    voc.add_argument("--train-list", type=Path, metavar="FILE", help="default: train_aug.txt or trainaug.txt")
    voc.add_argument("--val-list", type=Path, metavar="FILE", help="default: val.txt")
    voc.add_argument("--tags", type=Path, metavar="FILE", help="lines 'NAME class class'; before XML and masks")
    voc.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    root = options.root / f"VOC{options.year}"
    if not (root / "JPEGImages").is_dir():
        raise UserError(f"{root}: no folder JPEGImages there; give the folder VOCdevkit, and --year if not 2012")
    masks = None if options.masks == "none" else root / options.masks
    if masks and not masks.is_dir():
        raise UserError(f"{masks}: no such folder; give one with --masks (SegmentationClass, or none for no masks)")
    lists = {"train": options.train_list or train_list(root), "val": options.val_list or list_folder(root) / "val.txt"}
    run_packing(VocSource(root, lists, masks, options.tags), options)


def list_folder(root: Path) -> Path:
    return root / "ImageSets" / "Segmentation"


def train_list(root: Path) -> Path:
    for name in TRAIN_LISTS:
        if (list_folder(root) / name).is_file():
            return list_folder(root) / name
    raise UserError(
        f"{list_folder(root)}: neither {' nor '.join(TRAIN_LISTS)}; put the augmented list there, or give another with "
        "--train-list FILE (VOC's own train.txt has 1,464 pictures)"
    )
