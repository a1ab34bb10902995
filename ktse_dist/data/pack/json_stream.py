"""A JSON object far larger than memory, read once: the elements of its top-level arrays, one at a time.

The standard library's parser reads each element, so the text of an element is known and can be kept as it is, which no
event parser offers.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ktse_dist.errors import UserError

READ = 1 << 20  # characters
MAX_ELEMENT = 16_000_000  # characters
SPACE = re.compile(r"[ \t\r\n]*")
ENDS = frozenset(" \t\r\n,]}:")  # after a value: a number at the end of the buffer may go on


class Element(NamedTuple):
    """An element of the array `key`, or the whole of a top-level value that is no array (whole: True)."""

    key: str
    text: str
    value: Any
    whole: bool


def elements(file: Path, progress: Callable[[int], Any]) -> Iterator[Element]:
    """Every element in the file's order; progress is told how many bytes were read.

    UserError where the file cannot be opened, is no JSON object, ends early, or holds a single value above MAX_ELEMENT.
    """
    try:
        with file.open(encoding="utf-8-sig") as stream:
            yield from _members(_Buffer(file, stream, progress))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give the annotations' JSON file") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8; give the annotations' JSON file") from None


def _members(buffer: "_Buffer") -> Iterator[Element]:
    buffer.take("{")
    while not buffer.take_if("}"):
        key = buffer.value()[1]
        if not isinstance(key, str):
            raise buffer.wrong("a name in quotes")
        buffer.take(":")
        if buffer.take_if("["):
            while not buffer.take_if("]"):
                yield Element(key, *buffer.value(), whole=False)
                if not buffer.take_if(","):
                    buffer.take("]")
                    break
        else:
            yield Element(key, *buffer.value(), whole=True)
        if not buffer.take_if(","):
            buffer.take("}")
            return


class _Buffer:
    """What has been read of the file and not yet taken."""

    def __init__(self, file: Path, stream: TextIO, progress: Callable[[int], Any]):
        self.file, self.stream, self.progress = file, stream, progress
        self.text, self.at, self.ended = "", 0, False
        self.decode = json.JSONDecoder().raw_decode

    def value(self) -> tuple[str, Any]:
        """The next value, as text and as an object."""
        self._next()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except (ValueError, RecursionError):
                end = len(self.text)
            else:
                if self.ended or self.text[end : end + 1] in ENDS:
                    break
            if self.ended:
                raise self.wrong("a value in JSON, to its end,")
            if len(self.text) - self.at > MAX_ELEMENT:
                raise self.wrong(f"a value of at most {MAX_ELEMENT:,} characters")
            self._read(len(self.text) - self.at)
        text, self.at = self.text[self.at : end], end
        return text, value

    def take(self, character: str) -> None:
        if not self.take_if(character):
            raise self.wrong(f"'{character}'")

    def take_if(self, character: str) -> bool:
        found = self._next() == character
        self.at += found
        return found

    def wrong(self, wanted: str) -> UserError:
        found = repr(self.text[self.at : self.at + 20]) if self.at < len(self.text) else "the end of the file"
        return UserError(f"{self.file}: not the JSON that is wanted: {wanted} should stand where {found} stands")

    def _next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read(0)

    def _read(self, least: int) -> None:
        more = self.stream.read(max(READ, least))
        self.progress(len(more))
        self.ended = not more
        self.text, self.at = self.text[self.at :] + more, 0
