"""What lies below a folder that may have come from anybody: no link leads out of it, and nothing is lost in silence."""

import os
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path

from ktse_dist.data.foreign import suffixes
from ktse_dist.errors import UserError

ARCHIVER = "__MACOSX"  # a folder of notes that macOS puts into archives
LINKED = "link to a folder"
NO_ENDING = "without ending"
LONGEST_ENDING = 10  # letters, with the dot
TOLD = 4  # kinds of files that are named
# pictures of cameras and telephones that Pillow alone does not read
CAMERAS = {".heic", ".heif", ".avif", ".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"}


def entries_below(folder: Path, but: Container[Path] = ()) -> Iterator[os.DirEntry[str]]:
    """Everything in the folder and below it that is no folder, in no order; hidden things and what `but` has never.

    Links to folders are given, not followed. UserError for a folder that cannot be read.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        for entry in listed(waiting.pop()):
            if Path(entry.path) in but:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                yield entry


def listed(folder: str | Path) -> list[os.DirEntry[str]]:
    """What the folder itself holds, but for hidden things."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith((".", ARCHIVER))]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); let it be read, or take it away") from None


def pictures_below(folder: Path, root: Path) -> tuple[list[Path], Counter[str]]:
    """The picture files of a folder that belongs to `root`, and the kinds of what else there is.

    UserError for a picture that is a link out of `root`, a link to nothing or no regular file.
    """
    pictures, others, known = [], Counter(), suffixes()
    for entry in entries_below(folder):
        kind = kind_of(entry)
        if kind in known:
            check_file(entry, root)
            pictures.append(Path(entry.path))
        else:
            others[kind] += 1
    return pictures, others


def kind_of(entry: os.DirEntry[str]) -> str:
    """The ending in small letters, such as `.jpg`; LINKED; or NO_ENDING where there is none that one could print."""
    if entry.is_symlink() and os.path.isdir(entry.path):
        return LINKED
    ending = os.path.splitext(entry.name)[1].lower()
    return ending if 1 < len(ending) <= LONGEST_ENDING and ending.isprintable() else NO_ENDING


def check_file(entry: os.DirEntry[str], root: Path) -> None:
    """UserError for what is no regular file, or is a link out of `root`."""
    linked = entry.is_symlink()
    if not (os.path.isfile(entry.path) if linked else entry.is_file()):
        raise UserError(f"{entry.path}: a link to nothing, a pipe or a device; remove it")
    if linked:
        check_inside(Path(entry.path), root)


def check_inside(path: Path, root: Path) -> None:
    if not is_inside(path, os.path.realpath(root)):
        raise UserError(f"{path}: a link that leads out of {root}; put there what it points to, or remove the link")


def is_inside(path: Path, real_root: str) -> bool:
    """Whether the path, all links followed, lies below `real_root`, which has no links in it."""
    return Path(os.path.realpath(path)).is_relative_to(real_root)


def passed_over(others: Counter[str]) -> str:
    """Such as "5 other files passed over (3 .heic, 2 .txt): convert .heic to JPEG"."""
    ordered = sorted(others, key=lambda kind: (kind not in CAMERAS, -others[kind], kind))
    some = ", ".join(f"{others[kind]:,} {kind}" for kind in ordered[:TOLD]) + ", ..." * (len(ordered) > TOLD)
    cameras = ", ".join(kind for kind in ordered[:TOLD] if kind in CAMERAS)
    mend = f": convert {cameras} to JPEG" if cameras else ""
    return f"{others.total():,} other files passed over ({some}){mend}"
