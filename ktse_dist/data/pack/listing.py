"""Which pictures a person's folder or table names, with which tags, and which of them are held out for validation."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ktse_dist.data.foreign import suffixes
from ktse_dist.data.index import SPLITS
from ktse_dist.data.tag_file import nearest_class, tag_rows
from ktse_dist.errors import UserError

MOST_CLASSES = 254  # a mask's byte also holds the background and 255 for pixels to ignore
RESERVED = "background"  # what is no class has this name in scores


class Picture(NamedTuple):
    """name: path below the root, parted by /. split: "" where nobody has said."""

    name: str
    tags: tuple[str, ...]
    split: str


class Listing(NamedTuple):
    """Pictures sorted by name, and how many files beside them are no pictures."""

    root: Path
    pictures: list[Picture]
    others: int


def read_tree(root: Path) -> Listing:
    """A folder a class; or train/ and val/, each with a folder a class. Folders below a class belong to it."""
    splits = SPLITS if all((root / split).is_dir() for split in SPLITS) else ("",)
    pictures, others = [], 0
    for split in splits:
        for folder in class_folders(root / split):
            files = list(files_below(folder))
            named = [file.relative_to(root).as_posix() for file in files if file.suffix.lower() in suffixes()]
            if not named:
                raise UserError(f"{folder}: no pictures in this class's folder; add some, or remove the folder")
            pictures += [Picture(name, (folder.name,), split) for name in named]
            others += len(files) - len(named)
    return Listing(root, sorted(pictures), others)


def class_folders(root: Path) -> list[Path]:
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    stray = next((entry for entry in entries if entry.is_file() and entry.suffix.lower() in suffixes()), None)
    if stray:
        raise UserError(
            f"{stray}: lies in no class's folder; move it into one, or name pictures and tags in a CSV file path,tags"
        )
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise UserError(f"{root}: no folders in it; give one folder a class, or a CSV file path,tags")
    return folders


def files_below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(where, file) for file in files if not file.startswith("."))


def read_table(file: Path, root: Path) -> Listing:
    """CSV or JSON lines with path, tags and perhaps split. Paths start at `root` and never leave it."""
    pictures: dict[str, Picture] = {}
    for row in tag_rows(file, str(file)):
        where = f"{file}, line {row.line}"
        name = Path(os.path.relpath(os.path.abspath(root / row.path), os.path.abspath(root))).as_posix()
        if name.startswith("../") or not (root / name).is_file():
            what = "leaves it" if name.startswith("../") else "is no file there"
            raise UserError(f"{where}: '{row.path}' {what}; paths start at {root}, or at --root DIR")
        if row.split not in ("", *SPLITS):
            raise UserError(f"{where}: split '{row.split}'; allowed are {', '.join(SPLITS)}, or no such column")
        picture = Picture(name, tuple(sorted(set(row.tags))), row.split)
        if pictures.setdefault(name, picture) != picture:
            raise UserError(f"{where}: '{row.path}' has other tags in an earlier line; keep one of them")
    if not pictures:
        raise UserError(f"{file}: no line with a picture; write path,tags and below it one picture a line")
    return Listing(root, sorted(pictures.values()), 0)


def class_names(listing: Listing, given: Sequence[str]) -> list[str]:
    """The classes in their order: as given, else sorted. UserError for a tag that is not given, or no class at all."""
    found = Counter(tag for picture in listing.pictures for tag in picture.tags)
    for name in found if given else ():
        if name not in given:
            raise UserError(f"--classes: '{name}' of {listing.root} is not among them; {nearest_class(name, given)}")
    names = list(given) or sorted(found)
    if len(set(names)) != len(names):
        raise UserError(f"--classes: '{Counter(names).most_common(1)[0][0]}' stands there twice; name each class once")
    if not 1 <= len(names) <= MOST_CLASSES:
        raise UserError(f"{listing.root}: {len(names)} classes; allowed are 1 to {MOST_CLASSES}; check the tags")
    for name in names:
        if name == RESERVED or not name.isprintable():
            raise UserError(f"{listing.root}: a class cannot be called {name!r}; rename it")
    return names


def with_splits(listing: Listing, share: float) -> Listing:
    """Every picture with its split: the one that was said, else `share` of each class is held out as val."""
    said = [picture for picture in listing.pictures if picture.split]
    if said:
        silent = next((picture for picture in listing.pictures if not picture.split), None)
        if silent:
            raise UserError(f"{listing.root}: '{silent.name}' has no split, others have; give all of them one, or none")
        return listing
    chosen = held_out(listing.pictures, share)
    splits = {True: "val", False: "train"}
    return listing._replace(pictures=[each._replace(split=splits[each.name in chosen]) for each in listing.pictures])


def held_out(pictures: Sequence[Picture], share: float) -> set[str]:
    """Names of `share` of each class's pictures, the rarest class first, drawn by hashes of names.

    Of a class of two or more, one picture at least is held out and one stays; untagged ones count as a class.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        for tag in picture.tags or ("",):
            names[tag].append(picture.name)
    chosen: set[str] = set()
    for _, own in sorted(names.items(), key=lambda each: (len(each[1]), each[0])):
        wanted = min(len(own) - 1, max(1, round(share * len(own))))
        rest = sorted(
            set(own) - chosen, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        )
        chosen.update(rest[: max(0, wanted - len(chosen.intersection(own)))])
    return chosen


def drawn(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
