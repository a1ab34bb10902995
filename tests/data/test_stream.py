"""Batches: the same whatever reads them."""

import io
import pickle
import shutil
import tarfile
from itertools import islice

import cv2
import numpy as np
import psutil
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ktse_dist.config.data import Data
from ktse_dist.data import keyed
from ktse_dist.data.index import Index
from ktse_dist.data.order import epoch_order
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.data.pack.voc import CLASSES
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.stream import DROPOUT, Loader, Plan, stream
from ktse_dist.errors import UserError

BATCH, PAIRS = 6, 4


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "stickers"
    pack_stickers(path, train=26, val=2)
    return Index.open(path, "train")


def batches(index, rank=0, world=1, workers=0, first=0, epoch=1, pairs=PAIRS):
    data = Data(crop=64, long_side=(64, 96), workers=workers)
    return list(stream(index, data, 7, Plan(epoch, BATCH, first, pairs, rank, world)))


def test_a_loading_process_that_dies_ends_in_one_line(index):
    loading = stream(index, Data(crop=64, long_side=(64, 96), workers=1), 7, Plan(1, 2, 0, 0, 0, 1))
    next(loading)
    for process in psutil.Process().children(recursive=True):
        if process.name() == "pt_data_worker":
            process.kill()
    with pytest.raises(UserError, match=r"data\.workers: a loading process died"):
        list(loading)


def test_the_last_incomplete_batch_is_dropped(index):
    assert len(batches(index)) == 26 // BATCH


@pytest.mark.parametrize("world", [1, 2, 4])
def test_partners_belong_to_the_first_pictures_of_the_global_batch(index, world):
    alone = batches(index)[0]
    for rank in range(world):
        part = batches(index, rank, world)[0]
        assert part.local_pairs == len(range(rank, PAIRS, world))
        assert torch.equal(part.partners[: part.local_pairs], alone.partners[rank::world])


def test_a_partner_shares_a_tag_with_its_picture(index):
    for batch in batches(index):
        assert ((batch.labels[:PAIRS] * batch.partner_labels).sum(1) > 0).all()


def test_phase_one_loads_no_partners(index):
    assert all(len(batch.partners) == 0 for batch in batches(index, pairs=0))


def test_a_rank_without_pairs_still_brings_one(index):
    batch = batches(index, rank=3, world=4, pairs=1)[0]
    assert (batch.local_pairs, len(batch.partners), batch.pairs) == (0, 1, 1)


def test_another_epoch_crops_and_orders_anew(index):
    one, two = (torch.cat([batch.images for batch in batches(index, epoch=epoch)]) for epoch in (1, 2))
    assert not torch.equal(one, two)


def test_keys_of_noise_differ_between_samples_and_epochs(index):
    keys = torch.cat([b.keys for epoch in (0, 1) for b in batches(index, epoch=epoch)])
    assert len(np.unique(keys)) == len(keys)


class Harm:
    """What a pickle can do while it is loaded: here, make a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_member_that_would_run_code_is_never_opened(index, tmp_path):
    shutil.copytree(index.path, tmp_path / "evil")
    evil = Index.open(tmp_path / "evil", "train")
    content = pickle.dumps(Harm(tmp_path / "harmed"))
    with tarfile.open(evil.path / evil.shards[0].name, "a") as tar:
        for ending in ("pyd", "pickle", "pth"):
            member = tarfile.TarInfo(f"{evil.key(0)}.{ending}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert len(batches(evil)) == len(batches(index))
    assert not (tmp_path / "harmed").exists()
    pickle.loads(content).close()  # it would have
    assert (tmp_path / "harmed").exists()


def test_a_loading_process_works_on_one_thread(index):
    sent = pickle.dumps(Loader(index, Data(), seed=1, epoch=0))
    cv2.setNumThreads(2)
    pickle.loads(sent)
    assert cv2.getNumThreads() == 1


def fingerprint(batch, rank, world, batch_size):
    """One global batch's parts as (position, everything that a loss would see of that picture)."""
    for place, position in enumerate(range(rank, batch_size, world)):
        own = (batch.images[place], batch.inside[place], batch.labels[place], batch.keys[place])
        partner = ()
        if place < batch.local_pairs:
            partner = (batch.partners[place], batch.partner_inside[place], batch.partner_labels[place])
        yield position, tuple(tensor.numpy().tobytes() for tensor in (*own, *partner))


