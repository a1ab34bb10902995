"""The order of an epoch, without any I/O."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.data import keyed
from ktse_dist.data.order import SAMPLES, deal, epoch_order, rank_positions, shuffled
from ktse_dist.data.partners import ATTEMPTS, SAME_CLASS, Partners, Windows

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=7)
seeds = st.integers(0, 2**31 - 1)
lane_counts = st.integers(1, 8)
WINDOWS = [None, 1, 2, 3, 7]


def windows_of(order) -> list[int]:
    return [order.window_of(row) for row in order.samples.tolist()]


def random_labels(samples: int, classes: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((samples, classes)) < 0.4).astype(np.float32)


@given(sizes, seeds, st.integers(0, 5), st.integers(1, 8))
def test_every_sample_comes_once_in_an_epoch(shard_sizes, seed, epoch, window):
    assert sorted(epoch_order(shard_sizes, seed, epoch, window).samples) == list(range(sum(shard_sizes)))


@given(sizes, seeds, st.sampled_from(WINDOWS), lane_counts, st.integers(1, 3))
def test_lanes_lose_no_full_batch_and_repeat_nothing(shard_sizes, seed, window, lanes, share):
    samples, batch = epoch_order(shard_sizes, seed, 0, window, lanes).samples, lanes * share
    full = sum(shard_sizes) // batch * batch
    assert len(samples) >= full
    assert len(set(samples.tolist())) == len(samples)


@given(sizes, seeds, st.integers(1, 3))
def test_a_window_holds_whole_shards_and_no_more_than_asked(shard_sizes, seed, window_shards):
    shard = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    order = epoch_order(shard_sizes, seed, 0, window_shards)
    for window in set(windows_of(order)):
        shards = set(shard[order.rows_of(window)])
        assert len(shards) <= window_shards
        assert np.isin(shard, list(shards)).sum() == len(order.rows_of(window))


def test_windows_follow_each_other():
    windows = windows_of(epoch_order([5] * 6, seed=3, epoch=1, window_shards=2))
    assert windows == sorted(windows)


@given(st.integers(1, 4), st.integers(2, 8), seeds)
def test_a_lane_reads_its_own_shards_when_all_are_of_one_size(each, lanes, seed):
    shards = [6] * each * lanes
    samples = epoch_order(shards, seed, 0, 1, lanes).samples
    for lane, own in enumerate(deal(shards, seed, 0, lanes)):
        assert set((samples[lane::lanes] // 6).tolist()) == set(own.tolist())


@given(st.lists(st.integers(1, 50), min_size=8, max_size=40), st.integers(2, 8), seeds)
def test_lanes_differ_by_one_shard_at_most(shard_sizes, lanes, seed):
    lengths = [sum(shard_sizes[s] for s in own) for own in deal(shard_sizes, seed, 0, lanes)]
    assert max(lengths) - min(lengths) <= max(shard_sizes)


@pytest.mark.parametrize(("lanes", "world"), [(4, 2), (8, 4), (8, 8), (6, 3)])
def test_ranks_take_whole_lanes_where_their_number_divides_that_of_lanes(lanes, world):
    for rank in range(world):
        taken = set((rank_positions(3, 5 * lanes, rank, world) % lanes).tolist())
        assert taken == set(range(rank, lanes, world))


def test_another_epoch_and_another_seed_have_another_order():
    first = epoch_order([50, 50], 1, 0).samples
    assert not np.array_equal(first, epoch_order([50, 50], 1, 1).samples)
    assert not np.array_equal(first, epoch_order([50, 50], 2, 0).samples)


def test_the_order_is_the_same_for_ever():
    order = epoch_order([4, 3, 5], seed=5137, epoch=2, window_shards=2)
    assert order.samples.tolist() == [3, 4, 6, 0, 2, 1, 5, 11, 8, 9, 10, 7]  # a change here breaks every resumed run


def test_the_order_of_two_lanes_is_the_same_for_ever():
    order = epoch_order([4, 3, 5], seed=5137, epoch=2, window_shards=1, lanes=2)
    assert order.samples.tolist() == [4, 3, 6, 0, 5, 2, 11, 1, 8, 10, 9, 7]


def test_rows_are_ordered_by_whole_keys_also_where_their_upper_bits_are_equal():
    rows = np.arange(2**31 - 400_000, 2**31 - 1, dtype=np.int32)  # 33 bits are left: some 9 keys share them
    expected = rows[np.argsort(keyed.key(3, 1, SAMPLES, rows))]
    assert np.array_equal(shuffled(rows, 3, 1), expected)


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 5))
def test_ranks_split_a_global_batch_without_loss(batch_size, world, batch):
    taken = [p for rank in range(world) for p in rank_positions(batch, batch_size, rank, world)]
    assert sorted(taken) == list(range(batch * batch_size, (batch + 1) * batch_size))


@given(seeds, st.integers(1, 3), lane_counts)
def test_a_partner_shares_a_class_and_the_window(seed, window_shards, lanes):
    labels = random_labels(22, 4, seed)
    order = epoch_order([6, 5, 7, 4], seed, 0, window_shards, lanes)
    windows = Windows(order, labels.__getitem__, lanes)
    for row in order.samples.tolist():
        partner = windows.of(row).of(row)
        assert order.window_of(partner) == order.window_of(row)
        assert partner == row if not labels[row].any() else (labels[row] * labels[partner]).any()


@given(seeds, st.integers(0, SAME_CLASS - 1))
def test_a_replacement_shares_a_class_with_both_and_the_window(seed, attempt):
    labels = random_labels(22, 4, seed)
    order = epoch_order([6, 5, 7, 4], seed, 0, 2)
    windows = Windows(order, labels.__getitem__, 1)
    for row in range(22):
        like = windows.of(row).of(row)
        drawn = windows.of(row).replacement(row, attempt, like)
        assert order.window_of(drawn) == order.window_of(row)
        tags = labels[[row, like, drawn]]
        assert tags.all(0).any() or not tags.any()


def test_late_replacements_come_from_the_whole_window():
    labels = np.eye(40, dtype=np.float32)
    partners = Partners(epoch_order([40], 0, 0), 0, labels.__getitem__)
    drawn = [partners.replacement(7, attempt, 7) for attempt in range(ATTEMPTS)]
    assert set(drawn[:SAME_CLASS]) == {7}
    assert len(set(drawn[SAME_CLASS:])) > 10


def test_partners_are_drawn_uniformly_from_the_class():
    labels = np.ones((8, 1), np.float32)
    counts = np.zeros(8, int)
    for epoch in range(2000):
        counts[Partners(epoch_order([8], 0, epoch), 0, labels.__getitem__).of(0)] += 1
    assert counts.min() > 250 * 0.75  # 250 expected; 0.75 is 4 standard deviations
    assert counts.max() < 250 * 1.25


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4), st.integers(1, 2**31 - 1))
def test_one_word_is_hashed_as_arrays_are(parts, bound):
    key = keyed.key(*(np.uint64(part) for part in parts))
    assert keyed.word(*parts) == int(key)
    assert keyed.word_below(int(key), bound) == int(keyed.below(key, bound))
