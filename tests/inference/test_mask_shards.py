"""Mask shards beside picture shards: written whole, read by row, refused when they do not belong."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import webdataset as wds

from ktse_dist.errors import UserError
from ktse_dist.inference.mask_shards import MaskFiles, MaskIndex, write_mask_index, write_mask_shard


@dataclass
class Pictures:
    """The part of data.index.Index that masks rest on: 5 pictures in 2 shards."""

    sha256: str = "a1"
    split: str = "train"
    path: Path = Path("pictures")
    keys: tuple[str, ...] = ("boat", "cat", "cow", "dog", "sheep")
    shards: tuple = (SimpleNamespace(name="train-00000.tar"), SimpleNamespace(name="train-00001.tar"))
    samples: np.ndarray = field(default_factory=lambda: np.array([(0,), (0,), (0,), (1,), (1,)], [("shard", "<u4")]))

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        return self.keys[row]


def files(key: str) -> MaskFiles:
    return MaskFiles(key, f"mask of {key}".encode(), f"confidence of {key}".encode())


@pytest.fixture
def masks(tmp_path) -> Path:
    write_mask_shard(tmp_path / "train-00000.tar", map(files, Pictures.keys[:3]))
    write_mask_shard(tmp_path / "train-00001.tar", map(files, Pictures.keys[3:]))
    write_mask_index(tmp_path, Pictures())
    return tmp_path


def test_masks_are_read_by_the_rows_of_the_picture_index(masks):
    index = MaskIndex(masks, Pictures())
    for row, key in enumerate(Pictures.keys):
        assert (index.read(row, "mask"), index.read(row, "conf")) == files(key)[1:]


def test_any_webdataset_reader_reads_the_shards_in_order(masks):
    samples = list(wds.WebDataset(str(masks / "train-00001.tar"), shardshuffle=False))
    assert [(s["__key__"], s["mask.png"], s["conf.png"]) for s in samples] == [files("dog"), files("sheep")]


def test_equal_masks_make_equal_files(masks, tmp_path_factory):
    again = tmp_path_factory.mktemp("again")
    for name, keys in (("train-00000.tar", Pictures.keys[:3]), ("train-00001.tar", Pictures.keys[3:])):
        write_mask_shard(again / name, map(files, keys))
    write_mask_index(again, Pictures())
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in masks.iterdir()}


def test_an_interrupted_shard_leaves_nothing_behind(tmp_path):
    def until_it_fails():
        yield files("boat")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_mask_shard(tmp_path / "train-00000.tar", until_it_fails())
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_masks_are_named_when_asked_for(masks):
    (masks / "train-00001.tar").unlink()
    write_mask_index(masks, Pictures())
    index = MaskIndex(masks, Pictures())
    assert [index.has(row) for row in range(5)] == [True, True, True, False, False]
    with pytest.raises(UserError, match="no mask of 'dog'"):
        index.read(3, "mask")


def test_masks_of_another_data_set_are_refused(masks):
    with pytest.raises(UserError, match="made for other pictures"):
        MaskIndex(masks, Pictures(sha256="b2"))


def test_a_shard_of_other_pictures_is_refused_by_name(masks):
    shutil.copy(masks / "train-00000.tar", masks / "train-00001.tar")
    with pytest.raises(UserError, match="has a mask of 'boat', which its picture shard lacks"):
        write_mask_index(masks, Pictures())


def test_a_damaged_mask_is_refused_by_name(masks):
    shard = masks / "train-00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"mask of cat", b"mask of rat"))
    with pytest.raises(UserError, match="mask of 'cat' is damaged"):
        MaskIndex(masks, Pictures()).read(1, "mask")


def test_missing_masks_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="has no masks of split 'train'"):
        MaskIndex(tmp_path, Pictures())
