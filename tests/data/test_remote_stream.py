"""Batches of a remote data set: those of the local one, whatever the cache holds and the server does."""

import itertools
import threading
import time

import pytest
import torch

from ktse_dist.config.data import Data
from ktse_dist.data import cache
from ktse_dist.data.index import Index
from ktse_dist.data.prefetch import check_room, room_for_shards, turns
from ktse_dist.data.remote_set import RANGED_OF_SHARD
from ktse_dist.data.stream import Plan, stream
from ktse_dist.errors import UserError

BATCH, PAIRS = 4, 2


def batches(index: Index, data: Data, rank=0, world=1, first=0, epoch=1):
    return stream(index, data, 7, Plan(epoch, BATCH, first, PAIRS, rank, world))


def assert_same(found, expected):
    for one, other in itertools.zip_longest(found, expected):
        assert torch.equal(one.images, other.images) and torch.equal(one.partners, other.partners)
        assert torch.equal(one.labels, other.labels) and torch.equal(one.keys, other.keys)


def cached(index: Index) -> int:
    """Bytes in the cache, while the fetching thread adds and removes files."""
    return sum(size for _, size, _ in cache.used(index.path.parent))


@pytest.fixture
def two_windows(small_shards) -> float:
    """Gigabytes that hold what is no shard and about two windows of two shards."""
    index = Index.open(small_shards, "train")
    others = sum(f.stat().st_size for f in small_shards.iterdir() if f.suffix != ".tar")
    return (others + 4.5 * max(shard.bytes for shard in index.shards)) / 1e9


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_over_http_are_those_of_the_local_data_set(small_shards, serve, remote_data, open_remote, workers):
    url = serve(small_shards).url
    data = remote_data(url, workers=workers)
    assert_same(batches(open_remote(url), data), batches(Index.open(small_shards, "train"), data))


def test_batches_from_s3_are_those_of_the_local_data_set(small_shards, bucket, remote_data, open_remote):
    data = remote_data(bucket, window_shards=2)
    assert_same(batches(open_remote(bucket), data), batches(Index.open(small_shards, "train"), data))


@pytest.mark.parametrize(("lanes", "world"), [(1, 1), (2, 2), (4, 2)])
def test_a_small_cache_gives_the_same_batches_and_keeps_its_bound(
    small_shards, serve, remote_data, open_remote, two_windows, lanes, world
):
    data = remote_data(serve(small_shards).url, gigabytes=two_windows, window_shards=2, lanes=lanes)
    index = open_remote(data.path, gigabytes=two_windows)
    largest = 0
    for rank in range(world):
        local = batches(Index.open(small_shards, "train"), data, rank, world)
        for found, expected in zip(batches(index, data, rank, world), local, strict=True):
            assert torch.equal(found.images, expected.images)
            largest = max(largest, cached(index))
    assert largest <= two_windows * 1e9


def test_a_resumed_run_starts_with_the_batch_of_the_local_one(small_shards, serve, remote_data, open_remote):
    data = remote_data(serve(small_shards).url)
    index = open_remote(data.path)
    assert_same(batches(index, data, first=3), batches(Index.open(small_shards, "train"), data, first=3))


def test_batches_go_on_where_the_server_was_killed_and_came_back(small_shards, serve, remote_data, open_remote):
    server = serve(small_shards, pause=0.1)
    data = remote_data(server.url, deadline=60, window_shards=2)
    index, found = open_remote(server.url, deadline=60), []
    for batch in batches(index, data):
        found.append(batch)
        if len(found) == 2:
            server.stop()
            threading.Timer(5, server.start).start()
    assert_same(found, batches(Index.open(small_shards, "train"), data))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_stays_away_ends_the_stream_with_one_line(small_shards, serve, remote_data, open_remote, workers):
    server = serve(small_shards)
    data = remote_data(server.url, deadline=1, workers=workers)
    index = open_remote(server.url, deadline=1)
    server.stop()
    with pytest.raises(UserError, match=r"^http://[^\n]*no answer for 1 s[^\n]*$"):
        list(batches(index, data))


def test_the_next_window_is_fetched_before_it_is_read(small_shards, serve, remote_data, open_remote):
    data = remote_data(serve(small_shards).url, window_shards=2)
    index = open_remote(data.path)
    plan = Plan(1, BATCH, 0, PAIRS, 0, 1)
    second = next(turn.shard for turn in turns(index, data, 7, plan) if turn.first)
    running = stream(index, data, 7, plan)
    next(running)
    last = time.monotonic() + 60
    while not (index.path / second.name).exists():
        assert time.monotonic() < last
        time.sleep(0.01)
    running.close()


def test_in_a_cache_of_two_windows_no_shard_is_fetched_twice(
    small_shards, serve, remote_data, open_remote, two_windows
):
    server = serve(small_shards)
    data = remote_data(server.url, gigabytes=two_windows, window_shards=2)
    index = open_remote(server.url, gigabytes=two_windows)
    for _ in batches(index, data):
        time.sleep(0.1)  # a training step, in which the next shards come
    whole = [line for line in server.log.read_text().splitlines() if line.startswith("/train-0")]
    ranged = RANGED_OF_SHARD * data.window_shards  # at most, of the first window
    assert len(index.shards) <= len(whole) <= len(index.shards) + ranged


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_ranks_fetch_every_shard_between_them_and_those_of_their_lanes_alone(small_shards, lanes):
    index = Index.open(small_shards, "train")
    data = Data(lanes=lanes, window_shards=2)
    wanted = [[t.shard.name for t in turns(index, data, 7, Plan(0, 4, 0, 0, rank, 2))] for rank in range(2)]
    assert set(wanted[0]) | set(wanted[1]) == {shard.name for shard in index.shards}
    assert bool(set(wanted[0]) & set(wanted[1])) == (lanes == 1)


def test_a_window_that_the_cache_cannot_hold_is_the_users_to_mend(small_shards, serve, remote_data, open_remote):
    data = remote_data(serve(small_shards).url, gigabytes=0.0002)
    index = open_remote(data.path, gigabytes=0.0002)
    with pytest.raises(UserError, match=r"data\.window_shards: all of \d+ shards .* data\.cache\.gigabytes=0\.0002"):
        check_room(index, data, world=1)
    assert room_for_shards(index) < 200_000
    check_room(index, data.model_copy(update={"window_shards": 1}), world=1)
