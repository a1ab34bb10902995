"""Data, a cluster and runs for all that can go wrong."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from ktse_dist.data.pack.stickers import pack_stickers

from .runs import Calm, Training


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("faults") / "stickers"
    pack_stickers(place, train=24, val=2, workers=1)
    return place


@pytest.fixture(scope="session")
def calm(tmp_path_factory, data) -> Iterator[Calm]:
    run = Calm(tmp_path_factory.mktemp("calm"), data, "calm")
    yield run
    run.end()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster that outlives its drivers: one node with room for two ranks."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield made
    made.shutdown()


@pytest.fixture
def training(tmp_path, data) -> Iterator[Callable[..., Training]]:
    made = []

    def make(name: str, cluster: str = "") -> Training:
        made.append(Training(tmp_path, data, name, cluster))
        return made[-1]

    yield make
    for one in made:
        one.end()
