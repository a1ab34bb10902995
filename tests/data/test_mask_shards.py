"""Mask shards beside picture shards: written whole, read by row, refused when they do not belong."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from ktse_dist.config.stages import Masks
from ktse_dist.data.index import Entry, Index, encode_index
from ktse_dist.data.mask_shards import MaskFiles, MaskIndex, write_mask_index, write_mask_shard
from ktse_dist.data.pack.mask_png import mask_png
from ktse_dist.data.palette import voc_palette
from ktse_dist.errors import UserError
from ktse_dist.inference.generate import SeedSource

KEYS = ("boat", "cat", "cow", "dog", "sheep")


def pictures(folder: Path, tags: tuple[int, ...] = (0, 1, 1, 1, 1), keys: tuple[str, ...] = KEYS) -> Index:
    """The index of 5 pictures in 2 shards; the picture shards themselves are not needed."""
    folder.mkdir()
    none = (0, 0, 0)
    entries = [
        Entry(key, int(row > 2), none, none, None, [tag]) for row, (key, tag) in enumerate(zip(keys, tags, strict=True))
    ]
    (folder / "train.index").write_bytes(encode_index(entries, classes=2))
    shards = [
        {"name": f"train-0000{n}.tar", "bytes": 0, "samples": size, "sha256": ""} for n, size in enumerate((3, 2))
    ]
    parts = {"classes": ["ship", "animal"], "palette": voc_palette(3), "splits": {"train": {"shards": shards}}}
    about = {"format": 1} | parts
    (folder / "dataset.json").write_text(json.dumps(about))
    return Index.open(folder, "train")


def files(key: str) -> MaskFiles:
    value = KEYS.index(key)
    return MaskFiles(key, mask_png(np.full((5, 7), value, np.uint8)), mask_png(np.full((5, 7), 9 + value, np.uint8)))


def write_masks(folder: Path, index: Index) -> Path:
    write_mask_shard(folder / "train-00000.tar", map(files, KEYS[:3]))
    write_mask_shard(folder / "train-00001.tar", map(files, KEYS[3:]))
    write_mask_index(folder, index)
    return folder


@pytest.fixture
def index(tmp_path) -> Index:
    return pictures(tmp_path / "pictures")


@pytest.fixture
def masks(tmp_path, index) -> Path:
    return write_masks(tmp_path / "masks", index)


def test_masks_are_read_by_the_rows_of_the_picture_index(masks, index):
    found = MaskIndex(masks, index)
    for row, key in enumerate(KEYS):
        assert (found.read(row, "mask"), found.read(row, "conf")) == files(key)[1:]


def test_any_webdataset_reader_reads_the_shards_in_order(masks):
    samples = list(wds.WebDataset(str(masks / "train-00001.tar"), shardshuffle=False))
    assert [(s["__key__"], s["mask.png"], s["conf.png"]) for s in samples] == [files("dog"), files("sheep")]


def test_equal_masks_make_equal_files(masks, index, tmp_path):
    again = write_masks(tmp_path / "again", index)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in masks.iterdir()}


def test_an_interrupted_shard_leaves_nothing_behind(tmp_path):
    def until_it_fails():
        yield files("boat")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_mask_shard(tmp_path / "train-00000.tar", until_it_fails())
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_masks_are_named_when_asked_for(masks, index):
    (masks / "train-00001.tar").unlink()
    write_mask_index(masks, index)
    found = MaskIndex(masks, index)
    assert [found.has(row) for row in range(5)] == [True, True, True, False, False]
    with pytest.raises(UserError, match="no mask of 'dog'"):
        found.read(3, "mask")


def test_masks_of_another_data_set_are_refused(masks, tmp_path):
    with pytest.raises(UserError, match="made for other pictures"):
        MaskIndex(masks, pictures(tmp_path / "other", tags=(1, 1, 1, 1, 1)))


def test_seeds_are_not_made_of_pictures_whose_names_lead_elsewhere(tmp_path):
    index = pictures(tmp_path / "foreign", keys=("boat", "cat", "cow", "../dog", "sheep"))
    with pytest.raises(UserError, match=r"train\.index: '\.\./dog' is no key"):
        SeedSource(None, index, Masks(), "opencv")


def test_a_shard_of_other_pictures_is_refused_by_name(masks, index):
    shutil.copy(masks / "train-00000.tar", masks / "train-00001.tar")
    with pytest.raises(UserError, match="has a mask of 'boat', which its picture shard lacks"):
        write_mask_index(masks, index)


def test_a_damaged_mask_is_refused_by_name(masks, index):
    shard = masks / "train-00000.tar"
    whole, cat = shard.read_bytes(), files("cat").mask
    shard.write_bytes(whole.replace(cat, cat[:40] + b"rat" + cat[43:]))
    with pytest.raises(UserError, match="mask of 'cat' is damaged"):
        MaskIndex(masks, index).read(1, "mask")


def flipped(whole: bytes) -> bytes:
    at = whole.index(files("cow").conf) + 45
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


def cut_between_members(whole: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        return whole[: tar.getmembers()[4].offset]


@pytest.mark.parametrize(
    "damage",
    [flipped, cut_between_members, lambda whole: whole[:2000], lambda whole: b"", lambda whole: b"no tar" * 99],
)
def test_a_damaged_shard_is_refused_before_it_is_indexed_again(masks, index, damage):
    shard = masks / "train-00000.tar"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=r"train-00000\.tar: damaged; delete it, the same command then makes it again"):
        write_mask_index(masks, index)


@pytest.mark.parametrize("damage", [lambda whole: whole[:99], lambda whole: whole[:-24], lambda whole: b"", None])
def test_damaged_records_are_refused_by_name(masks, index, damage):
    records = masks / "train.masks.npy"
    if damage:
        records.write_bytes(damage(records.read_bytes()))
    else:
        records.unlink()
    with pytest.raises(UserError, match=r"train\.masks\.npy: damaged.* again"):
        MaskIndex(masks, index)


@pytest.mark.parametrize("content", ["{}", "[]", "3", "{"])
def test_an_index_that_is_not_one_is_refused_by_name(masks, index, content):
    (masks / "train.masks.json").write_text(content)
    with pytest.raises(UserError, match=r"train\.masks\.json: damaged.*again"):
        MaskIndex(masks, index)


def test_a_shard_that_is_gone_is_named(masks, index):
    found = MaskIndex(masks, index)
    (masks / "train-00001.tar").unlink()
    with pytest.raises(UserError, match=r"train-00001\.tar: not there; make it again: ktse masks --run"):
        found.read(4, "mask")


def test_missing_masks_are_one_clear_error(tmp_path, index):
    with pytest.raises(UserError, match="has no masks of split 'train'"):
        MaskIndex(tmp_path, index)
