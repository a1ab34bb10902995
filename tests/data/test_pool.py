"""ordered_map: order, bounded memory, and errors instead of hangs. Workers run functions of the standard library."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from ktse_dist.data.pool import WorkerDied, ordered_map

shell = partial(subprocess.check_output, shell=True, text=True)


@pytest.mark.parametrize("processes", [0, 2])
def test_results_keep_the_input_order_when_the_first_takes_longest(processes):
    commands = [f"sleep {pause}; echo {index}" for index, pause in enumerate([0.3, 0, 0.1, 0, 0])]
    assert list(ordered_map(shell, commands, processes)) == [f"{index}\n" for index in range(5)]


def test_items_are_taken_only_a_bounded_number_ahead():
    taken = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    ahead = [len(taken) - done for done, _ in enumerate(ordered_map(math.sqrt, items(), 2, in_flight=3))]
    assert len(ahead) == 50 and max(ahead) == 3


def test_an_exception_comes_up_at_its_own_item():
    results = ordered_map(math.sqrt, [4.0, 9.0, -1.0, 16.0], 2)
    assert [next(results), next(results)] == [2.0, 3.0]
    with pytest.raises(ValueError):
        next(results)


def test_a_killed_worker_ends_in_one_clear_error():
    with pytest.raises(WorkerDied, match="a worker process died at or after item"):
        list(ordered_map(signal.raise_signal, [signal.SIGKILL], 1))


def test_a_consumer_that_stops_early_leaves_no_worker_behind():
    results = ordered_map(shell, ["echo $PPID"] * 100, 2)
    worker = int(next(results))
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_workers_end_when_their_parent_is_killed():
    code = (
        "import subprocess; from functools import partial; from ktse_dist.data.pool import ordered_map\n"
        "shell = partial(subprocess.check_output, shell=True, text=True)\n"
        "for line in ordered_map(shell, ['echo $PPID; sleep 0.1'] * 1000, 1): print(line, end='', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent by 10 s")
