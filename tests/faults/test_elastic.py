"""Machines that come and go: one run on two workers, then one, then two."""

import json
import re
from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from .runs import Training

EPOCHS = 50  # of 3 steps: long enough for Ray, which looks for new machines every 20 s, to find one
RUN = (
    f"train.epochs={EPOCHS}",
    f"train.phase1_epochs={EPOCHS - 6}",
    "train.checkpoint_steps=8",
    "data.crop=128",
    "data.long_side=[128,160]",
    "optimiser.phase1.lr=1e-6",  # weights hardly move, so that a loss tells which batch it is of, to the end
    "optimiser.phase2.lr=1e-6",
)


@pytest.fixture
def cluster(monkeypatch) -> Iterator[Cluster]:
    """A node with one core, for the driver and a worker."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True})
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_run_that_shrinks_and_grows_ends_where_a_calm_one_does(training, cluster):
    second = cluster.add_node(num_cpus=1)
    run = training("elastic", cluster.address).start(*RUN, "ray.workers=[1,2]", "ray.resize_seconds=2")
    run.until_step(10)
    cluster.remove_node(second, allow_graceful=False)
    run.until_text("1 workers of")
    run.until_step(run.steps[-1] + 3)
    cluster.add_node(num_cpus=1)
    assert run.wait() == 0, run.text[-3000:]
    assert re.findall(r"(\d) workers of", run.text) == ["2", "1", "2"], run.text[-3000:]
    lost, grown = run.repeated
    assert lost <= 2 * 8 and grown == 0  # a lost node gives no notice, growing does
    assert run.steps == list(range(1, 3 * EPOCHS + 1))

    calm = training("calm").start(*RUN, "engine.name=torch")
    assert calm.wait() == 0, calm.text[-3000:]
    for ours, theirs in zip(losses(run), losses(calm), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    found, expected = load_file(run.folder.model), load_file(calm.folder.model)
    distance = max(((found[k] - expected[k]).norm() / expected[k].norm().clamp(min=1e-12)).item() for k in expected)
    print(f"largest |difference| / |weights|: {distance:.1e}; steps done again: {lost}, {grown}")
    assert distance <= 1e-4


def losses(run: Training) -> list[float]:
    """The total of every step."""
    return [json.loads(line)["total"] for line in run.folder.metrics_file.read_text().splitlines()]
