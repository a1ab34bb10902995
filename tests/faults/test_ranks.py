"""Ranks and drivers that die or hang: the run ends as if nothing had happened."""

import re
import signal

from safetensors.torch import load_file

INTERVAL = 4  # train.checkpoint_steps


def same(model, weights) -> bool:
    found = load_file(model)
    return found.keys() == weights.keys() and all(found[name].equal(weights[name]) for name in weights)


def repeated(text: str) -> list[int]:
    return [int(steps) for steps in re.findall(r"goes on from step \d+; (\d+) steps are done again", text)]


def test_after_the_loss_of_a_rank_and_of_the_driver_the_weights_are_those_of_a_calm_run(training, undisturbed):
    run = training("killed").start()
    run.until_step(6)
    run.ranks()[-1].send_signal(signal.SIGKILL)
    run.until_step(14)
    run.end()  # the driver and all it started
    run.start()
    assert run.wait() == 0, run.text[-3000:]
    again = repeated(run.text)
    # a checkpoint that is still being written when its writer dies does not count: then it is the one before
    assert len(again) == 2 and all(0 < steps <= 2 * INTERVAL for steps in again), again
    assert same(run.folder.model, undisturbed)


def test_sigterm_leaves_a_checkpoint_and_the_same_command_goes_on(training, undisturbed):
    run = training("ended").start()
    run.until_step(6)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 143, run.text[-3000:]
    assert not run.folder.model.exists()
    run.start()
    assert run.wait() == 0, run.text[-3000:]
    assert repeated(run.text) == [0]
    assert same(run.folder.model, undisturbed)


def test_a_rank_that_hangs_is_named_and_the_run_recovers(training, undisturbed):
    run = training("hung").start("train.hang_seconds=15")
    run.until_step(6)
    stopped = run.ranks()[-1]
    stopped.send_signal(signal.SIGSTOP)
    assert run.wait() == 0, run.text[-3000:]
    assert re.search(rf"rank \d \(host \S+, process {stopped.pid}\) hangs after step \d+", run.text)
    assert same(run.folder.model, undisturbed)
