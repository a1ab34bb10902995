"""Which pictures a person's folder or table names, with which tags, and which of them are held out for validation."""

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ktse_dist.data.foreign import suffixes
from ktse_dist.data.index import SPLITS
from ktse_dist.data.pack import tree
from ktse_dist.data.tag_file import nearest_class, tag_rows
from ktse_dist.errors import UserError

MOST_CLASSES = 254  # a mask's byte also holds the background and 255 for pixels to ignore
RESERVED = "background"  # what is no class has this name in scores
LONGEST_TOLD = 200  # characters of a path that nobody has checked
SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "dev"}  # other people's names of splits


class Picture(NamedTuple):
    """name: path below the root, parted by /. split: "" where nobody has said."""

    name: str
    tags: tuple[str, ...]
    split: str


class Listing(NamedTuple):
    """Pictures sorted by name, and the kinds of the files beside them that are no pictures."""

    root: Path
    pictures: list[Picture]
    others: Counter[str]


def read_tree(root: Path) -> Listing:
    """A folder a class; or train/ and val/, each with a folder a class. Folders below a class belong to it."""
    split_by_folder = all((root / split).is_dir() for split in SPLITS)
    if not split_by_folder:
        check_split_words(class_folders(root))
    folders = {
        folder: split for split in (SPLITS if split_by_folder else ("",)) for folder in class_folders(root / split)
    }
    pictures, others = [], Counter(map(tree.kind_of, tree.entries_below(root, but=folders)))
    for folder, split in folders.items():
        tree.check_inside(folder, root)
        files, more = tree.pictures_below(folder, root)
        if not files:
            found = f" ({tree.passed_over(more)})" if more else ""
            raise UserError(f"{folder}: no pictures in this class's folder{found}; add some, or remove the folder")
        pictures += [Picture(file.relative_to(root).as_posix(), (folder.name,), split) for file in files]
        others += more
    return Listing(root, sorted(pictures), others)


def check_split_words(folders: Sequence[Path]) -> None:
    """UserError for folders that are splits by their names, but not by those that are known here."""
    if all(folder.name.lower() in SPLIT_WORDS for folder in folders):
        found = ", ".join(folder.name for folder in folders)
        raise UserError(
            f"{folders[0].parent}: its folders ({found}) look like splits; call them train and val, "
            "or give the one folder whose folders are the classes"
        )


def class_folders(root: Path) -> list[Path]:
    entries = sorted(Path(entry.path) for entry in tree.listed(root))
    stray = next((entry for entry in entries if entry.is_file() and entry.suffix.lower() in suffixes()), None)
    if stray:
        raise UserError(
            f"{stray}: lies in no class's folder; move it into one, or name pictures and tags in a CSV file path,tags"
        )
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise UserError(f"{root}: no folders in it; give one folder a class, or a CSV file path,tags")
    return folders


def read_table(file: Path, root: Path) -> Listing:
    """CSV or JSON lines with path, tags and perhaps split. Paths start at `root` and never leave it."""
    pictures: dict[str, Picture] = {}
    real_root = os.path.realpath(root)
    for row in tag_rows(file, str(file)):
        where = f"{file}, line {row.line}"
        name = Path(os.path.relpath(os.path.abspath(root / row.path), os.path.abspath(root))).as_posix()
        if wrong := why_not_there(root / name, name, real_root):
            raise UserError(f"{where}: '{row.path[:LONGEST_TOLD]}' {wrong}; paths start at {root}, or at --root DIR")
        if row.split not in ("", *SPLITS):
            raise UserError(f"{where}: split '{row.split}'; allowed are {', '.join(SPLITS)}, or no such column")
        if comma := next((tag for tag in row.tags if "," in tag), None):
            raise UserError(f"{where}: the tag '{comma}' has a comma; part tags by ;")
        picture = Picture(name, tuple(sorted(set(row.tags))), row.split)
        if pictures.setdefault(name, picture) != picture:
            raise UserError(f"{where}: '{row.path}' has other tags in an earlier line; keep one of them")
    if not pictures:
        raise UserError(f"{file}: no line with a picture; write path,tags and below it one picture a line")
    return Listing(root, sorted(pictures.values()), Counter())


def why_not_there(path: Path, name: str, real_root: str) -> str:
    """What is wrong with a table's path, of which nothing is known; "" for a file below the root."""
    if name.startswith("../"):
        return "leaves it"
    if not os.path.isfile(path):  # False, too, for names that no file can have
        return "is no file there"
    return "" if tree.is_inside(path, real_root) else "leaves it through a link"


def class_names(listing: Listing, given: Sequence[str]) -> list[str]:
    """The classes in their order: as given, else sorted. UserError for a tag that is not given, or no class at all."""
    found = Counter(tag for picture in listing.pictures for tag in picture.tags)
    for name in found if given else ():
        if name not in given:
            raise UserError(f"--classes: '{name}' of {listing.root} is not among them; {nearest_class(name, given)}")
    names = list(given) or sorted(found)
    if len(set(names)) != len(names):
        raise UserError(f"--classes: '{Counter(names).most_common(1)[0][0]}' stands there twice; name each class once")
    if not 2 <= len(names) <= MOST_CLASSES:
        told = f"{len(names)} classes" if len(names) != 1 else f"one class ('{names[0]}')"
        raise UserError(f"{listing.root}: {told}; allowed are 2 to {MOST_CLASSES}; check the tags")
    for name in names:
        if not name or name != name.strip() or name == RESERVED or not name.isprintable():
            raise UserError(f"{listing.root}: a class cannot be called {name!r}; rename it")
    for one, other in itertools.pairwise(sorted(found, key=str.casefold)):
        if one.casefold() == other.casefold():
            raise UserError(
                f"{listing.root}: the classes '{one}' and '{other}' differ in case only; call both the same"
            )
    check_trained(listing, found)
    return names


def check_trained(listing: Listing, found: Counter[str]) -> None:
    """UserError for a class that only pictures of val have."""
    trained = {tag for picture in listing.pictures if picture.split != "val" for tag in picture.tags}
    for name in found:
        if name not in trained:
            raise UserError(f"{listing.root}: '{name}' has pictures in val only; move some of them to train")


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


def check_held_out(listing: Listing) -> None:
    """UserError where nothing is left for val."""
    if all(picture.split != "val" for picture in listing.pictures):
        raise UserError(
            f"{listing.root}: no picture in val; two or more pictures of each class are needed to hold one out"
        )


def held_out(pictures: Sequence[Picture], share: float) -> set[str]:
    """Names of `share` of each class's pictures, the rarest class first, drawn by hashes of names.

    Of a class of two or more, one picture at least is held out, unless each is the last that another class has; one
    always stays. Untagged pictures count as a class.
    """
    own: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        for tag in picture.tags or ("",):
            own[tag].append(picture)
    left = {tag: len(having) for tag, having in own.items()}
    chosen: set[str] = set()
    for tag, having in sorted(own.items(), key=lambda each: (len(each[1]), each[0])):
        stay = len(having) - min(len(having) - 1, max(1, round(share * len(having))))
        for picture in sorted(having, key=drawn):
            tags = picture.tags or ("",)
            if left[tag] > stay and picture.name not in chosen and min(left[each] for each in tags) > 1:
                chosen.add(picture.name)
                left |= {each: left[each] - 1 for each in tags}
    return chosen


def drawn(picture: Picture) -> bytes:
    """What the draw goes by: it depends on the picture's name alone."""
    return hashlib.sha256(picture.name.encode("utf-8", "surrogateescape")).digest()
