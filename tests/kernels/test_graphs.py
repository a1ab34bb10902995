"""Which calls are recorded, and how many recordings are kept. A recording itself needs a GPU (tests/gpu)."""

import threading
from typing import ClassVar

import pytest
import torch

from kernels import graphs


class Recorded:
    """Stands in for a graph: runs the function again, and notes what it was made for."""

    made: ClassVar[list["Recorded"]] = []

    def __init__(self, function, tensors, options, pool):
        self.function, self.options, self.pool, self.replays = function, options, pool, 0
        self.made.append(self)

    def replay(self, tensors):
        self.replays += 1
        return self.function(*tensors, **self.options)


@pytest.fixture
def recordings(monkeypatch) -> graphs.Recordings:
    monkeypatch.setattr(Recorded, "made", [])
    return graphs.Recordings(Recorded, object)


def scaled(x, factor=2.0):
    return x.mul_(factor)


def call(recordings, size=3, place=(0, 0), **options):
    given = torch.ones(size)
    return recordings.call(scaled, (given.clone(),), options, place)


def test_a_shape_is_recorded_when_it_comes_again_and_replayed_from_then_on(recordings):
    results = [call(recordings) for _ in range(4)]
    assert all(torch.equal(result, torch.full((3,), 2.0)) for result in results)
    assert [recording.replays for recording in Recorded.made] == [3]


def test_other_shapes_options_and_streams_have_recordings_of_their_own(recordings):
    for _ in range(2):
        for size, place, options in ((3, (0, 0), {}), (4, (0, 0), {}), (3, (0, 1), {}), (3, (0, 0), {"factor": 3.0})):
            assert call(recordings, size, place, **options)[0] == options.get("factor", 2.0)
    assert len(Recorded.made) == 4


def test_recordings_of_one_stream_share_their_memory_and_those_of_two_do_not(recordings):
    for size, place in ((3, (0, 0)), (4, (0, 0)), (3, (0, 1))):
        call(recordings, size, place)
        call(recordings, size, place)
    first, second, other = (recording.pool for recording in Recorded.made)
    assert first is second and first is not other


def test_pictures_of_ever_new_sizes_are_never_recorded_and_remembered_within_a_bound(recordings):
    for size in range(1, 5 * graphs.KEPT):
        call(recordings, size)
    assert not Recorded.made and len(recordings.kept) == graphs.KEPT


def test_what_was_used_last_is_kept(recordings):
    for size in range(1, 2 * graphs.KEPT):
        call(recordings, 100)
        call(recordings, size)
    assert len(Recorded.made) == 1


def test_threads_have_recordings_of_their_own(recordings):
    call(recordings)
    call(recordings)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(dict(recordings.kept)))
    thread.start()
    thread.join()
    assert recordings.kept and seen == [{}]


def test_on_a_cpu_the_given_tensors_stay_as_they_are():
    given = torch.ones(3)
    assert torch.equal(graphs.replayed(scaled, given, factor=4.0), torch.full((3,), 4.0))
    assert torch.equal(given, torch.ones(3))
