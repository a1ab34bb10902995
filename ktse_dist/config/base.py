"""What all sections share: frozen pydantic models, and addresses as values."""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


REMOTE = re.compile(r"(s3|gs|https?)://(?!.*::)[^\s?#@]+")  # no password, no query that may hold a token


WRITABLE = re.compile(r"(s3|gs)://(?!.*::)[^\s?#@]+")


ROOT_ALLOWED = (
    "allowed are a folder, and s3:// and gs:// addresses without password, '?', '#' and '::'; give one of these"
)


def place(value: Any) -> Path | str | None:
    """An address stays text, as Path would swallow one of its slashes; everything else is a path."""
    if not isinstance(value, str | Path | None):
        raise PydanticCustomError("place", "a folder or an address is allowed")
    return Path(value) if isinstance(value, str) and not re.search(r"::|^\w+://", value) else value


def without_secrets(address: str) -> str:
    """An address as it may be shown: without password and query."""
    return re.split(r"[?#]", re.sub(r"//[^/]*@", "//", address))[0]
