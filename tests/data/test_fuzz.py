"""Data sets mutated after packing: each is refused in one line, or its damage is named; nothing hangs or runs."""

import hashlib
import io
import json
import pickle
import resource
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from ktse_dist.config.data import Data
from ktse_dist.data.index import HEADER, RECORD, Index
from ktse_dist.data.order import epoch_order
from ktse_dist.data.pack.mask_png import mask_png
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.reader import Reader
from ktse_dist.data.stream import Plan, stream
from ktse_dist.errors import UserError
from ktse_dist.method.batch import Batch

PICTURES, BATCH = 12, 4
SECONDS = 10  # that one set may take
GROWTH = 600_000  # KiB that a process may grow in all; a picture at the limit takes 300 MB
Change = Callable[[Path, np.random.Generator], None]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "set"
    shown, samples = np.random.default_rng(1), []
    for number in range(PICTURES):
        picture = cv2.resize(shown.integers(0, 256, (5, 6, 3), np.uint8), (48, 40))
        mask = mask_png(np.full((40, 48), number % 3, np.uint8))
        samples.append(Sample(f"p{number:02}", simplejpeg.encode_jpeg(picture, 90), [number % 2], mask, "drawn"))
    with new_dataset(path) as folder:
        entries = {split: write_split(folder, split, samples, 2, 8_000) for split in ("train", "val")}
        write_about(folder, ["cat", "dog"], entries)
    return path


def some_file(path: Path, random: np.random.Generator, *patterns: str) -> Path:
    files = sorted(file for pattern in patterns for file in path.glob(pattern))
    return files[random.integers(len(files))]


def some_member(path: Path, random: np.random.Generator, member: str) -> tuple[Path, int, int]:
    index = Index.open(path, "train")
    record = index.samples[int(random.integers(len(index)))]
    return path / index.shards[int(record["shard"])].name, int(record[member]["offset"]), int(record[member]["size"])


def patch(file: Path, offset: int, content: bytes) -> None:
    whole = bytearray(file.read_bytes())
    whole[offset : offset + len(content)] = content
    file.write_bytes(whole)


def truncate(path: Path, random: np.random.Generator) -> None:
    file = some_file(path, random, "*.tar", "*.index", "dataset.json")
    content = file.read_bytes()
    file.write_bytes(content[: random.integers(len(content))])


def flip(path: Path, random: np.random.Generator) -> None:
    file = some_file(path, random, "*.tar", "*.index", "dataset.json")
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    content[random.integers(len(content), size=random.integers(1, 20))] ^= np.uint8(1 << random.integers(8))
    file.write_bytes(content.tobytes())


def swap_members(path: Path, random: np.random.Generator) -> None:
    (first, at, size), (second, there, other) = (some_member(path, random, "image") for _ in range(2))
    one, two = first.read_bytes()[at : at + size], second.read_bytes()[there : there + other]
    patch(first, at, two[:size].ljust(size, b"\0"))
    patch(second, there, one[:other].ljust(other, b"\0"))


def huge_header(path: Path, random: np.random.Generator) -> None:
    """A JPEG that promises 65,535 a side."""
    file, offset, size = some_member(path, random, "image")
    content = file.read_bytes()[offset : offset + size]
    patch(file, offset + content.index(b"\xff\xc0") + 5, b"\xff\xff\xff\xff")


def tar_header(path: Path, random: np.random.Generator) -> None:
    """Names that lead out, links, sizes that lie: in the header of a member."""
    file, offset, _ = some_member(path, random, "image")
    what = [(0, b"../../../../etc/passwd\0"), (0, b"/etc/passwd\0"), (156, b"2"), (156, b"1"), (124, b"77777777777\0")]
    at, content = what[random.integers(len(what))]
    patch(file, offset - 512 + at, content)


def png_bomb(path: Path, random: np.random.Generator) -> None:
    """A mask whose header promises 60,000 a side, with a checksum that is right."""
    file, offset, _ = some_member(path, random, "mask")
    chunk = b"IHDR" + struct.pack(">2I5B", 60_000, 60_000, 8, 0, 0, 0, 0)
    patch(file, offset + 12, chunk + struct.pack(">I", zlib.crc32(chunk)))


def wrong_json(path: Path, random: np.random.Generator) -> None:
    file = path / "dataset.json"
    about = json.loads(file.read_text())
    shard = about["splits"]["train"]["shards"][0]
    values = ["../x.tar", "pipe:touch harmed", "http://a::file://b", -1, 10**18, None, [], {}, 1.5, "x" * 100_000]
    where = [about, about["splits"], about["splits"]["train"], shard][random.integers(4)]
    where[sorted(where)[random.integers(len(where))]] = values[random.integers(len(values))]
    text = json.dumps(about)
    file.write_text([text, text[: random.integers(1, len(text))], "[" * 50_000][random.choice(3, p=[0.8, 0.1, 0.1])])


