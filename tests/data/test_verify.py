"""`ktse inspect --verify` finds what is wrong by the name of the file and of the picture."""

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from ktse_dist.data import inspect
from ktse_dist.data.index import Index
from ktse_dist.data.pack.mask_png import mask_png
from ktse_dist.data.pack.writer import Sample, digest, new_dataset, write_about, write_split
from ktse_dist.data.verify import LISTED

CLASSES = ["boat", "cat"]
FIRST, SECOND = "train-00000.tar", "train-00001.tar"


def sample(key: str, labels: list[int], value: int = 1, size: tuple[int, int] = (16, 24)) -> Sample:
    jpeg = simplejpeg.encode_jpeg(np.full((16, 24, 3), 9 * len(key), np.uint8), 95)
    return Sample(key, jpeg, labels, mask_png(np.full(size, value, np.uint8)), key)


def write(out: Path, train: list[Sample], shard_bytes: int = 3000) -> Path:
    with new_dataset(out) as folder:
        parts = {"train": train, "val": [sample("held/out", [1])]}
        splits = {name: write_split(folder, name, part, len(CLASSES), shard_bytes) for name, part in parts.items()}
        write_about(folder, CLASSES, splits)
    for file in out.iterdir():
        file.chmod(0o644)
    return out


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Six pictures in several shards of train, one in val."""
    return write(tmp_path / "set", [sample(f"pets/{n}{'x' * n}", [n % 2]) for n in range(6)])


def problems(dataset: Path) -> list[str]:
    found = inspect.inspect(dataset, verify=True)
    assert found["problem_count"] == len(found["problems"])
    return [": ".join(part for part in problem.values() if part) for problem in found["problems"]]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def edit(dataset: Path, change: Callable[[dict], None]) -> None:
    file = dataset / "dataset.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))


def rewrite(shard: Path, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes] | None = None) -> None:
    """The shard again, each member as `change(name, content)` gives it, without those for which it gives None."""
    with tarfile.open(shard) as tar:
        members = {item.name: tar.extractfile(item).read() for item in tar}
    with tarfile.open(shard, "w") as tar:
        for name, content in (members | (extra or {})).items():
            content = change(name, content)
            if content is not None:
                item = tarfile.TarInfo(name)
                item.size = len(content)
                tar.addfile(item, io.BytesIO(content))


def test_a_whole_set_has_no_problem(dataset):
    assert len(Index.open(dataset, "train").shards) > 1
    assert problems(dataset) == []


@pytest.mark.parametrize("member", ["image", "json", "mask"])
def test_a_flipped_byte_is_found_in_its_shard_and_picture(dataset, member):
    index = Index.open(dataset, "train")
    flip(dataset / FIRST, int(index.samples[member]["offset"][1]) + 5)
    assert problems(dataset) == [
        f"{FIRST}: not the shard that dataset.json names (sha256)",
        f"{FIRST}: {index.key(1)}: its {member} is damaged (crc32)",
    ]


def test_a_flipped_byte_of_a_header_is_found_at_its_place(dataset):
    offset = int(Index.open(dataset, "train").samples["image"]["offset"][1])
    flip(dataset / FIRST, offset - 512)
    assert problems(dataset) == [
        f"{FIRST}: not the shard that dataset.json names (sha256)",
        f"{FIRST}: truncated or damaged: no member can be read from byte {offset - 512:,} on",
    ]


@pytest.mark.parametrize("field", ["shard", "image", "json", "mask"])
def test_a_flipped_byte_of_the_index_is_found_in_its_picture(dataset, field):
    index = Index.open(dataset, "train")
    place = 32 + index.samples.dtype.itemsize + index.samples.dtype.fields[field][1]
    flip(dataset / "train.index", place)
    found = problems(dataset)
    assert "train.index: not the index that dataset.json names (sha256)" in found
    assert len(found) > 1 and any(index.key(1) in line for line in found)


def test_a_flipped_tag_of_the_index_is_found_against_the_json(dataset):
    index = Index.open(dataset, "train")
    content = bytearray((dataset / "train.index").read_bytes())
    content[-1] ^= 0x80  # the first class of the last picture
    (dataset / "train.index").write_bytes(content)
    assert any(f"{index.key(5)}: its json has the labels [1], the index [0, 1]" in line for line in problems(dataset))


def test_an_index_cut_short_is_named_and_the_other_split_is_looked_at(dataset):
    file = dataset / "train.index"
    file.write_bytes(file.read_bytes()[:-5])
    flip(dataset / "val-00000.tar", int(Index.open(dataset, "val").samples["image"]["offset"][0]) + 5)
    found = problems(dataset)
    assert "train.index" in found[0]
    assert "val-00000.tar: held/out: its image is damaged (crc32)" in found


def test_keys_that_are_no_text_are_named(dataset):
    index = Index.open(dataset, "train")
    content = bytearray((dataset / "train.index").read_bytes())
    content[32 + len(index) * index.samples.dtype.itemsize] = 0xFF
    (dataset / "train.index").write_bytes(content)
    assert any("train.index: its keys cannot be read" in line for line in problems(dataset))


@pytest.mark.parametrize("kind", ["jpg", "json", "mask.png"])
def test_a_missing_member_is_named(dataset, kind):
    key = Index.open(dataset, "train").key(0)
    rewrite(dataset / FIRST, lambda name, content: None if name == f"{key}.{kind}" else content)
    assert f"{FIRST}: {key}.{kind}: a missing member" in problems(dataset)


def test_members_that_moved_are_one_problem_and_not_one_each(dataset):
    index = Index.open(dataset, "train")
    rewrite(dataset / FIRST, lambda name, content: None if name == f"{index.key(0)}.json" else content)
    found = problems(dataset)
    assert len(found) == 3
    assert sum("lies elsewhere than the index says" in line for line in found) == 1


def test_an_extra_member_is_named(dataset):
    rewrite(dataset / FIRST, lambda name, content: content, {"pets/more.jpg": b"x"})
    assert f"{FIRST}: pets/more.jpg: an extra member, which the index does not have" in problems(dataset)


def test_an_extra_shard_is_named(dataset):
    (dataset / "train-00009.tar").write_bytes(b"")
    assert problems(dataset) == ["train-00009.tar: an extra shard that dataset.json does not name"]


def test_a_missing_shard_is_named(dataset):
    (dataset / SECOND).unlink()
    assert problems(dataset) == [f"{SECOND}: missing; copy the whole data set, or pack it again"]


def test_swapped_shards_are_called_swapped(dataset):
    first, second = ((dataset / name).read_bytes() for name in (FIRST, SECOND))
    (dataset / FIRST).write_bytes(second)
    (dataset / SECOND).write_bytes(first)
    assert problems(dataset) == [
        f"{FIRST}: holds what dataset.json calls {SECOND} (sha256); are they swapped?",
        f"{SECOND}: holds what dataset.json calls {FIRST} (sha256); are they swapped?",
    ]


def test_a_truncated_shard_names_the_byte_and_the_pictures_that_are_lost(dataset):
    index = Index.open(dataset, "train")
    offset = int(index.samples["image"]["offset"][1])
    (dataset / FIRST).write_bytes((dataset / FIRST).read_bytes()[: offset + 100])
    found = problems(dataset)
    assert any("truncated or damaged" in line for line in found)
    assert f"{FIRST}: {index.key(1)}: its image is damaged (crc32)" in found
    assert not any(index.key(0) in line for line in found)


def test_a_wrong_count_of_a_split_is_named(dataset):
    edit(dataset, lambda about: about["splits"]["train"].update(samples=7))
    assert problems(dataset) == ["dataset.json: wrong count: 7 pictures of train, its index has 6"]


def test_a_wrong_count_of_a_shard_is_named(dataset):
    true = json.loads((dataset / "dataset.json").read_text())["splits"]["train"]["shards"][0]["samples"]
    edit(dataset, lambda about: about["splits"]["train"]["shards"][0].update(samples=9))
    assert problems(dataset) == [f"dataset.json: wrong count: 9 in {FIRST}, the index has {true}"]


def test_a_wrong_number_of_bytes_is_named(dataset):
    edit(dataset, lambda about: about["splits"]["train"]["shards"][0].update(bytes=5))
    size = (dataset / FIRST).stat().st_size
    assert problems(dataset) == [f"dataset.json: wrong count: 5 bytes in {FIRST}, the file has {size:,}"]


def test_a_shard_named_twice_is_named(dataset):
    edit(dataset, lambda about: about["splits"]["val"]["shards"][0].update(name=FIRST))
    assert f"dataset.json: names {FIRST} 2 times" in problems(dataset)


def test_labels_that_lie_are_named_though_every_hash_is_right(dataset):
    index = Index.open(dataset, "train")
    key, at = index.key(0), index.samples["json"][0]
    shard = dataset / FIRST
    content = bytearray(shard.read_bytes())
    place = content.index(b"[0]", int(at["offset"])) + 1
    content[place : place + 1] = b"1"
    shard.write_bytes(content)
    member = bytes(content[int(at["offset"]) : int(at["offset"]) + int(at["size"])])
    lie_in_index(dataset, 0, "json", member)
    edit(dataset, lambda about: about["splits"]["train"]["shards"][0].update(sha256=digest(shard)))
    assert problems(dataset) == [f"{FIRST}: {key}: its json has the labels [1], the index [0]"]


def lie_in_index(dataset: Path, row: int, member: str, content: bytes, at: tuple[int, int] | None = None) -> None:
    """The index with the checksum of other bytes (and where they lie), and dataset.json with its sha256."""
    file = dataset / "train.index"
    index = Index.open(dataset, "train")
    records = index.samples.copy()
    offset, size, _ = records[member][row].tolist()
    records[member][row] = (*(at or (offset, size)), zlib.crc32(content))
    raw = bytearray(file.read_bytes())
    raw[32 : 32 + records.nbytes] = records.tobytes()
    file.write_bytes(raw)
    edit(dataset, lambda about: about["splits"]["train"].update(index_sha256=digest(file)))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"labels": "cat"}', "has no list of labels"),
        (b"[1]", "has no list of labels"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"labels": [%s]}' % b",".join([b"1"] * 999), "has the labels [1, 1"),
    ],
)
def test_a_json_that_is_none_is_named_in_a_short_line(dataset, content, told):
    key = Index.open(dataset, "train").key(0)
    rewrite(dataset / FIRST, lambda name, old: content if name == f"{key}.json" else old)
    at = content_of(dataset / FIRST, f"{key}.json")
    lie_in_index(dataset, 0, "json", content, at)
    (line,) = (line for line in problems(dataset) if f"{FIRST}: {key}: its json" in line)
    assert told in line and len(line) < 400


def content_of(shard: Path, name: str) -> tuple[int, int]:
    with tarfile.open(shard) as tar:
        item = tar.getmember(name)
        return item.offset_data, item.size


HOSTILE = {
    "a size that leads back": (b"0", b"\xff" + (2**88 - 512).to_bytes(11, "big")),
    "a size past all files": (b"0", b"\x80" + (2**87).to_bytes(11, "big")),
    "a note past all memory": (b"x", b"\x80" + (2**50).to_bytes(11, "big")),
    "a table that does not end": (b"S", b"0" * 11 + b"\0"),
    "names of names": (b"L", b"0" * 11 + b"\0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_lie_are_damage_and_end(dataset, name):
    kind, size = HOSTILE[name]
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT)[:512])
    header[156:157], header[124:136], header[482] = kind, size, 1
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    plain = tarfile.TarInfo("y").tobuf(tarfile.GNU_FORMAT)
    (dataset / FIRST).write_bytes(plain + bytes(header) * (2000 if kind == b"L" else 1))
    assert f"{FIRST}: truncated or damaged: no member can be read from byte" in "\n".join(problems(dataset))


def test_a_mask_value_past_the_classes_is_named(tmp_path):
    dataset = write(tmp_path / "set", [sample("a", [0]), sample("b", [0], value=3)])
    assert problems(dataset) == [f"{FIRST}: b: its mask has the value 3; allowed are 0 to 2 and 255"]


def test_a_mask_of_another_size_is_named(tmp_path):
    dataset = write(tmp_path / "set", [sample("a", [0], size=(24, 16))])
    assert problems(dataset) == [f"{FIRST}: a: its mask has 16x24 pixels, its picture 24x16"]


@pytest.mark.parametrize(("member", "named"), [("jpeg", "its image is not a JPEG"), ("mask", "its mask is not a PNG")])
def test_what_was_packed_broken_is_named(tmp_path, member, named):
    dataset = write(tmp_path / "set", [sample("a", [0])._replace(**{member: b"broken"})])
    (found,) = problems(dataset)
    assert f"{FIRST}: a: {named}" in found


def test_many_problems_are_counted_and_the_first_are_listed(tmp_path):
    items = [sample(f"n{n}", [0])._replace(jpeg=b"broken") for n in range(LISTED + 20)]
    found = inspect.inspect(write(tmp_path / "set", items), verify=True)
    assert (found["problem_count"], len(found["problems"])) == (LISTED + 20, LISTED)


def test_the_command_exits_with_1_and_says_how_many(dataset, capsys):
    (dataset / SECOND).unlink()
    with pytest.raises(SystemExit) as stop:
        inspect.main([str(dataset), "--verify", "--workers=1"])
    assert stop.value.code == 1
    assert capsys.readouterr().out.endswith("1 problem; pack the data set again\n")


@settings(max_examples=30)
@given(st.data())
def test_every_flipped_bit_of_a_shard_or_an_index_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flips")
    dataset = write(folder / "set", [sample("a", [0]), sample("b", [1])])
    file = data.draw(st.sampled_from(sorted(p for p in dataset.iterdir() if p.suffix != ".json")))
    place = data.draw(st.integers(0, file.stat().st_size - 1))
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    assert any(problem["file"] == file.name for problem in inspect.inspect(dataset, verify=True)["problems"])
