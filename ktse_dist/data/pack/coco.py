"""COCO as it unpacks: annotations/instances_train2014.json and val2014, pictures in train2014/ and val2014/.

Class ids are the categories sorted by id, so 80 of them, 0 to 79. Tags are the categories of all annotations, crowds
included. Pictures without an annotation (702 of 82,783 in train2014 and 367 of 40,504 in val2014) are dropped, as most
WSSS papers do (82,081 and 40,137), or kept. For masks see coco_masks.py.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from ktse_dist.data.index import SPLITS
from ktse_dist.data.pack.coco_masks import CONVENTIONS, CocoMask
from ktse_dist.data.pack.options import add_packing, run_packing
from ktse_dist.data.pack.source import Item
from ktse_dist.errors import UserError

MOST_IN_MASKS = 254  # a mask's byte also holds the background and 255


class CocoSource:
    """Instances of both splits. convention: one of coco_masks.CONVENTIONS, None for a set without masks."""

    kind = "coco"

    def __init__(self, files: dict[str, Path], folders: dict[str, Path], convention: str | None, keep_all: bool):
        from ktse_dist.data.pack.coco_file import CocoFile, same_classes  # workers need only the masks

        self.files = {split: CocoFile(file) for split, file in files.items()}
        self.folders, self.convention, self.keep_all = folders, convention, keep_all
        names = same_classes(list(self.files.values()))
        self.ids = {category: label for label, category in enumerate(names)}
        self.classes = list(names.values())
        if convention and len(self.classes) > MOST_IN_MASKS:
            found = f"{len(self.classes)} categories; masks hold at most {MOST_IN_MASKS}"
            raise UserError(f"{files[SPLITS[0]]}: {found}; take --masks none")

    def items(self, split: str) -> Iterator[Item]:
        for name, height, width, annotations in self.files[split].pictures(annotated_only=not self.keep_all):
            labels = tuple(self.ids[category] for category, _ in annotations)
            texts = tuple(text for _, text in annotations)
            mask = CocoMask(texts, labels, height, width, self.convention) if self.convention else None
            path = self.folders[split] / name
            yield Item(name, path, tuple(sorted(set(labels))), f"coco: {path.parent.name}/{path.name}", mask)


def add_parser(kinds: argparse._SubParsersAction) -> None:
    coco = kinds.add_parser("coco", help="COCO: instances JSON, drawn as masks")
    coco.add_argument("root", type=Path, metavar="COCO", help="folder with annotations/, train2014/ and val2014/")
    add_packing(coco)
    coco.add_argument("--year", type=int, default=2014, help="2014 or 2017 (default: %(default)s)")
    coco.add_argument(
        "--masks",
        choices=(*CONVENTIONS, "none"),
        default=CONVENTIONS[0],
        help="where annotations overlap: the later in the file wins and crowds are left out (as ReCAM's masks), or the "
        "smaller wins and crowds are drawn (as coco2voc's) (default: %(default)s)",
    )
    coco.add_argument(
        "--unannotated",
        choices=("drop", "keep"),
        default="drop",
        help="pictures without any annotation (default: %(default)s: 82,081 and 40,137 of 2014's remain)",
    )
    coco.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    names = {split: f"{split}{options.year}" for split in SPLITS}
    files = {split: options.root / "annotations" / f"instances_{name}.json" for split, name in names.items()}
    folders = {split: picture_folder(options.root, name) for split, name in names.items()}
    convention = None if options.masks == "none" else options.masks
    run_packing(CocoSource(files, folders, convention, options.unannotated == "keep"), options)


def picture_folder(root: Path, name: str) -> Path:
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return folder
    raise UserError(f"{root}: neither {name} nor images/{name} is a folder there; give COCO's folder, and --year")
