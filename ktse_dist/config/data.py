"""Which pictures, from where, and how crops are cut."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, model_validator

from ktse_dist.config.base import REMOTE, Model, place, without_secrets


class Cache(Model):
    """What a node keeps of a remote data set (data.path is an address); all processes of the node share it."""

    folder: Path | None = None  # None: $XDG_CACHE_HOME/ktse, else ~/.cache/ktse
    gigabytes: float = Field(50, gt=0, le=1_000_000)  # the shards used least recently make room
    deadline: float = Field(120, gt=0, le=86_400)  # seconds without an answer until the run gives up


CACHE_KEYS = tuple(f"data.cache.{name}" for name in Cache.model_fields)


class Data(Model):
    """Which pictures, and how a training crop is cut from one (docs/method.md 1.1)."""

    # a folder or an address; None: the embedded stickers, packed on first use under the run root
    path: Annotated[Path | str | None, PlainValidator(place)] = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")  # of a remote dataset.json: nothing else is accepted
    cache: Cache = Cache()
    window_shards: int | None = Field(None, ge=1)  # shards shuffled together; None: all of them
    lanes: int = Field(1, ge=1, le=8)  # sequences of shards that run side by side, each with its part of every batch
    max_bad_fraction: float = Field(0.001, ge=0, le=1)  # pictures of an epoch that may be unreadable; 3 always may
    workers: int = Field(0, ge=0, le=64)  # decoding processes of each rank; 0: decode in the training process
    long_side: tuple[int, int] = (256, 512)  # drawn uniformly, inclusive
    crop: int = Field(320, ge=32, le=2048)
    resize: Literal["opencv", "pillow"] = "opencv"

    @model_validator(mode="after")
    def _ordered(self) -> "Data":
        low, high = self.long_side
        if not 16 <= low <= high <= 4096:
            raise ValueError(f"long_side is {[low, high]}; allowed are 16 <= smallest <= largest <= 4096")
        return self

    @model_validator(mode="after")
    def _address(self) -> "Data":
        if isinstance(self.path, str) and not REMOTE.fullmatch(self.path):
            raise ValueError(
                f"path is '{without_secrets(self.path)}'; allowed are a folder, and s3://, gs://, http:// and "
                "https:// addresses without password, '?', '#' and '::'; give one of these"
            )
        if self.sha256 and not isinstance(self.path, str):
            raise ValueError(
                f"sha256 pins a data set at an address, and path is '{self.path}'; leave it out: "
                "`ktse inspect --verify` checks a folder"
            )
        return self