def wrong_index(path: Path, random: np.random.Generator) -> None:
    """A header or record of an index with numbers that lie."""
    file = path / "train.index"
    number = struct.pack("<I", int(random.choice([0, 1, 2**16, 2**31, 2**32 - 1, random.integers(2**32)])))
    end = HEADER + PICTURES * RECORD.itemsize
    patch(file, int(random.integers(0, end // 4)) * 4, number)


def hostile_member(path: Path, random: np.random.Generator) -> None:
    """Bytes that a careless reader would run in the place of a picture or a mask."""
    file, offset, size = some_member(path, random, ["image", "mask", "json"][random.integers(3)])
    buffer = io.BytesIO()
    np.save(buffer, np.array([Harm(path / "harmed")], object), allow_pickle=True)
    content = [pickle.dumps(Harm(path / "harmed")), buffer.getvalue()][random.integers(2)]
    patch(file, offset, content[:size])


class Harm:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


CHANGES: list[Change] = [
    truncate,
    flip,
    swap_members,
    huge_header,
    tar_header,
    png_bomb,
    wrong_json,
    wrong_index,
    hostile_member,
]


def forge(path: Path) -> None:
    """What somebody with bad intent does after a change: sizes, hashes and checksums are made right again."""
    file = path / "dataset.json"
    try:
        about = json.loads(file.read_text())
        for split in ("train", "val"):
            forge_checksums(path, split)
            entry = about["splits"][split]
            entry["index_sha256"] = hashlib.sha256((path / f"{split}.index").read_bytes()).hexdigest()
            for shard in entry["shards"]:
                content = (path / shard["name"]).read_bytes()
                shard["bytes"], shard["sha256"] = len(content), hashlib.sha256(content).hexdigest()
        file.write_text(json.dumps(about))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, UserError, RecursionError):
        pass  # what is too broken to be forged


def forge_checksums(path: Path, split: str) -> None:
    index = Index.open(path, split)
    file, records = path / f"{split}.index", np.array(index.samples)
    for record in records:
        if record["shard"] >= len(index.shards):
            continue
        content = (path / index.shards[int(record["shard"])].name).read_bytes()
        for member in ("image", "json", "mask"):
            offset, size = int(record[member]["offset"]), int(record[member]["size"])
            record[member]["crc32"] = zlib.crc32(content[offset : offset + size])
    patch(file, HEADER, records.tobytes())


@contextmanager
def bounded() -> Iterator[None]:
    """No longer than SECONDS, no more memory than GROWTH."""

    def late(_signal: int, _frame: object) -> None:
        raise AssertionError(f"took over {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH


def delivered(path: Path) -> tuple[Index, list[Batch], set[int]]:
    """The batches of an epoch, and the rows that are named as bad."""
    index = Index.open(path, "train")
    index.check_files()
    data = Data(crop=32, long_side=(32, 48), max_bad_fraction=1)
    named: set[int] = set()
    parts = list(stream(index, data, 3, Plan(0, BATCH, 0, BATCH, 0, 1)))
    for batch in parts:
        assert all(bad.why.count("\n") == 0 and len(bad.why) < 2_000 for bad in batch.replaced)
        named |= {bad.row for bad in batch.replaced}
    return index, parts, named


def read_masks(index: Index) -> None:
    reader = Reader(index)
    for row in range(len(index)):
        try:
            reader.truth(row)
        except UserError as error:
            assert "\n" not in str(error)


def attack(packed: Path, path: Path, number: int, forged: bool) -> str:
    """One mutated set, used: "refused", "counted" or "whole"; whatever else comes of it is a failure."""
    random = np.random.default_rng([number, forged])
    shutil.copytree(packed, path)
    try:
        CHANGES[number % len(CHANGES)](path, random)
        if forged:
            forge(path)
        with bounded():
            try:
                index, parts, named = delivered(path)
                read_masks(index)
            except UserError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < 2_000
                return "refused"
        assert not (path / "harmed").exists()
        check_untouched(packed, index, parts, named)
        return "counted" if named else "whole"
    finally:
        shutil.rmtree(path)


def check_untouched(packed: Path, index: Index, parts: list[Batch], named: set[int]) -> None:
    """Every picture whose bytes and record nobody changed stands at its place, as in the set of before."""
    before, now = Index.open(packed, "train"), Reader(index)
    expected = list(stream(before, Data(crop=32, long_side=(32, 48)), 3, Plan(0, BATCH, 0, BATCH, 0, 1)))
    order = epoch_order(before.shard_sizes, 3, 0).samples.tolist()
    assert len(parts) == len(expected)
    for place, row in enumerate(order[: len(parts) * BATCH]):
        then, got = expected[place // BATCH], parts[place // BATCH]
        if not untouched(before, index, row):
            continue
        assert row not in named, f"{before.key(row)} is whole: {now.picture(row).shape}"
        assert (then.images[place % BATCH] == got.images[place % BATCH]).all()


def untouched(before: Index, index: Index, row: int) -> bool:
    try:
        return Reader(before).read(row, "image") == Reader(index).read(row, "image")
    except UserError:
        return False


def attack_all(packed: Path, tmp_path: Path, count: int, forged: bool) -> list[str]:
    return [attack(packed, tmp_path / "set", number, forged) for number in range(count)]


@pytest.mark.parametrize("forged", [False, True], ids=["as they are", "forged hashes"])
def test_fifty_mutated_sets_are_refused_or_their_damage_is_named(packed, tmp_path, forged):
    ends = attack_all(packed, tmp_path, 50, forged)
    assert ends.count("refused") > 5
    assert ends.count("counted") > 5


@pytest.mark.slow
@pytest.mark.parametrize("forged", [False, True], ids=["as they are", "forged hashes"])
def test_a_thousand_mutated_sets_are_refused_or_their_damage_is_named(packed, tmp_path, forged):
    ends = attack_all(packed, tmp_path, 1_000, forged)
    assert ends.count("refused") > 100
    assert ends.count("counted") > 100
