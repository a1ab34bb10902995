"""Samples that cannot be read: what stands in their place, how they are named and counted, when they end a run."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ktse_dist.config.data import Data
from ktse_dist.data.bad_samples import FEW, BadSamples, Replaced
from ktse_dist.data.index import Index
from ktse_dist.data.order import epoch_order
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.data.partners import Windows
from ktse_dist.data.stream import Loader, Place, Plan, stream
from ktse_dist.errors import UserError

BATCH, PAIRS, SAMPLES = 6, 4, 36
TORN = (3, 11, 20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "stickers"
    pack_stickers(path, train=SAMPLES, val=2)
    return Index.open(path, "train")


def torn_copy(whole, path, rows) -> Index:
    shutil.copytree(whole.path, path)
    index = Index.open(path, "train")
    for row in rows:
        with (path / index.shards[int(index.samples["shard"][row])].name).open("r+b") as file:
            file.seek(int(index.samples["image"]["offset"][row]) + 100)
            file.write(b"\0" * 8)
    return index


@pytest.fixture(scope="module")
def torn(whole, tmp_path_factory):
    return torn_copy(whole, tmp_path_factory.mktemp("torn") / "set", TORN)


def batches(index, rank=0, world=1, workers=0, first=0, **more):
    data = Data(crop=64, long_side=(64, 96), workers=workers, **more)
    return list(stream(index, data, 7, Plan(1, BATCH, first, PAIRS, rank, world)))


def replaced_rows(parts) -> list[int]:
    return sorted(bad.row for batch in parts for bad in batch.replaced if bad.own)


def test_a_sample_that_cannot_be_read_keeps_its_place_and_the_others_theirs(whole, torn):
    keys = torch.cat([batch.keys for batch in batches(whole)])
    images, there = (torch.cat([batch.images for batch in batches(index)]) for index in (whole, torn))
    assert torch.equal(torch.cat([batch.keys for batch in batches(torn)]), keys)
    assert (images != there).flatten(1).any(1).sum() == len(TORN)


def test_labels_are_those_of_the_picture_that_stands_there(torn):
    loader = Loader(torn, Data(crop=64, long_side=(64, 96)), 7, 1)
    partners = Windows(epoch_order(torn.shard_sizes, 7, 1), torn.labels, 1)
    for row in TORN:
        item = loader(Place(row, True, partners.of(row)))
        stands = next(r for a in range(99) if (r := partners.of(row).replacement(row, a, row)) not in TORN)
        assert np.array_equal(item.label, torn.labels([stands])[0])
        assert (item.label * item.partner_label).any()


def test_a_replacement_shares_a_class_with_the_sample_it_stands_for(whole, torn):
    for before, after in zip(batches(whole), batches(torn), strict=True):
        assert ((before.labels * after.labels).sum(1) > 0).all()


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (3, 1)])
def test_every_layout_replaces_the_same_samples_by_the_same(torn, world, workers):
    alone = torch.cat([batch.images for batch in batches(torn)])
    parts = [batches(torn, rank, world, workers) for rank in range(world)]
    for rank, part in enumerate(parts):
        own = torch.cat([images[rank::world] for images in alone.split(BATCH)])
        assert torch.equal(torch.cat([batch.images for batch in part]), own)
    assert sorted(row for part in parts for row in replaced_rows(part)) == list(TORN)


def test_a_bad_sample_is_named_with_its_shard_and_what_is_wrong(torn):
    why = next(bad.why for batch in batches(torn) for bad in batch.replaced if bad.row == TORN[0])
    assert torn.key(TORN[0]) in why
    assert "is damaged (crc32)" in why
    assert torn.shards[0].name in why


def test_it_is_logged_once_however_often_it_is_drawn(caplog):
    bad = BadSamples(100, 0.1)
    with caplog.at_level(logging.WARNING, "ktse"):
        for _ in range(3):
            bad.add([Replaced(5, "cat_5: its image is damaged", True)])
    assert [record.getMessage() for record in caplog.records] == [
        "replaced by another picture: cat_5: its image is damaged"
    ]


def test_partners_that_cannot_be_read_do_not_count():
    bad = BadSamples(100, 0)
    bad.add([Replaced(row, "why", own=False) for row in range(50)])
    assert bad.check() == 0


@pytest.mark.parametrize(("samples", "fraction", "allowed"), [(100, 0.0, FEW), (100, 0.25, 25), (10_000, 0.001, 10)])
def test_more_bad_samples_than_allowed_end_the_run_in_one_line(samples, fraction, allowed):
    bad = BadSamples(samples, fraction)
    bad.add([Replaced(row, f"key_{row}: torn", True) for row in range(allowed)])
    assert bad.check() == allowed
    bad.add([Replaced(allowed, "key_last: torn", True)])
    with pytest.raises(
        UserError, match=rf"data.max_bad_fraction: {allowed + 1} of .* allowed are {allowed} \(key_last"
    ):
        bad.check()


def test_an_epoch_that_goes_on_counts_from_where_it_was():
    bad = BadSamples(100, 0, before=FEW)
    assert bad.check() == FEW
    bad.add([Replaced(1, "torn", True)])
    with pytest.raises(UserError):
        bad.check()
    bad.next_epoch()
    assert bad.check() == 0


def test_what_two_ranks_cannot_read_is_counted_together_and_ends_both(tmp_path):
    script = Path(__file__).with_name("count_bad.py")
    commands = [[sys.executable, str(script), str(rank), str(tmp_path / "store")] for rank in range(2)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    counts, ends = zip(*(rank.communicate(timeout=120)[0].splitlines() for rank in ranks), strict=True)
    assert counts == (str(FEW), str(FEW))
    assert all(f"{FEW + 1} of 100 pictures could not be read" in end for end in ends)
    assert "key_50" in ends[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_without_any_readable_picture_ends_in_one_line(whole, tmp_path, workers):
    with pytest.raises(UserError, match=r"pictures in a row cannot be read; the last: .*is damaged") as error:
        batches(torn_copy(whole, tmp_path / "set", range(SAMPLES)), workers=workers)
    assert "\n" not in str(error.value)


def test_batches_stay_full_where_seven_of_eight_pictures_are_unreadable(whole, tmp_path):
    readable = 8
    index = torn_copy(whole, tmp_path / "set", [row for row in range(SAMPLES) if row % readable])
    parts = batches(index)
    assert len(parts) == SAMPLES // BATCH
    assert np.unique(replaced_rows(parts)).size == SAMPLES - len(range(0, SAMPLES, readable))
