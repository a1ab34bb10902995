"""RAY_ADDRESS says whether to join a cluster; one that is gone is told at once."""

import socket
from collections.abc import Iterator

import pytest

from ktse_dist.errors import UserError
from ktse_dist.launch.address import joins_cluster


@pytest.fixture
def port() -> Iterator[int]:
    """One at which nothing listens, bound so that nobody else takes it meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_without_an_address_there_is_no_cluster_to_join(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not joins_cluster()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_is_gone_is_named_with_the_mend(form, port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", form.format(port))
    with pytest.raises(UserError, match=rf"RAY_ADDRESS: nothing answers at .*{port}.*unset it"):
        joins_cluster()


def test_one_that_listens_and_a_word_of_rays_are_left_to_ray(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        for address in (f"127.0.0.1:{server.getsockname()[1]}", "auto"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            assert joins_cluster()
