"""Members of packed samples by row, each checked against its checksum."""

import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO, Literal

import numpy as np
import simplejpeg

from ktse_dist.data.decode import BadSample, check_size, decode_jpeg, decode_mask
from ktse_dist.data.index import Index
from ktse_dist.errors import UserError

OPEN_SHARDS = 16
Member = Literal["image", "json", "mask"]
MEND = "pack the data set again, or leave this picture out"


class Reader:
    """Reads by offset; keeps at most OPEN_SHARDS shard files open. One a process: pickling drops the open files."""

    def __init__(self, index: Index):
        self.index = index
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __reduce__(self) -> tuple:
        return Reader, (self.index,)

    def read(self, row: int, member: Member) -> bytes:
        """The member's bytes. BadSample names key and shard when there is none or its crc32 is wrong."""
        record = self.index.samples[row]
        _, size, crc = (int(n) for n in record[member])
        content = self._unchecked(row, member)
        if not size or len(content) != size or zlib.crc32(content) != crc:
            found = "is damaged (crc32)" if size else "is missing"
            shard = f"{self.index.place}/{self.index.shards[int(record['shard'])].name}"
            raise BadSample(f"{self.index.key(row)}: its {member} {found} in {shard}; {MEND}")
        return content

    def picture(self, row: int) -> np.ndarray:
        """uint8 [H,W,3]. BadSample names the key of what cannot be decoded."""
        return self._decoded(decode_jpeg, row, "image")

    def truth(self, row: int) -> np.ndarray | None:
        """The ground truth, uint8 [H,W], or None where the data set has none for this picture."""
        return self._decoded(decode_mask, row, "mask") if self.index.samples["mask"]["size"][row] else None

    def size(self, row: int) -> tuple[int, int]:
        """(height, width) of a picture that cannot be decoded, if its header or its ground truth tells, else (1, 1)."""
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(self._unchecked(row, "image"))
            check_size(height, width)
            return height, width
        except ValueError:
            pass
        except BadSample:
            return 1, 1
        try:
            truth = self.truth(row)
        except BadSample:
            return 1, 1
        return (1, 1) if truth is None else truth.shape

    def _unchecked(self, row: int, member: Member) -> bytes:
        """What lies where the index says; nothing for a place beyond the shard, which might be 4 GB."""
        record = self.index.samples[row]
        offset, size, crc = (int(n) for n in record[member])
        inside = offset + size <= self.index.shards[int(record["shard"])].bytes
        return self._bytes(int(record["shard"]), offset, size, crc) if inside else b""

    def _decoded(self, decode: Callable[[bytes], np.ndarray], row: int, member: Member) -> np.ndarray:
        content = self.read(row, member)
        try:
            return decode(content)
        except BadSample as error:
            raise BadSample(f"{self.index.key(row)}: its {member} is {error}; {MEND}") from None

    def _bytes(self, shard: int, offset: int, size: int, crc: int) -> bytes:
        if self.index.remote:
            return self.index.remote.read(self.index.shards[shard], offset, size, crc)
        file = self._file(shard)
        file.seek(offset)
        return file.read(size)

    def _file(self, shard: int) -> BinaryIO:
        if shard not in self._open:
            path = self.index.path / self.index.shards[shard].name
            if not path.is_file():
                raise UserError(f"{path}: missing; copy the whole data set, or pack it again")
            self._open[shard] = path.open("rb")
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        return self._open[shard]
