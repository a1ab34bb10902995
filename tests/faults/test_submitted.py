"""Two Ray nodes, processes with addresses of their own, and a training that came through `ray job submit`.

Each has one CPU and so one of the two ranks. Both read the same log files, so lines may come twice.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .runs import LIMIT, Training, same

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
HEAD, OTHER, SPARE = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # Ray takes 127.0.0.1 for any machine's name of itself


class Nodes:
    """`ray start --block` for each, as cluster/README.md says; they end with their processes, not by `ray stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port, self._dashboard = folder, free_port(HEAD), free_port("127.0.0.1")
        token = folder / "auth_token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.environment["PATH"] = f"{RAY.parent}:{os.environ['PATH']}"  # where a job finds its python
        self.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "20"  # from a node's SIGTERM to its end
        self._processes: dict[str, subprocess.Popen] = {}

    def start_head(self) -> None:
        self._start(HEAD, "--head", f"--port={self._port}", "--dashboard-host=127.0.0.1",
                    f"--dashboard-port={self._dashboard}", f"--temp-dir={self._folder}")  # fmt: skip

    def start(self, address: str) -> None:
        self._start(address, f"--address={HEAD}:{self._port}")

    def _start(self, address: str, *options: str) -> None:
        command = [str(RAY), "start", "--block", f"--node-ip-address={address}", "--num-cpus=1", *options]
        text, environment = self._folder / f"{address}.txt", os.environ | self.environment
        with text.open("wb") as output:
            self._processes[address] = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        deadline = time.monotonic() + LIMIT
        while "Ray runtime started" not in text.read_text():
            assert time.monotonic() < deadline and self._processes[address].poll() is None, text.read_text()
            time.sleep(0.2)

    def submit(self) -> tuple[str, ...]:
        """The command of cluster/README.md without what follows --."""
        address, environment = f"http://127.0.0.1:{self._dashboard}", str(ROOT / "cluster" / "runtime_env.yaml")
        return (str(RAY), "job", "submit", "--address", address, "--working-dir", str(ROOT),
                "--runtime-env", environment, "--")  # fmt: skip

    def until_they_take_jobs(self) -> None:
        """What takes them starts after the node has."""
        deadline = time.monotonic() + LIMIT
        while True:
            tried = subprocess.run([*self.submit(), "true"], capture_output=True, env=os.environ | self.environment)
            if tried.returncode == 0:
                return
            assert time.monotonic() < deadline, tried.stderr.decode()[-3000:]
            time.sleep(1)

    def take_away(self, address: str) -> None:
        """The notice: SIGTERM to what a container runs first."""
        self._processes[address].terminate()

    def end(self) -> None:
        """Workers first; a node without work ends at once."""
        for process in reversed(self._processes.values()):
            process.terminate()
            process.wait(LIMIT)


def free_port(address: str) -> int:
    with socket.socket() as one:
        one.bind((address, 0))
        return one.getsockname()[1]


class Submitted(Training):
    """A job: it finds this repository's files as it would on another machine."""

    def __init__(self, runs: Path, data: Path, name: str, nodes: Nodes) -> None:
        super().__init__(runs, data, name)
        self.command = (*nodes.submit(), "python", "-m", "ktse_dist.train")
        self._environment |= nodes.environment


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="ktse-", dir="/tmp"))  # short: a socket's path has 107 characters
    made = Nodes(folder)
    try:
        made.start_head()
        made.start(OTHER)
        made.until_they_take_jobs()
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


def test_two_nodes_train_what_came_through_ray_job_submit(tmp_path, data, calm, nodes):
    run = Submitted(tmp_path, data, "submitted", nodes).start()
    assert run.wait() == 0, run.text[-3000:]
    assert same(run, calm)


def test_a_node_that_gets_sigterm_costs_no_step(tmp_path, data, calm, nodes):
    run = Submitted(tmp_path, data, "moved", nodes).start("ray.max_failures=0")  # nor does it count as a failure
    run.until_step(6)
    nodes.take_away(OTHER)
    nodes.start(SPARE)
    assert run.wait() == 0, run.text[-3000:]
    assert re.search(r"the nodes of ranks \[\d\] will be taken away: checkpoint written after step \d+", run.text)
    assert set(run.repeated) == {0}, run.text[-3000:]
    assert same(run, calm)
