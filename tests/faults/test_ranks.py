"""Ranks and drivers that die or hang: the run ends as if nothing had happened.

Starting a training takes longer than these 30 steps, so one run has all the bad luck. test_local.py has the whole.
"""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .runs import INTERVAL, Training, same


@dataclass
class Night:
    """What a run went through. stopped: the process that hung; status: of the command that SIGTERM ended."""

    run: Training
    stopped: int
    status: int
    finished_by_sigterm: bool


@pytest.fixture(scope="module")
def night(tmp_path_factory, data, calm, cluster) -> Iterator[Night]:
    run = Training(tmp_path_factory.mktemp("night"), data, "night", cluster.address).start("train.hang_seconds=12")
    try:
        run.until_step(5)
        run.ranks()[-1].send_signal(signal.SIGKILL)
        run.until_step(9)
        stopped = run.ranks()[-1]
        stopped.send_signal(signal.SIGSTOP)
        calm.start()
        run.until_step(13)
        run.process.send_signal(signal.SIGTERM)
        status, finished = run.wait(), run.folder.model.exists()
        run.start().until_step(run.steps[-1] + 2)
        run.end()
        assert run.start().wait() == 0, run.text[-3000:]
        yield Night(run, stopped.pid, status, finished)
    finally:
        run.end()


def test_a_rank_that_hangs_is_named(night):
    line = rf"rank \d \(host \S+, process {night.stopped}\) hangs after step \d+"
    assert re.search(line, night.run.text), night.run.text[-3000:]


def test_sigterm_ends_the_command_with_143_before_its_end(night):
    assert night.status == 143 and not night.finished_by_sigterm


def test_a_rank_a_hang_and_a_driver_cost_an_interval_and_sigterm_nothing(night):
    rank, hang, sigterm, driver = night.run.repeated
    # a checkpoint that is still being written when its writer dies does not count: then it is the one before
    assert sigterm == 0 and all(steps <= 2 * INTERVAL for steps in (rank, hang, driver)), night.run.repeated


def test_after_all_of_it_the_weights_are_those_of_a_calm_run(night, calm):
    assert same(night.run, calm)
