"""Tags that somebody wrote down: a CSV with the columns path and tags, or a JSON object with these keys a line."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ktse_dist.errors import UserError

SEPARATORS = ";|"
LINE_LIMIT = 100_000  # characters


def read_tags(file: Path, classes: Sequence[str]) -> dict[Path, tuple[int, ...]]:
    """Absolute picture path -> class ids, ascending. Relative paths start at the file's own folder.

    Several tags are parted by ; or |, in JSON they may be a list. UserError names the line that cannot be used: no
    such class, a picture that an earlier line gave other tags.
    """
    if not file.is_file():
        raise UserError(f"--tags {file}: no such file; give a CSV with the columns path,tags or JSON lines")
    places = {name: place for place, name in enumerate(classes)}
    found: dict[Path, tuple[int, ...]] = {}
    for number, path, names in _rows(file):
        picture = Path(os.path.abspath(file.parent / path))
        for name in names:
            if name not in places:
                raise UserError(
                    f"--tags {file}, line {number}: '{name}' is no class of the run; {_nearest(name, classes)}"
                )
        tags = tuple(sorted({places[name] for name in names}))
        if found.setdefault(picture, tags) != tags:
            raise UserError(
                f"--tags {file}, line {number}: '{path}' has other tags in an earlier line; keep one of them"
            )
    if not found:
        raise UserError(f"--tags {file}: no line with a picture; write path,tags and below it one picture a line")
    return found


def _rows(file: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(line number, path, tags) of each line."""
    rows = _json_rows if file.suffix.lower() in (".jsonl", ".json", ".ndjson") else _csv_rows
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            yield from rows(file, text)
    except UnicodeDecodeError as error:
        raise UserError(f"--tags {file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _csv_rows(file: Path, text: Any) -> Iterator[tuple[int, str, list[str]]]:
    csv.field_size_limit(LINE_LIMIT)
    reader = csv.DictReader(text, skipinitialspace=True)
    try:
        if not {"path", "tags"} <= set(reader.fieldnames or ()):
            raise UserError(f"--tags {file}: its first line is {reader.fieldnames}; it must name the columns path,tags")
        for row in reader:
            if row["tags"] is None or None in row:
                raise UserError(
                    f"--tags {file}, line {reader.line_num}: not the columns of the first line; "
                    "write path,tags, several tags parted by ;"
                )
            yield reader.line_num, row["path"], _parted(row["tags"])
    except csv.Error as error:
        raise UserError(f"--tags {file}, line {reader.line_num}: not CSV ({error}); mend the line") from None


def _json_rows(file: Path, text: Any) -> Iterator[tuple[int, str, list[str]]]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"--tags {file}, line {number}: not JSON; write one object a line") from None
        path, tags = (row.get("path"), row.get("tags")) if isinstance(row, dict) else (None, None)
        tags = _parted(tags) if isinstance(tags, str) else tags
        if not (isinstance(path, str) and isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
            raise UserError(f'--tags {file}, line {number}: not as {{"path": "a.jpg", "tags": ["dog"]}}; mend the line')
        yield number, path, tags


def _parted(tags: str) -> list[str]:
    for separator in SEPARATORS[1:]:
        tags = tags.replace(separator, SEPARATORS[0])
    return [tag.strip() for tag in tags.split(SEPARATORS[0]) if tag.strip()]


def _nearest(name: str, classes: Sequence[str]) -> str:
    close = get_close_matches(name, classes, n=1)
    return f"did you mean '{close[0]}'?" if close else f"its classes are {', '.join(classes[:20])}"
