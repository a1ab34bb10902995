"""The index: gives back what was written, refuses what it cannot be."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktse_dist.data.index import RECORD, Entry, Index, encode_index
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.data.palette import voc_palette
from ktse_dist.errors import UserError

U32 = st.integers(0, 2**32 - 1)
MEMBER = st.tuples(U32, U32, U32)
KEYS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-/é日", min_size=1, max_size=12)
SHARD = {"name": "train-00000.tar", "bytes": 0, "samples": 2, "sha256": ""}


def dataset(folder: Path, entries: list[Entry], count: int = 3, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.index").write_bytes(encode_index(entries, count))
    names = [f"class {n}" for n in range(count)]
    parts = {"classes": names, "palette": voc_palette(count + 1), "splits": {"train": {"shards": [SHARD]}}}
    about = {"format": 1} | parts | changes
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def entry(key: str = "a", labels: tuple[int, ...] = (0,)) -> Entry:
    return Entry(key, 0, (512, 7, 1), (1024, 7, 2), None, labels)


@st.composite
def written(draw):
    classes = draw(st.integers(1, 20))
    tags = st.sets(st.integers(0, classes - 1)).map(sorted)
    entries = st.builds(Entry, KEYS, U32, MEMBER, MEMBER, st.none() | MEMBER, tags)
    return classes, draw(st.lists(entries, min_size=1, max_size=12))


@settings(max_examples=60, deadline=None)
@given(written())
def test_an_index_gives_back_what_was_written(tmp_path_factory, given_entries):
    classes, entries = given_entries
    index = Index.open(dataset(tmp_path_factory.mktemp("index"), entries, classes), "train")
    tags = index.labels(range(len(index)))
    assert len(index) == len(entries)
    for row, (item, record) in enumerate(zip(entries, index.samples, strict=True)):
        read = [tuple(int(n) for n in record[member]) for member in ("image", "json", "mask")]
        assert read == [item.image, item.json, item.mask or (0, 0, 0)]
        assert (index.key(row), int(record["shard"])) == (item.key, item.shard)
        assert np.flatnonzero(tags[row]).tolist() == list(item.labels)


def test_a_sample_costs_44_bytes_and_its_key_and_tag_bits(tmp_path):
    size = [(dataset(tmp_path / str(n), [entry("abcde")] * n, 20) / "train.index").stat().st_size for n in (1, 2)]
    assert size[1] - size[0] == 44 + 5 + 3 == RECORD.itemsize + 5 + 3


def test_samples_are_mapped_from_the_file(tmp_path):
    base = Index.open(dataset(tmp_path, [entry()] * 50), "train").samples
    while not isinstance(base, np.memmap):
        base = base.base
    assert base.mode == "r"


def test_another_process_maps_the_file_itself(tmp_path):
    index = Index.open(dataset(tmp_path, [entry("k", (1,))] * 5000), "train")
    packed = pickle.dumps(index)
    assert len(packed) < 2000
    assert pickle.loads(packed).key(4999) == "k"


@pytest.mark.parametrize("lost", [1, 30, 44, 97])
def test_an_index_cut_short_is_refused_by_name(tmp_path, lost):
    file = dataset(tmp_path, [entry("a"), entry("b")]) / "train.index"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - lost])
    with pytest.raises(UserError, match=r"train\.index: .*pack the data set again"):
        Index.open(tmp_path, "train")


@pytest.mark.parametrize("content", [b"", b"P", b"PK\3\4" * 40, b"KTSEIDX1" + b"\xff" * 200])
def test_a_foreign_index_is_refused_by_name(tmp_path, content):
    (dataset(tmp_path, [entry()]) / "train.index").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.index: .*pack the data set again"):
        Index.open(tmp_path, "train")


def test_an_index_of_no_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pictures"):
        Index.open(dataset(tmp_path, []), "train")


def test_an_index_of_other_classes_is_refused(tmp_path):
    dataset(tmp_path, [entry()], 3, classes=[f"class {n}" for n in range(12)], palette=voc_palette(13))
    with pytest.raises(UserError, match=r"train\.index"):
        Index.open(tmp_path, "train")


def test_a_split_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        Index.open(dataset(tmp_path, [entry()]), "test")


@pytest.mark.parametrize("key", ["../a", "/a", "a//b", "a.b", "a b", "a\nb", "<b>", "é", "a/"])
def test_keys_that_pack_does_not_write_are_refused_in_one_line(tmp_path, key):
    index = Index.open(dataset(tmp_path, [entry("a"), entry(key)]), "train")
    with pytest.raises(UserError, match=r"train\.index: .* is no key; allowed are .*pack the data set again") as caught:
        index.check_keys()
    assert "\n" not in str(caught.value)


def test_keys_whose_ends_lie_are_refused(tmp_path):
    file = dataset(tmp_path, [entry("ab"), entry("cd")]) / "train.index"
    content = bytearray(file.read_bytes())
    content[32 + RECORD.fields["key_end"][1]] = 4  # the end of the first key, which is then that of the last
    file.write_bytes(content)
    assert Index.open(tmp_path, "train").odd_key() == ""


OUTSIDE = SHARD | {"name": "../train-00000.tar"}
WRONG = {
    "no classes": {"classes": None},
    "classes that are numbers": {"classes": [1, 2, 3]},
    "a colour too few": {"palette": voc_palette(3)},
    "no splits": {"splits": None},
    "a split without shards": {"splits": {"train": {}}},
    "a shard without its size": {"splits": {"train": {"shards": [{"name": "train-00000.tar"}]}}},
    "a size that is text": {"splits": {"train": {"shards": [SHARD | {"bytes": "7"}]}}},
    "a shard outside the folder": {"splits": {"train": {"shards": [OUTSIDE]}}},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_dataset_json_with_wrong_parts_is_refused_by_name(tmp_path, change):
    with pytest.raises(UserError, match=r"dataset\.json: .*pack the data set again"):
        Index.open(dataset(tmp_path, [entry()], **change), "train")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b'{"format": 2}'])
def test_a_foreign_dataset_json_is_refused_by_name(tmp_path, content):
    (dataset(tmp_path, [entry()]) / "dataset.json").write_bytes(content)
    with pytest.raises(UserError, match=r"dataset\.json: .*pack the data set again"):
        Index.open(tmp_path, "train")


@pytest.mark.parametrize("samples", [10**18, -1, 0])
def test_an_index_of_other_shards_is_refused_before_an_order_is_made(tmp_path, samples):
    pack_stickers(tmp_path / "set", train=4, val=2)
    file = tmp_path / "set" / "dataset.json"
    about = json.loads(file.read_text())
    about["splits"]["train"]["shards"][0]["samples"] = samples
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"train\.index: its rows do not fit the shards of dataset\.json"):
        Index.open(tmp_path / "set", "train").check_files()
