"""Tags that somebody wrote down: a CSV with the columns path and tags, or a JSON object with these keys a line."""

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, TextIO

from ktse_dist.errors import UserError

SEPARATORS = ";|"
LINE_LIMIT = 100_000  # characters


class TagRow(NamedTuple):
    """One line of the file: its number, a picture's path as written, its tags, its split ("" where none is said)."""

    line: int
    path: str
    tags: list[str]
    split: str


def read_tags(file: Path, classes: Sequence[str]) -> dict[Path, tuple[int, ...]]:
    """Absolute picture path -> class ids, ascending. Relative paths start at the file's own folder.

    Several tags are parted by ; or |, in JSON they may be a list. UserError names the line that cannot be used: no
    such class, a picture that an earlier line gave other tags.
    """
    if not file.is_file():
        raise UserError(f"--tags {file}: no such file; give a CSV with the columns path,tags or JSON lines")
    places = {name: place for place, name in enumerate(classes)}
    found: dict[Path, tuple[int, ...]] = {}
    for row in tag_rows(file, f"--tags {file}"):
        picture = Path(os.path.abspath(file.parent / row.path))
        for name in row.tags:
            if name not in places:
                where = f"--tags {file}, line {row.line}"
                mend = "part tags by ;" if "," in name else nearest_class(name, classes)
                raise UserError(f"{where}: '{name}' is no class of the run; {mend}")
        tags = tuple(sorted({places[name] for name in row.tags}))
        if found.setdefault(picture, tags) != tags:
            raise UserError(
                f"--tags {file}, line {row.line}: '{row.path}' has other tags in an earlier line; keep one of them"
            )
    if not found:
        raise UserError(f"--tags {file}: no line with a picture; write path,tags and below it one picture a line")
    return found


def tag_rows(file: Path, said: str) -> Iterator[TagRow]:
    """The lines of the file. UserError for one that is not as it should be; its message begins with `said`."""
    rows = _json_rows if file.suffix.lower() in (".jsonl", ".json", ".ndjson") else _csv_rows
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            yield from rows(text, said)
    except UnicodeDecodeError as error:
        raise UserError(f"{said}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _csv_rows(text: TextIO, said: str) -> Iterator[TagRow]:
    csv.field_size_limit(LINE_LIMIT)
    reader = csv.DictReader(text, skipinitialspace=True)
    try:
        if not {"path", "tags"} <= set(reader.fieldnames or ()):
            raise UserError(f"{said}: its first line is {reader.fieldnames}; it must name the columns path,tags")
        for row in reader:
            if None in row.values() or None in row:
                raise UserError(
                    f"{said}, line {reader.line_num}: not the columns of the first line; "
                    "write path,tags, several tags parted by ;"
                )
            yield TagRow(reader.line_num, row["path"], cleaned(_parted(row["tags"])), row.get("split", "").strip())
    except csv.Error as error:
        raise UserError(f"{said}, line {reader.line_num}: not CSV ({error}); mend the line") from None


def _json_rows(text: TextIO, said: str) -> Iterator[TagRow]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{said}, line {number}: not JSON; write one object a line") from None
        about = row if isinstance(row, dict) else {}
        path, tags, split = about.get("path"), about.get("tags"), about.get("split", "")
        tags = _parted(tags) if isinstance(tags, str) else tags
        texts = isinstance(path, str) and isinstance(split, str)
        if not (texts and isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
            raise UserError(f'{said}, line {number}: not as {{"path": "a.jpg", "tags": ["dog"]}}; mend the line')
        yield TagRow(number, path, cleaned(tags), split.strip())


def _parted(tags: str) -> list[str]:
    """Tags parted by ; or |, or written as a JSON list."""
    if tags.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            listed = json.loads(tags)
            if all(isinstance(tag, str) for tag in listed):
                return listed
    for separator in SEPARATORS[1:]:
        tags = tags.replace(separator, SEPARATORS[0])
    return tags.split(SEPARATORS[0])


def cleaned(tags: Iterable[str]) -> list[str]:
    """Without the space around them, and without those of which nothing is left."""
    return [tag.strip() for tag in tags if tag.strip()]


def nearest_class(name: str, classes: Sequence[str]) -> str:
    close = get_close_matches(name, classes, n=1)
    return f"did you mean '{close[0]}'?" if close else f"its classes are {', '.join(classes[:20])}"
