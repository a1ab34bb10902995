"""Files at an s3:// or gs:// address: sent, brought and deleted, each with retries up to a deadline.

Large files travel in parts, a few at a time. Object stores cannot rename, so nothing here is atomic but a single file.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktse_dist.data.remote import PART, file_system, persist

DEADLINE_KEY = "run.deadline"


@dataclass(frozen=True)
class Storage:
    """A folder at `url`. deadline: seconds without success until UserError."""

    url: str
    deadline: float

    def names(self) -> set[str]:
        """All files below, as paths relative to it."""
        files, folder = self._files, self.url.partition("://")[2]
        files.invalidate_cache()  # other machines write here
        found = self._persist(files.find, self.url)
        return {name.removeprefix(f"{folder}/") for name in found}

    def put(self, file: Path, name: str) -> None:
        self._persist(functools.partial(self._files.put_file, str(file), chunksize=PART), f"{self.url}/{name}")

    def get(self, name: str, file: Path) -> None:
        """The file appears under its name when it is whole."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            self._persist(functools.partial(self._files.get_file, lpath=str(part)), f"{self.url}/{name}")
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """A small file."""
        return self._persist(self._files.cat_file, f"{self.url}/{name}")

    def delete(self, name: str) -> None:
        self._persist(self._files.rm_file, f"{self.url}/{name}")

    @property
    def _files(self) -> Any:
        return file_system(self.url.partition("://")[0], self.deadline)

    def _persist(self, call: Any, address: str) -> Any:
        attempt = functools.partial(call, address, timeout=self.deadline)
        return persist(attempt, address, self.deadline, DEADLINE_KEY)
