"""Which pictures files, folders and globs mean, and a name for each that nobody else has."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ktse_dist.data.foreign import suffixes
from ktse_dist.data.pack.writer import key_of
from ktse_dist.errors import UserError

LONGEST = 200  # characters of a file name without its ending; file systems allow 255 bytes


class Found(NamedTuple):
    """A picture file (absolute path) and its name: a relative path without ending, of letters, digits and _ / -."""

    name: str
    path: Path


def find_pictures(arguments: Sequence[str], recursive: bool) -> list[Found]:
    """The pictures in the order of their names, each once. UserError for an argument that means none.

    From folders only files with a picture's ending are taken; hidden ones never. A picture is named after its path
    below the folder that was given, else after its file; where two would have one name, all of these bear a part of
    their path's sha256.
    """
    wanted: dict[Path, str] = {}
    for argument in arguments:
        meant = list(_meant(argument, recursive))
        if not meant:
            raise UserError(_nothing(argument, recursive))
        for path, relative in meant:
            wanted.setdefault(path, relative)
    return sorted(_named(wanted.items()))


def with_digest(name: str, path: Path) -> str:
    """The name that a picture gets where its own is taken or unusable."""
    folder, _, last = name.rpartition("/")
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{folder}/{last[:LONGEST]}-{digest}" if folder else f"{last[:LONGEST]}-{digest}"


def _meant(argument: str, recursive: bool) -> Iterator[tuple[Path, str]]:
    """(absolute path, path that names it) of every picture that one argument means."""
    matches = [argument] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True))
    for match in matches:
        path = Path(os.path.abspath(match))
        if path.is_dir():
            yield from _inside(path, recursive)
        elif not never_ends(path):
            yield path, path.name


def _inside(folder: Path, recursive: bool) -> Iterator[tuple[Path, str]]:
    endings = suffixes()
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if recursive else []
        for file in files:
            path = Path(where, file)
            is_picture = not file.startswith(".") and os.path.splitext(file)[1].lower() in endings
            if is_picture and not never_ends(path):
                yield path, str(path.relative_to(folder))


def never_ends(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device. What is not there is none: its name is told when it is read."""
    return os.path.exists(path) and not os.path.isfile(path)


def _named(wanted: Iterable[tuple[Path, str]]) -> Iterator[Found]:
    keys = {path: key_of(relative) for path, relative in wanted}
    taken = Counter(key.casefold() for key in keys.values())  # some file systems do not tell A from a
    for path, key in keys.items():
        alone = taken[key.casefold()] == 1 and key and max(map(len, key.split("/"))) <= LONGEST
        yield Found(key if alone else with_digest(key or "picture", path), path)


def _nothing(argument: str, recursive: bool) -> str:
    if Path(argument).is_dir():
        deeper = "" if recursive else "; --recursive looks into its subfolders too"
        return f"{argument}: no pictures in this folder{deeper}"
    if glob.has_magic(argument):
        return f"{argument}: no file has such a name; check the pattern (** means any depth of folders)"
    if os.path.exists(argument):
        return f"{argument}: a pipe or a device; give pictures, folders or patterns like 'photos/*.jpg'"
    return f"{argument}: no such file or folder; give pictures, folders or patterns like 'photos/*.jpg'"
