"""Anybody's pictures: a folder a class, or a table of paths and tags, with masks or without.

A mask is a PNG at the picture's own path below --masks: 0 background, class + 1 in the order of the classes, 255
ignored. Pictures without one are fine, as are pictures without tags.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ktse_dist.data.pack.listing import Listing, check_held_out, class_names, read_table, read_tree, with_splits
from ktse_dist.data.pack.mask_folder import MaskFolder
from ktse_dist.data.pack.options import add_packing, run_packing
from ktse_dist.data.pack.source import Item
from ktse_dist.data.pack.tree import passed_over
from ktse_dist.data.tag_file import cleaned
from ktse_dist.errors import UserError

TABLES = (".csv", ".jsonl", ".json", ".ndjson")


class FolderSource:
    """A listing whose pictures all have a split. masks: None for a set without any."""

    kind = "folder"

    def __init__(self, listing: Listing, classes: list[str], masks: MaskFolder | None):
        self.root, self.pictures, self.classes, self.masks = listing.root, listing.pictures, classes, masks
        self._ids = {name: place for place, name in enumerate(classes)}

    def items(self, split: str) -> Iterator[Item]:
        for name, tags, own_split in self.pictures:
            if own_split == split:
                labels = tuple(sorted(self._ids[tag] for tag in tags))
                mask = self.masks.of(name) if self.masks else None
                yield Item(name, self.root / name, labels, f"folder: {name}", mask)


def add_parser(kinds: argparse._SubParsersAction) -> None:
    folder = kinds.add_parser("folder", help="your own pictures: a folder a class, or a CSV / JSONL file path,tags")
    folder.add_argument("source", type=Path, metavar="SOURCE", help="folder of folders, or a table of paths and tags")
    add_packing(folder)
    folder.add_argument("--val", type=float, default=0.1, help="share of each class that is held out (default: 0.1)")
    folder.add_argument("--masks", type=Path, metavar="DIR", help="PNG masks at the pictures' own paths")
    folder.add_argument("--classes", default="", metavar="A,B,...", help="the classes in their order (default: sorted)")
    folder.add_argument("--root", type=Path, metavar="DIR", help="where a table's paths start (default: its folder)")
    folder.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if not 0 < options.val < 1:
        raise UserError(f"--val: found {options.val}; allowed is a share between 0 and 1, such as 0.1")
    if options.masks and not options.masks.is_dir():
        raise UserError(f"--masks {options.masks}: no such folder; give the one that the masks lie in")
    listing = with_splits(read(options.source, options.root), options.val)
    classes = class_names(listing, cleaned(options.classes.split(",")))
    check_held_out(listing)
    masks = MaskFolder(options.masks) if options.masks else None
    if masks:  # a table may well leave pictures out whose masks are there
        masks.check([picture.name for picture in listing.pictures], every=options.source.is_dir())
    source = FolderSource(listing, classes, masks)
    print(overview(source, listing))
    run_packing(source, options)


def read(source: Path, root: Path | None) -> Listing:
    if source.is_dir():
        if root:
            raise UserError(f"--root {root}: is for tables only, and {source} is a folder; leave it out")
        return read_tree(source)
    if not source.is_file() or source.suffix.lower() not in TABLES:
        raise UserError(
            f"{source}: neither a folder nor a table; give a folder a class, or a CSV / JSONL file path,tags"
        )
    return read_table(source, root or source.parent)


def overview(source: FolderSource, listing: Listing) -> str:
    """What was found, before hours go into it."""
    counts = Counter(tag for picture in listing.pictures for tag in picture.tags)
    untagged = sum(not picture.tags for picture in listing.pictures)
    told = [f"{len(listing.pictures):,} pictures: " + ", ".join(f"{name} {counts[name]:,}" for name in source.classes)]
    told += [f"{untagged:,} without a tag"] if untagged else []
    told += [passed_over(listing.others)] if listing.others else []
    told += [f"{source.masks.count([each.name for each in listing.pictures]):,} masks"] if source.masks else []
    return "; ".join(told)
