"""Crops with label maps."""

import pickle

import numpy as np
import pytest

from ktse_dist.config.data import Data
from ktse_dist.data.augment import Draw, augment_labels
from ktse_dist.data.index import Index
from ktse_dist.data.labelled import labelled
from ktse_dist.data.mask_shards import MaskFiles, write_mask_index, write_mask_shard
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.data.reader import Reader
from ktse_dist.data.stream import Plan, stream
from ktse_dist.inference.formats import encode_confidence, encode_mask

PICTURES = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Packed stickers, and label shards for the first PICTURES of them in which each label is its pixel's red / 2."""
    folder = tmp_path_factory.mktemp("labelled") / "data"
    pack_stickers(folder, train=9, val=2, workers=1)
    index = Index.open(folder, "train")
    reader, files = Reader(index), []
    for row in range(PICTURES):
        labels = reader.picture(row)[:, :, 0] // 2
        files.append(MaskFiles(index.key(row), encode_mask(labels, np.zeros((1, 3))), encode_confidence(labels / 255)))
    write_mask_shard(folder / "labels" / index.shards[0].name, files)
    write_mask_index(folder / "labels", index)
    return index, folder / "labels"


def batches(index, labels, rank=0, world=1, first=0, **keys):
    plan, config = Plan(0, 2, first, 0, rank, world), Data(crop=64, **keys)
    return list(stream(index, config, 3, plan, labelled(index, config, 3, plan, labels)))


def test_labels_are_those_of_the_crops_own_pixels(data):
    index, labels = data
    seen = 0
    for batch in batches(index.first(PICTURES), labels):
        for image, box, label in zip(batch.images, batch.inside.tolist(), batch.labels, strict=True):
            top, left, bottom, right = box
            inside = np.zeros((64, 64), bool)
            inside[top:bottom, left:right] = True
            assert ((label.numpy() == 255) == ~inside[2::4, 2::4]).all()
            red = image[0].numpy()[2::4, 2::4][inside[2::4, 2::4]]
            known = label.numpy()[inside[2::4, 2::4]]
            assert np.abs(red / 2 - known).mean() < 12
            assert np.corrcoef(red, known)[0, 1] > 0.8
            seen += 1
    assert seen == PICTURES


def test_ranks_and_loading_processes_change_nothing(data):
    index, labels = data
    whole = batches(index.first(PICTURES), labels)
    halves = [batches(index.first(PICTURES), labels, rank, 2, workers=rank) for rank in (0, 1)]
    for one, *parts in zip(whole, *halves, strict=True):
        for rank, part in enumerate(parts):
            assert (one.images[rank::2] == part.images).all() and (one.labels[rank::2] == part.labels).all()


def test_the_first_pictures_of_an_index_are_an_index(data):
    index, _ = data
    part = pickle.loads(pickle.dumps(index.first(PICTURES)))
    assert len(part) == sum(part.shard_sizes) == PICTURES
    assert [part.key(row) for row in range(PICTURES)] == [index.key(row) for row in range(PICTURES)]
    assert part.sha256 == index.sha256


def test_labels_follow_a_mirrored_and_moved_crop():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    cropped = augment_labels(labels, Draw(4, True, 0, 1), 4)
    assert cropped[1:].tolist() == labels[:, ::-1].tolist() and (cropped[0] == 255).all()
