"""Mask shards beside picture shards: written whole, read by row, refused when they do not belong."""

import json
import shutil
from pathlib import Path

import pytest
import webdataset as wds

from ktse_dist.config.stages import Masks
from ktse_dist.data.index import Entry, Index, encode_index
from ktse_dist.data.mask_shards import MaskFiles, MaskIndex, write_mask_index, write_mask_shard
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
    return MaskFiles(key, f"mask of {key}".encode(), f"confidence of {key}".encode())


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
    shard.write_bytes(shard.read_bytes().replace(b"mask of cat", b"mask of rat"))
    with pytest.raises(UserError, match="mask of 'cat' is damaged"):
        MaskIndex(masks, index).read(1, "mask")


def test_missing_masks_are_one_clear_error(tmp_path, index):
    with pytest.raises(UserError, match="has no masks of split 'train'"):
        MaskIndex(tmp_path, index)
