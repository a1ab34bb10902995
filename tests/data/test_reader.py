"""The reader, where files have gone wrong or away; what it returns from whole ones is in test_writer.py."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from ktse_dist.data.decode import BadSample
from ktse_dist.data.index import Index
from ktse_dist.data.pack.mask_png import mask_png as png
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError

PICTURE = np.full((16, 24, 3), (200, 40, 10), np.uint8)
MASK = np.array([[0, 1, 255], [2, 0, 1]], np.uint8)
WHOLE, PLAIN, BROKEN = range(3)


@pytest.fixture
def index(tmp_path) -> Index:
    """A picture with a mask, one without, and one whose members were no pictures when they were packed."""
    jpeg = simplejpeg.encode_jpeg(PICTURE, 95)
    items = [
        Sample("pets/whole", jpeg, [0, 1], png(MASK), "a"),
        Sample("pets/plain", jpeg, [1], None, "b"),
        Sample("pets/broken", b"no picture", [0], b"no mask", "c"),
    ]
    with new_dataset(tmp_path / "set") as folder:
        write_about(folder, ["cat", "dog"], {"train": write_split(folder, "train", items, 2, 1)})
    return Index.open(tmp_path / "set", "train")


def shard_of(index: Index, row: int) -> Path:
    return index.path / index.shards[int(index.samples["shard"][row])].name


def test_pictures_and_truths_come_decoded(index):
    reader = Reader(index)
    assert np.abs(reader.picture(WHOLE).astype(int) - PICTURE).max() < 6
    assert np.array_equal(reader.truth(WHOLE), MASK)


def test_a_picture_without_ground_truth_has_none(index):
    assert Reader(index).truth(PLAIN) is None


@pytest.mark.parametrize(("decoded", "member"), [("picture", "image"), ("truth", "mask")])
def test_what_cannot_be_decoded_is_named_by_its_key(index, decoded, member):
    with pytest.raises(BadSample, match=f"pets/broken: its {member} is not a"):
        getattr(Reader(index), decoded)(BROKEN)


def test_a_shard_that_went_away_is_the_users_to_mend(index):
    shard_of(index, PLAIN).unlink()
    with pytest.raises(UserError, match=r"train-00001\.tar: missing; copy the whole data set"):
        Reader(index).read(PLAIN, "image")


def test_a_shard_cut_inside_a_picture_is_a_damaged_picture(index):
    shard = shard_of(index, WHOLE)
    cut = int(index.samples["image"]["offset"][WHOLE]) + 100
    content = shard.read_bytes()[:cut]
    shard.unlink()
    shard.write_bytes(content)
    with pytest.raises(BadSample, match="pets/whole: its image is damaged"):
        Reader(index).read(WHOLE, "image")


def test_a_reader_travels_to_another_process_without_its_open_files(index):
    reader = Reader(index)
    before = reader.read(WHOLE, "image")
    assert pickle.loads(pickle.dumps(reader)).read(WHOLE, "image") == before
