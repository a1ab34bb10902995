"""The shard plan: every picture once, shards of the planned sizes, and a change moves few of them."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.data.pack.plan import Plan, make_plan, planned
from ktse_dist.data.pack.source import Item

SIZE = 1000


class Drawn(NamedTuple):
    """A file of which there is only the size; it stands for its own stat()."""

    st_size: int
    st_mtime_ns: int = 0

    def stat(self) -> "Drawn":
        return self


class Files:
    kind, classes = "drawn", ("a", "b")

    def __init__(self, sizes: dict[str, int]):
        self.sizes = sizes

    def items(self, split: str) -> Iterator[Item]:
        for name in sorted(self.sizes):
            yield Item(name, Drawn(self.sizes[name]), (0,), "", None)


FILES = st.dictionaries(st.text("abcdef._", min_size=1, max_size=8), st.integers(1, 300), min_size=1, max_size=80)


def plan_of(sizes: dict[str, int], size: int = SIZE) -> Plan:
    return make_plan(Files(sizes), "train", size)


@given(FILES)
def test_every_picture_is_in_one_shard_and_shards_have_the_planned_size(sizes):
    plan, names = plan_of(sizes), sorted(sizes)
    start = 0
    for number, shard in enumerate(plan.shards):
        total = sum(sizes[name] for name in names[start : start + shard.pictures])
        assert total < 2 * SIZE + 300
        assert total >= SIZE or number == len(plan.shards) - 1
        start += shard.pictures
    assert start == len(names)


@given(FILES)
def test_keys_are_unique(sizes):
    files, plan = Files(sizes), plan_of(sizes)
    keys = [picture.key for _, picture in planned(files, "train", plan, range(len(plan.shards)))]
    assert len(set(keys)) == len(sizes)


@pytest.mark.parametrize("name, size", [("00000.jpg", 300), ("01234.jpg", 51), ("01234a.jpg", 99), ("00007.jpg", 900)])
def test_a_changed_or_added_picture_changes_few_shards(name, size):
    sizes = {f"{number:05d}.jpg": 50 + number % 50 for number in range(4000)}
    before, after = ({shard.digest for shard in plan_of(files, 7500).shards} for files in (sizes, sizes | {name: size}))
    assert len(before) > 30
    assert 1 <= len(after - before) <= 5
