"""An instances_*.json of COCO, put in order on the disk: pictures by name, each with its annotations.

The file may be far larger than memory. It is read once into a temporary database of SQLite, which has no name and goes
away with its connection; annotations are kept as the text they were.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ktse_dist.data.decode import BadSample, check_size
from ktse_dist.data.pack.json_stream import elements
from ktse_dist.errors import UserError

CACHE_KIB = 8192
MAX_CLASSES = 10_000
MAX_NAME = 1000
TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE images (id INTEGER PRIMARY KEY, name TEXT UNIQUE, height INTEGER, width INTEGER);
CREATE TABLE annotations (image INTEGER, category INTEGER, text TEXT);
"""


class Annotated(NamedTuple):
    """A picture. annotations: (category id, JSON text) in the file's order."""

    name: str
    height: int
    width: int
    annotations: list[tuple[int, str]]


class CocoFile:
    """names: {category id: class name}, by ascending id. Made for one process."""

    def __init__(self, file: Path):
        """Reads the whole file. UserError for what is no such file, by the id of what is wrong."""
        self.file = file
        self.names: dict[int, str] = {}
        self.rows = sqlite3.connect("", isolation_level=None)
        self.rows.executescript(f"PRAGMA cache_size = -{CACHE_KIB};" + TABLES)
        try:
            self._read()
            self._check()
        except sqlite3.Error as error:
            mend = "make room in the folder for temporary files, or name another in TMPDIR"
            raise UserError(f"{file}: cannot be put in order on the disk ({error}); {mend}") from None
        self.names = dict(sorted(self.names.items()))

    def pictures(self, annotated_only: bool) -> Iterator[Annotated]:
        """By name."""
        images = self.rows.execute("SELECT id, name, height, width FROM images ORDER BY name")
        for number, name, height, width in images:
            of_it = "SELECT category, text FROM annotations WHERE image = ? ORDER BY rowid"
            annotations = self.rows.execute(of_it, (number,)).fetchall()
            if annotations or not annotated_only:
                yield Annotated(name, height, width, annotations)

    def _read(self) -> None:
        add = {"images": self._add_image, "annotations": self._add_annotation, "categories": self._add_category}
        found = set()
        self.rows.execute("BEGIN")
        with tqdm(desc=f"reading {self.file.name}", unit="B", unit_scale=True, total=size_of(self.file)) as progress:
            for key, text, value, whole in elements(self.file, progress.update):
                if key in add:
                    found.add(key)
                    if whole:
                        raise self._wrong(key, f"{value!r:.40}", "a list")
                    add[key](value, text)
        self.rows.execute("CREATE INDEX of_image ON annotations (image)")
        self.rows.execute("COMMIT")
        if not {"images", "categories"} <= found:
            missing = sorted({"images", "categories"} - found)[0]
            raise self._wrong(missing, "nothing", "a list of some; give an instances_*.json")

    def _add_image(self, value: Any, text: str) -> None:
        number, name = self._id(value, "images", text), value.get("file_name")
        if not is_path(name):
            raise self._wrong(f"image {number}", f"file_name {name!r:.40}", "a relative path without '..'")
        size = [value.get("height"), value.get("width")]
        try:
            check_size(*[side if type(side) is int else 0 for side in size])
        except BadSample as error:
            raise self._wrong(f"image {number}", f"height and width {size!r:.40}", str(error)) from None
        try:
            self.rows.execute("INSERT INTO images VALUES (?, ?, ?, ?)", (number, name, *size))
        except sqlite3.IntegrityError:
            raise self._wrong(f"image {number}", f"'{name}'", "every id and every file_name once") from None

    def _add_annotation(self, value: Any, text: str) -> None:
        number = self._id(value, "annotations", text)
        pair = value.get("image_id"), value.get("category_id")
        if not all(is_id(each) for each in pair):
            raise self._wrong(f"annotation {number}", f"image_id and category_id {pair!r:.60}", "whole numbers")
        self.rows.execute("INSERT INTO annotations VALUES (?, ?, ?)", (*pair, text))

    def _add_category(self, value: Any, text: str) -> None:
        number, name = self._id(value, "categories", text), value.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise self._wrong(f"category {number}", f"name {name!r:.40}", f"1 to {MAX_NAME} characters")
        if number in self.names or name in self.names.values() or len(self.names) == MAX_CLASSES:
            raise self._wrong(f"category {number}", f"'{name}'", f"every id and name once, at most {MAX_CLASSES:,}")
        self.names[number] = name

    def _id(self, value: Any, key: str, text: str) -> int:
        number = value.get("id") if isinstance(value, dict) else None
        if not is_id(number):
            raise self._wrong(key, f"{text:.60}", "objects, each with a whole number as its id")
        return number

    def _check(self) -> None:
        """Whether annotations speak of pictures and classes that there are."""
        lost = "SELECT image, text FROM annotations WHERE image NOT IN (SELECT id FROM images) LIMIT 1"
        for image, text in self.rows.execute(lost):
            raise self._wrong(f"{text:.60}", f"image_id {image}", "the id of one of its images")
        for (category,) in self.rows.execute("SELECT DISTINCT category FROM annotations"):
            if category not in self.names:
                of_it = "SELECT text FROM annotations WHERE category = ? LIMIT 1"
                text = self.rows.execute(of_it, (category,)).fetchone()[0]
                raise self._wrong(f"{text:.60}", f"category_id {category}", f"one of {sorted(self.names)[:100]}")

    def _wrong(self, where: str, found: str, wanted: str) -> UserError:
        return UserError(f"{self.file}: {where}: found is {found}, wanted is {wanted}; mend the file")


def is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def is_path(name: Any) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        return False
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def size_of(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def same_classes(files: Sequence[CocoFile]) -> dict[int, str]:
    """The categories, which all files must share."""
    first, *others = files
    for other in others:
        if other.names != first.names:
            raise UserError(f"{other.file}: other categories than {first.file}; both splits need the same")
    return first.names
