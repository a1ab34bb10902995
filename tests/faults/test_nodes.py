"""Ranks and whole nodes that are killed, at steps drawn by chance."""

import random
import signal
import time
from collections.abc import Callable

import psutil
import pytest
from ray._private.node import Node  # what Cluster.add_node returns; no public name
from ray.cluster_utils import Cluster

from .runs import INTERVAL, STEPS, Training, same, until

pytestmark = pytest.mark.slow


@pytest.fixture
def say(capsys) -> Callable[[str], None]:
    """A measured figure for whoever runs the test."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return line


def end_node(node: Node) -> None:
    """SIGKILL to all of its processes, the raylet first, as when a machine loses its power."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for one in [raylet, *raylet.children(recursive=True)]:
        one.kill()


def until_started_again(run: Training, times: int) -> None:
    until(lambda: len(run.repeated) == times, run)


def test_a_rank_killed_at_five_random_steps_changes_no_weight(training, calm, say):
    seed = time.time_ns() % 10**6
    chance = random.Random(seed)
    say(f"seed {seed}")
    run = training("random").start()
    for times, step in enumerate(sorted(chance.sample(range(1, STEPS - 3), 5))):
        until_started_again(run, times)
        run.until_step(step)
        chance.choice(run.ranks()).send_signal(signal.SIGKILL)
    assert run.wait() == 0, run.text[-3000:]
    say(f"checkpoints every {INTERVAL} steps; done again: {run.repeated}")
    assert len(run.repeated) == 5 and all(steps <= 2 * INTERVAL for steps in run.repeated), f"seed {seed}"
    assert same(run, calm), f"seed {seed}"


def test_a_node_and_then_the_driver_killed_change_no_weight(training, calm, say):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
        run = training("nodes", cluster.address).start()
        run.until_step(6)
        started = time.monotonic()
        end_node(other)
        cluster.add_node(num_cpus=1, node_ip_address="127.0.0.3")
        until_started_again(run, 1)
        waited = time.monotonic() - started
        run.until_step(14)
        run.end()
        assert run.start().wait() == 0, run.text[-3000:]
    finally:
        cluster.shutdown()
    say(f"a node lost: steps again after {waited:.0f} s; done again: {run.repeated}")
    assert len(run.repeated) == 2 and all(steps <= 2 * INTERVAL for steps in run.repeated)
    assert same(run, calm)
