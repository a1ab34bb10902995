"""The same on a cluster of the command's own, which goes with its driver: each fault in a run of its own."""

import re
import signal

import pytest

from .runs import INTERVAL, same

pytestmark = pytest.mark.slow


def test_after_the_loss_of_a_rank_and_of_the_driver_the_weights_are_those_of_a_calm_run(training, calm):
    run = training("killed").start()
    run.until_step(6)
    run.ranks()[-1].send_signal(signal.SIGKILL)
    run.until_step(14)
    run.end()
    assert run.start().wait() == 0, run.text[-3000:]
    assert len(run.repeated) == 2 and all(steps <= 2 * INTERVAL for steps in run.repeated), run.repeated
    assert same(run, calm)


def test_sigterm_leaves_a_checkpoint_and_the_same_command_goes_on(training, calm):
    run = training("ended").start()
    run.until_step(6)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 143, run.text[-3000:]
    assert not run.folder.model.exists()
    assert run.start().wait() == 0, run.text[-3000:]
    assert run.repeated == [0]
    assert same(run, calm)


def test_a_rank_that_hangs_is_named_and_the_run_recovers(training, calm):
    run = training("hung").start("train.hang_seconds=15")
    run.until_step(6)
    stopped = run.ranks()[-1]
    stopped.send_signal(signal.SIGSTOP)
    assert run.wait() == 0, run.text[-3000:]
    assert re.search(rf"rank \d \(host \S+, process {stopped.pid}\) hangs after step \d+", run.text)
    assert same(run, calm)


def test_a_loss_that_is_no_number_ends_the_command_in_one_line(training):
    run = training("wild").start("optimiser.phase1.lr=10", "optimiser.weight_decay=100")
    assert run.wait() == 2, run.text[-3000:]
    assert "ktse: optimiser.phase1.lr: the loss is" in run.text.splitlines()[-1]
    assert "Error in training function" not in run.text  # how Ray begins its traceback


def test_a_rank_lost_once_too_often_ends_the_command_in_one_line(training):
    run = training("lost").start("ray.max_failures=0")
    run.until_step(6)
    run.ranks()[-1].send_signal(signal.SIGKILL)
    assert run.wait() == 2, run.text[-3000:]
    assert re.fullmatch(r"ktse: ray\.max_failures: rank \d was lost, after 0 new starts.*", run.text.splitlines()[-1])
