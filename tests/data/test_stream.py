"""Batches: the same whatever reads them."""

import io
import pickle
import shutil
import tarfile

import cv2
import numpy as np
import pytest
import torch

from ktse_dist.config import Data
from ktse_dist.data.index import Index
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.data.stream import Loader, Plan, stream

BATCH, PAIRS = 6, 4


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "stickers"
    pack_stickers(path, train=26, val=2)
    return Index.open(path, "train")


def batches(index, rank=0, world=1, workers=0, first=0, epoch=1, pairs=PAIRS):
    data = Data(crop=64, long_side=(64, 96), workers=workers)
    return list(stream(index, data, 7, Plan(epoch, BATCH, first, pairs, rank, world)))


def pictures(index, world, **more):
    """Pictures of all global batches, put back in their order from the ranks' parts."""
    parts = [batches(index, rank, world, **more) for rank in range(world)]
    whole = []
    for ranks in zip(*parts, strict=True):
        batch = torch.empty(BATCH, *ranks[0].images.shape[1:], dtype=torch.uint8)
        for rank, part in enumerate(ranks):
            batch[rank::world] = part.images
        whole.append(batch)
    return torch.stack(whole)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(index, world):
    assert torch.equal(pictures(index, world), pictures(index, 1))


@pytest.mark.parametrize("workers", [1, 2])
def test_global_batches_do_not_depend_on_loading_processes(index, workers):
    assert torch.equal(pictures(index, 1, workers=workers), pictures(index, 1))


def test_an_epoch_goes_on_where_it_stopped(index):
    assert torch.equal(pictures(index, 2, first=2), pictures(index, 1)[2:])


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
    assert not torch.equal(pictures(index, 1, epoch=2), pictures(index, 1))


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
