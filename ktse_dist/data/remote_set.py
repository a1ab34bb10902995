"""A packed data set at an address: its files come into the cache of this node when they are first wanted.

The copy lies in a folder named by the sha256 of dataset.json, which names the sha256 of every other file.
"""

import hashlib
import logging
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from ktse_dist.config.data import Data
from ktse_dist.data.cache import Cache
from ktse_dist.data.index import ATTRIBUTION, HEADER, RECORD, Shard, parse_dataset
from ktse_dist.data.remote import NotThere, Remote
from ktse_dist.errors import UserError

log = logging.getLogger("ktse")

CHUNK = 8 << 20  # bytes of one request
LARGEST_ABOUT = 64 << 20  # bytes of a dataset.json: about 400,000 shards
LARGEST_TEXT = 1 << 20  # bytes of any other text
LARGEST_KEY = 256  # bytes, on average
RANGED, RANGED_OF_SHARD = 64, 2  # members that a process reads by themselves, before it waits for whole shards


class RemoteSet:
    """path: the copy's folder; about: dataset.json. Other processes of the node share the copy."""

    def __init__(self, remote: Remote, cache: Cache, about: dict[str, Any], sha256: str, pinned: bool):
        self.remote, self.cache, self.about, self.path = remote, cache, about, cache.folder / sha256
        self._pinned, self._ranged = pinned, Counter[str]()

    @classmethod
    def open(cls, url: str, data: Data) -> "RemoteSet":
        """UserError for an address that does not answer, or whose dataset.json is none or not the pinned one."""
        remote, cache = Remote(url.rstrip("/"), data.cache.deadline), Cache.of(data.cache)
        content = pinned_copy(cache, data.sha256) or remote.read("dataset.json", 0, LARGEST_ABOUT)
        found = hashlib.sha256(content).hexdigest()
        if data.sha256 not in (None, found):
            raise UserError(f"{remote}/dataset.json: its sha256 is {found}, data.sha256 allows {data.sha256} alone")
        about = parse_dataset(content, f"{remote}/dataset.json")
        with cache.obtain(cache.folder / found / "dataset.json", len(content), lambda file: write(file, content)):
            opened = cls(remote, cache, about, found, data.sha256 is not None)
        opened.text(ATTRIBUTION)  # now, since the report is made long after, perhaps without the server
        return opened

    def fetch_index(self, split: str) -> None:
        """See that the index of a split is in the cache."""
        entry = self.about["splits"][split]
        record = RECORD.itemsize + -(-len(self.about["classes"]) // 8) + LARGEST_KEY
        limit = HEADER + record * sum(shard["samples"] for shard in entry["shards"])
        self._obtain(f"{split}.index", limit, str(entry.get("index_sha256"))).close()

    def text(self, name: str) -> str | None:
        """A small file that a data set may have, such as ATTRIBUTION.md; no hash vouches for it. Asked for once."""
        file = self.cache.find(self.path / name)
        if file is None:
            try:
                content = self.remote.read(name, 0, LARGEST_TEXT)
            except NotThere:
                content = b""
            file = self.cache.obtain(self.path / name, len(content), lambda part: write(part, content))
        with file:
            file.seek(0)
            return file.read().decode(errors="replace") or None

    def fetch(self, shard: Shard, wait: bool = True) -> None:
        """See that a shard is in the cache, or, without `wait`, that some process fetches it."""
        stream = self._obtain(shard.name, shard.bytes, shard.sha256, wait)
        if stream:
            stream.close()

    def keep(self, shard: Shard) -> None:
        """Count a shard as used now, if it is in the cache: others make room before it."""
        stream = self.cache.find(self.path / shard.name)
        if stream:
            stream.close()

    def read(self, shard: Shard, offset: int, size: int, crc: int) -> bytes:
        """A member of a shard: from the cache, or by itself for the first few, so that a run starts at once."""
        file = self.cache.find(self.path / shard.name)
        if file is None and self._may_range(shard):
            self._ranged[shard.name] += 1
            content = self.remote.read(shard.name, offset, offset + size)
            if zlib.crc32(content) == crc:
                return content  # else the whole shard shows whether the member or the transport is damaged
        with file or self._obtain(shard.name, shard.bytes, shard.sha256) as stream:
            stream.seek(offset)
            return stream.read(size)

    def _may_range(self, shard: Shard) -> bool:
        """A member by itself is checked by its crc32 alone, which is too little for a pinned data set."""
        few = self._ranged[shard.name] < RANGED_OF_SHARD and self._ranged.total() < RANGED
        return few and not self._pinned

    def _obtain(self, name: str, size: int, sha256: str, wait: bool = True) -> BinaryIO | None:
        since = time.monotonic()

        def fill(file: BinaryIO) -> None:
            begun = time.monotonic()
            length = download(self.remote, name, file, size, sha256, since)
            seconds = time.monotonic() - begun
            log.info(f"fetched {name}: {length / 1e6:.1f} MB at {length / 1e6 / seconds:.1f} MB/s")

        return self.cache.obtain(self.path / name, size, fill, wait)


def locate(place: Path | str, data: Data) -> Path | RemoteSet:
    """A folder, or the data set at an address."""
    return place if isinstance(place, Path) else RemoteSet.open(place, data)


def pinned_copy(cache: Cache, sha256: str | None) -> bytes | None:
    """The pinned dataset.json, where the cache has it: then no server is asked."""
    file = cache.find(cache.folder / sha256 / "dataset.json") if sha256 else None
    if file is None:
        return None
    with file:
        content = file.read()
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def download(remote: Remote, name: str, file: BinaryIO, limit: int, sha256: str, since: float) -> int:
    """Write a remote file of at most `limit` bytes, its hash checked on the way; returns its bytes.

    since: when its first byte was wanted (time.monotonic()). The end is where the hash is right: an index does not say
    its length.
    """
    digest, length = hashlib.sha256(), 0
    while digest.hexdigest() != sha256:
        asked = min(CHUNK, limit - length)
        content = remote.read(name, length, length + asked, since if not length else None) if asked else b""
        file.write(content)
        digest.update(content)
        length += len(content)
        if len(content) < asked or not asked:
            break
    if digest.hexdigest() != sha256:
        raise UserError(
            f"{remote}/{name}: sha256 {digest.hexdigest()} after {length:,} bytes, dataset.json names {sha256}; "
            "the copy there is damaged or of another data set: upload the whole data set again"
        )
    return length


def write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
