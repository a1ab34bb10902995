"""A job on a real head node with token authentication, submitted as the README says."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
LIMIT = 300


class Head(NamedTuple):
    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head node in a home of its own; its processes end with the test."""
    home = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's socket paths have a length limit
    environment = os.environ | {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    ports = free_ports(2)
    command = [RAY, "start", "--head", "--block", f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--num-cpus=3",
               f"--temp-dir={home}/t", "--disable-usage-stats"]  # fmt: skip
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        wait_for(address)
        yield Head(address, environment)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(home, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(address: str) -> None:
    """Until the dashboard answers, if only to ask for the token."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"no dashboard at {address}")


def submit(head: Head, *overrides: str) -> subprocess.CompletedProcess:
    command = [RAY, "job", "submit", "--address", head.address, "--working-dir", "."]
    command += ["--runtime-env", "cluster/runtime_env.yaml", "--", "python", "-m", "ktse_dist.train", *overrides]
    deadline = time.monotonic() + 90
    while True:
        done = subprocess.run(
            command, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        # a busy machine starts the agent long after the dashboard answers, and Ray says to try again
        if "No available agent to submit job" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def test_a_stranger_without_the_token_is_turned_away(head):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.address}/api/jobs/", timeout=10)
    assert refused.value.code == 401


def test_a_submitted_job_succeeds_and_leaves_its_run_outside_its_folder(head, tmp_path):
    data = tmp_path / "stickers"
    pack_stickers(data, train=40, val=4)
    done = submit(
        head, f"run.root={tmp_path}/runs", f"data.path={data}", "run.name=job", "data.crop=64",
        "data.long_side=[64,96]", "train.epochs=2", "train.phase1_epochs=1", "train.batch=[[0,8]]",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    folder = RunFolder(tmp_path / "runs" / "job")
    steps = [json.loads(line)["step"] for line in folder.metrics_file.read_text().splitlines()]
    assert steps[-1] == 10
    assert folder.model.is_file() and folder.baseline.model.is_file() and folder.phase1.is_dir()
    assert folder.read_config().data.path == data


@pytest.mark.parametrize(("override", "line"), [
    ("train.epoch=3", "ktse: train.epoch: no such key"),
    ("run.root=runs", "ktse: run.root: found 'runs' inside a submitted job"),
])  # fmt: skip
def test_a_wrong_config_fails_the_job_with_its_one_line(head, override, line):
    done = submit(head, override)
    assert done.returncode != 0
    assert line in done.stdout + done.stderr
    assert "Traceback" not in done.stdout