def whole_batches(index, layout, batch_size, pairs, epoch, first, count):
    """Global batches `first` to `first + count`, put together from what every rank of one layout loads."""
    lanes, window, world, workers = layout
    data = Data(crop=32, long_side=(32, 64), workers=workers, lanes=lanes, window_shards=window)
    plans = [Plan(epoch, batch_size, first, pairs, rank, world) for rank in range(world)]
    ranks = [list(islice(stream(index, data, 7, plan), count)) for plan in plans]
    for parts in zip(*ranks, strict=True):
        yield dict(item for rank, part in enumerate(parts) for item in fingerprint(part, rank, world, batch_size))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """60 pictures in some 12 shards, two of them unreadable."""
    path = tmp_path_factory.mktemp("shards") / "set"
    names, shown = CLASSES[:3], np.random.default_rng(3)
    samples = []
    for number in range(60):
        noise = cv2.resize(shown.integers(0, 256, (5, 6, 3), np.uint8), (60, 44))
        content = b"torn" if number in (8, 31) else simplejpeg.encode_jpeg(noise, 90)
        samples.append(Sample(f"p{number}", content, sorted({number % 3, number % 2}), None, "drawn"))
    with new_dataset(path) as folder:
        write_about(folder, names, {"train": write_split(folder, "train", samples, 3, 8_000)})
    index = Index.open(path, "train")
    assert len(index.shards) > 8
    return index


LAYOUTS = [(world, 0) for world in (2, 3, 4, 8)]
WITH_PROCESSES = [(world, workers) for world in (1, 2, 3, 4, 8) for workers in (1, 2)]


def check_layout(index, lanes, window, world, workers):
    asked = (8, 5, 1, 0, 99)
    alone = list(whole_batches(index, (lanes, window, 1, 0), *asked))
    assert len(alone) == len(index) // 8
    assert list(whole_batches(index, (lanes, window, world, workers), *asked)) == alone


@pytest.mark.parametrize(("world", "workers"), [*LAYOUTS, (1, 2), (2, 1)])
def test_global_batches_are_the_same_in_every_layout(shards, world, workers):
    check_layout(shards, 2, 2, world, workers)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "workers"), WITH_PROCESSES)
def test_global_batches_are_the_same_with_loading_processes(shards, world, workers):
    check_layout(shards, 4, 1, world, workers)


@pytest.mark.parametrize(("lanes", "window"), [(1, None), (4, 1), (8, None), (8, 1)])
@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_global_batches_are_the_same_in_any_lanes_and_windows(shards, lanes, window, world):
    check_layout(shards, lanes, window, world, 0)


def check_going_on(index, lanes, window, epoch, first, world, pairs, workers=0):
    """A run stopped before batch `first` goes on, with other ranks and processes, as one that was not."""
    alone = list(whole_batches(index, (lanes, window, 1, 0), 8, pairs, epoch, 0, 99))
    assert list(whole_batches(index, (lanes, window, world, workers), 8, pairs, epoch, first, 99)) == alone[first:]


points = given(
    lanes=st.sampled_from([1, 2, 4, 8]),
    window=st.sampled_from([None, 1, 3]),
    epoch=st.integers(0, 9),
    first=st.integers(0, 6),
    world=st.sampled_from([1, 2, 3, 4, 8]),
    pairs=st.integers(0, 8),
)


@points
@settings(max_examples=12)
def test_a_run_goes_on_at_any_point_with_another_number_of_ranks(shards, **point):
    check_going_on(shards, **point)


def test_a_run_goes_on_with_another_number_of_loading_processes(shards):
    check_going_on(shards, lanes=2, window=3, epoch=4, first=3, world=1, pairs=5, workers=2)


@pytest.mark.slow
@points
@settings(max_examples=200)
def test_a_run_goes_on_at_two_hundred_points(shards, **point):
    check_going_on(shards, **point)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_every_readable_sample_comes_once_but_for_the_last_incomplete_batch(shards, lanes):
    data = Data(crop=32, long_side=(32, 64), lanes=lanes, window_shards=1)
    order = epoch_order(shards.shard_sizes, 7, 4, 1, lanes)
    seen = torch.cat([batch.keys for batch in stream(shards, data, 7, Plan(4, 8, 0, 0, 0, 1))])
    assert len(set(seen.tolist())) == len(shards) // 8 * 8
    expected = [keyed.word(7, 4, DROPOUT, row) for row in order.samples[: len(seen)].tolist()]
    assert [key % 2**64 for key in seen.tolist()] == expected
