"""What was predicted so far, one line of JSON a picture, so that the same command goes on; and scores.json of it."""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ktse_dist.data.index import KEY
from ktse_dist.data.search import Found, with_digest
from ktse_dist.errors import UserError
from ktse_dist.reporting.prediction import PARTIAL, mask_file, overlay_file

LOG, SCORES = ".progress.jsonl", "scores.json"
IDENTITY = ("path", "file_bytes", "file_mtime_ns", "given_tags")  # another of these: another prediction


class Line(NamedTuple):
    """Where a finished picture's record stands in the log, and what it was made of."""

    offset: int
    identity: list[Any]


class Predictions(NamedTuple):
    """What scores.json tells. paths: the picture of each name."""

    classes: list[str]
    paths: dict[str, Path]


def read_scores(out: Path) -> Predictions:
    """UserError for a folder that no ktse predict finished."""
    file = out / SCORES
    try:
        scores = json.loads(file.read_text())
        paths = {name: Path(record["path"]) for name, record in scores["pictures"].items() if KEY.fullmatch(name)}
        if not paths or len(paths) < len(scores["pictures"]):
            raise UserError(f"{file}: no pictures, or names that ktse predict does not give; predict them again")
        return Predictions(scores["settings"]["classes"], paths)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; --predictions takes the --out of a finished ktse predict") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: damaged, or of an earlier version; give the same ktse predict again") from None


class PredictionLog:
    """The folder of a prediction. Memory: a path and some numbers a picture; records stay on the disk."""

    def __init__(self, out: Path, settings: Mapping[str, Any]):
        """Open or make the folder. UserError if it holds anything else, other settings, or is in use."""
        self.out, self.settings = out, dict(settings)
        self.lines: dict[str, Line] = {}
        self._file = self._open()
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
        (out / PARTIAL).mkdir()

    def close(self) -> None:
        shutil.rmtree(self.out / PARTIAL, ignore_errors=True)
        self._file.close()

    def name_for(self, found: Found) -> str:
        """The picture's name, or another one where an earlier command gave that to another picture."""
        taken = self.lines.get(found.name)
        return found.name if taken is None or taken.identity[0] == str(found.path) else with_digest(*found)

    def has(self, name: str, identity: Mapping[str, Any]) -> bool:
        """Whether this very prediction is there, with both of its files."""
        line = self.lines.get(name)
        if line is None or line.identity != [identity[key] for key in IDENTITY]:
            return False
        return (self.out / mask_file(name)).is_file() and (self.out / overlay_file(name)).is_file()

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Note a picture whose files are written."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps({"name": name, **record}).encode() + b"\n")
        self._file.flush()
        self.lines[name] = Line(offset, [record[key] for key in IDENTITY])

    def write_scores(self, failed: Mapping[str, str]) -> Path:
        """scores.json: settings, a record for each picture by name, and why others could not be read. Atomic."""
        target, partial = self.out / SCORES, self.out / PARTIAL / SCORES
        with partial.open("w") as file:
            file.write('{"settings": ' + json.dumps(self.settings) + ',\n"failed": ' + json.dumps(dict(failed)))
            file.write(',\n"pictures": {')
            for place, name in enumerate(sorted(self.lines)):
                file.write((",\n" if place else "\n") + json.dumps(name) + ": " + json.dumps(self._record(name)))
            file.write("\n}}\n")
        partial.replace(target)
        return target

    def _record(self, name: str) -> dict[str, Any]:
        self._file.seek(self.lines[name].offset)
        record = json.loads(self._file.readline())
        return {key: value for key, value in record.items() if key not in ("name", *IDENTITY[1:])}

    def _open(self) -> BinaryIO:
        path = self.out / LOG
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if not path.exists() and any(self.out.iterdir()):
                raise UserError(f"--out {self.out}: holds other files; give a new or an empty folder")
            file = path.open("a+b")
        except OSError as error:
            raise UserError(f"--out {self.out}: cannot be made ({error.strerror}); give a folder of your own") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out {self.out}: another ktse predict writes there; wait for it, or give another"
            ) from None
        try:
            self._read(file)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: damaged; delete {self.out}, or give another --out") from None
        return file

    def _read(self, file: BinaryIO) -> None:
        """Settings and finished pictures; a last line that a kill cut off goes away."""
        file.seek(0)
        first = file.readline()
        if not first.endswith(b"\n"):
            file.truncate(0)
            file.write(json.dumps(self.settings).encode() + b"\n")
            file.flush()
            return
        self._check_settings(json.loads(first))
        end = file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(end)
                break
            record = json.loads(line)
            self.lines[record["name"]] = Line(end, [record[key] for key in IDENTITY])
            end += len(line)

    def _check_settings(self, then: Mapping[str, Any]) -> None:
        for key, value in self.settings.items():
            if then.get(key) != value:
                raise UserError(
                    f"--out {self.out}: made with {key} {then.get(key)}, and now it is {value}; "
                    "give another --out, or delete this one"
                )
