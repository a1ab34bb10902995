"""The writer: what goes in comes out, by our reader and by any other; what cannot be kept is refused."""

import json
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.data.decode import BadSample
from ktse_dist.data.index import KEY, Index
from ktse_dist.data.pack.writer import Sample, key_of, new_dataset, write_about, write_split
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError

CLASSES = ["boat", "cat", "cow"]


def samples(count: int = 7) -> list[Sample]:
    """Any bytes will do: the writer copies. Every third sample has no mask."""
    return [
        Sample(f"set_{n % 2}/{n}", b"jpeg%d" % n * 300, [n % 3], b"png%d" % n if n % 3 else None, f"file {n}")
        for n in range(count)
    ]


def pack(out: Path, items: list[Sample], shard_bytes: int = 5000) -> Index:
    with new_dataset(out) as folder:
        write_about(folder, CLASSES, {"train": write_split(folder, "train", items, len(CLASSES), shard_bytes)})
    return Index.open(out, "train")


@pytest.fixture
def index(tmp_path) -> Index:
    return pack(tmp_path / "set", samples())


def test_members_are_read_by_row(index):
    reader = Reader(index)
    for row, sample in enumerate(samples()):
        assert (index.key(row), reader.read(row, "image")) == (sample.key, sample.jpeg)
        assert json.loads(reader.read(row, "json")) == {"labels": sample.labels, "source": sample.source}
        if sample.mask is not None:
            assert reader.read(row, "mask") == sample.mask


def test_any_webdataset_reader_reads_the_samples(index):
    urls = [str(index.path / shard.name) for shard in index.shards]
    found = list(wds.WebDataset(urls, shardshuffle=False))
    assert [(item["__key__"], item["jpg"], item.get("mask.png")) for item in found] == [
        (sample.key, sample.jpeg, sample.mask) for sample in samples()
    ]


def test_labels_of_the_json_agree_with_the_index(index):
    reader = Reader(index)
    for row, tags in enumerate(index.labels(range(len(index)))):
        assert json.loads(reader.read(row, "json"))["labels"] == tags.nonzero()[0].tolist()


def test_dataset_json_describes_the_files(index):
    index.check_files()
    assert len(index.shards) > 1
    assert sum(shard.samples for shard in index.shards) == len(index)
    assert [shard.bytes for shard in index.shards] == [(index.path / s.name).stat().st_size for s in index.shards]


def test_the_same_samples_give_the_same_bytes(tmp_path, index):
    again = pack(tmp_path / "again", samples())
    for file in index.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes()


def test_shards_hold_nothing_of_the_machine_or_the_time(index):
    with tarfile.open(index.path / index.shards[0].name) as tar:
        assert {(item.mtime, item.uid, item.gid, item.uname, item.gname) for item in tar} == {
            (0, 0, 0, "bigdata", "bigdata")
        }


@pytest.mark.parametrize("member", ["image", "json", "mask"])
def test_one_wrong_bit_is_found_and_named(index, member):
    shard = index.path / index.shards[0].name
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    content[int(index.samples[member]["offset"][1]) + 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(BadSample, match=rf"set_1/1: its {member} .*train-00000\.tar"):
        Reader(index).read(1, member)


def test_a_mask_that_is_not_there_is_no_mask(index):
    with pytest.raises(BadSample, match="its mask is missing"):
        Reader(index).read(0, "mask")


def test_few_shards_are_open_at_a_time(tmp_path, monkeypatch):
    index = pack(tmp_path / "many", samples(40), shard_bytes=1)
    monkeypatch.setattr("ktse_dist.data.reader.OPEN_SHARDS", 4)
    opened, plain = [], Path.open
    monkeypatch.setattr(Path, "open", lambda *given, **more: opened.append(plain(*given, **more)) or opened[-1])
    reader = Reader(index)
    for row in [*range(40), *range(40)]:
        reader.read(row, "image")
        assert sum(not file.closed for file in opened) <= 4


@pytest.mark.parametrize("cut", [0, 700])
def test_a_shard_that_is_missing_or_cut_short_is_refused(index, cut):
    shard = index.path / index.shards[1].name
    content = shard.read_bytes()
    shard.unlink()
    if cut:
        shard.write_bytes(content[:-cut])
    with pytest.raises(UserError, match=r"train-00001\.tar: .*pack it again"):
        index.check_files()


def test_an_index_of_other_shards_is_refused(tmp_path, index):
    other = pack(tmp_path / "other", [sample._replace(jpeg=b"?" * len(sample.jpeg)) for sample in samples()])
    (index.path / "train.index").write_bytes((other.path / "train.index").read_bytes())
    with pytest.raises(UserError, match=r"train\.index: .*sha256"):
        Index.open(index.path, "train").check_files()


FIRST = samples(1)[0]
REFUSED = {
    "no samples": ([], "no pictures"),
    "a key twice": ([FIRST, FIRST], "set_0/0"),
    "a key with a dot": ([FIRST._replace(key="a.b")], "a.b"),
    "a key that leaves the folder": ([FIRST._replace(key="../a")], "../a"),
    "an absolute key": ([FIRST._replace(key="/a")], "/a"),
    "no key": ([FIRST._replace(key="")], "''"),
    "a label past the classes": ([FIRST._replace(labels=[3])], "0 to 2"),
    "a negative label": ([FIRST._replace(labels=[-1])], "0 to 2"),
}


@pytest.mark.parametrize("items, named", REFUSED.values(), ids=REFUSED)
def test_what_a_shard_cannot_keep_is_refused_and_leaves_nothing(tmp_path, items, named):
    with pytest.raises(UserError) as refusal:
        pack(tmp_path / "set", items)
    assert named in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_have_any_name(tmp_path):
    assert len(pack(tmp_path / "50%done: a b", samples())) == 7


def test_two_builders_of_one_folder_do_not_disturb_each_other(tmp_path):
    out = tmp_path / "set"
    with pytest.raises(UserError, match="exists already"), new_dataset(out) as slow:
        (slow / "mark").touch()
        pack(out, samples())
        assert (slow / "mark").exists()
    assert len(Index.open(out, "train")) == 7
    assert list(tmp_path.iterdir()) == [out]


@given(st.text(max_size=30))
def test_a_key_made_of_any_path_is_clean_or_empty(path):
    key = key_of(path)
    assert key == "" or KEY.fullmatch(key)


def test_a_key_is_the_path_without_its_extension():
    assert [key_of(path) for path in ("a/b.jpg", "a/b.c.jpeg", "./x.png")] == ["a/b", "a/b_c", "_/x"]
