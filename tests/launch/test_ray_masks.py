"""`ktse masks` on Ray workers, which are killed for real: every mask once, and the same as without Ray."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from ktse_dist import masks
from ktse_dist.config import Config
from ktse_dist.config_file import load_config, merge, validate
from ktse_dist.errors import UserError
from ktse_dist.files import PARTIAL
from ktse_dist.launch import ray_masks
from ktse_dist.run_folder import RunFolder

LIMIT = 300  # seconds
KEYS = ["masks.strength=0.3", "masks.scales=[2.0]"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


class Command:
    """`python -m ktse_dist.masks` in a process group of its own."""

    def __init__(self, run: Path, *keys: str, **environment: str) -> None:
        line = [sys.executable, "-m", "ktse_dist.masks", "--run", str(run), *KEYS, *keys]
        self.masks, self._output = run / "masks", (run / "said.txt").open("a+")
        how = {"stdout": self._output, "stderr": subprocess.STDOUT, "start_new_session": True}
        self.process = subprocess.Popen(line, env=ENVIRONMENT | environment, **how)

    @property
    def said(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def wait(self) -> int:
        return self.process.wait(LIMIT)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def stop_a_worker(self) -> psutil.Process:
        """In the middle of a shard."""
        while True:
            self.until(self.unfinished)
            for file in self.unfinished():
                worker = psutil.Process(int(file.name.split(".")[-2]))
                worker.suspend()
                if file.exists():
                    return worker
                worker.resume()

    def unfinished(self) -> list[Path]:
        return list(self.masks.glob(f".*.tar.*{PARTIAL}"))

    def made(self) -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in self.masks.glob("*.seeds.npz")}

    def end(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        for one in [self.process, *family]:
            one.kill()


@pytest.fixture
def start(run, tmp_path) -> Iterator[Callable[..., Command]]:
    """`start(masks.workers=2)`: the command, on a run of its own."""
    shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("masks", "said.txt"))
    made = []

    def begin(*keys: str, **environment: str) -> Command:
        made.append(Command(tmp_path / run.name, *keys, **environment))
        return made[-1]

    yield begin
    for one in made:
        one.end()


@pytest.fixture(scope="module")
def run(untrained_run) -> Path:
    """A run with masks, made without Ray."""
    folder, threads = untrained_run("run"), torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker's
    masks.main(["--run", str(folder), *KEYS])
    torch.set_num_threads(threads)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != ".lock"}


def test_a_killed_worker_loses_no_mask_and_makes_none_twice(run, start):
    command = start("masks.workers=2")
    victim = command.stop_a_worker()
    before = command.made()
    victim.kill()
    assert command.wait() == 0, command.said
    assert "its worker was lost, another one makes it again" in command.said and "Traceback" not in command.said
    assert command.made().items() >= before.items()
    assert contents(command.masks) == contents(run / "masks")


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_and_its_shard_made_again(run, start):
    command = start("masks.workers=2", "train.hang_seconds=40")
    command.stop_a_worker()
    assert command.wait() == 0, command.said
    assert "no picture for train.hang_seconds=40" in command.said
    assert contents(command.masks) == contents(run / "masks")


@pytest.mark.slow
def test_workers_that_die_too_often_end_the_command_in_one_line(start):
    command = start("masks.workers=1", "ray.max_failures=0")
    command.stop_a_worker().kill()
    assert command.wait() == 2
    assert "ktse: masks.workers: masks of train-0000" in command.said and "ray.max_failures=0" in command.said
    assert "Traceback" not in command.said


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_leaves_no_part_of_a_file(start):
    command = start("masks.workers=2")
    command.stop_a_worker().resume()
    family = psutil.Process(command.process.pid).children(recursive=True)
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.wait() == 130
    assert "Traceback" not in command.said and not command.unfinished()
    assert not psutil.wait_procs(family, timeout=60)[1]


@pytest.mark.slow
def test_2000_masks_killed_with_their_driver_and_gone_on_with_are_those_of_an_undisturbed_command(untrained_run):
    run = untrained_run("many", train=2000)
    other = shutil.copytree(run, run.with_name("undisturbed"))
    keys = ["masks.workers=2", "masks.scales=[1.0]"]
    first = Command(run, *keys)
    first.until(lambda: len(first.made()) >= 100)
    first.process.kill()
    first.process.wait()
    before = first.made()
    again = Command(run, *keys)
    assert again.wait() == 0, again.said
    whole = Command(other, *keys)
    assert whole.wait() == 0, whole.said
    assert again.made().items() >= before.items()
    assert contents(again.masks) == contents(whole.masks)


@pytest.mark.slow
def test_a_lost_node_costs_the_shard_that_it_was_at_and_a_new_one_helps(run, start, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        command = start("masks.workers=2", "masks.scales=[2.0,2.0,2.0,2.0,2.0,2.0]", RAY_ADDRESS=cluster.address)
        command.until(lambda: len(command.unfinished()) == 2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        before = command.made()
        cluster.add_node(num_cpus=1)
        assert command.wait() == 0, command.said
    finally:
        cluster.shutdown()
    assert "its worker was lost" in command.said and "Traceback" not in command.said
    assert command.made().items() >= before.items()
    assert contents(command.masks).keys() == contents(run / "masks").keys()


def config(folder: Path, **keys: dict) -> Config:
    return validate(merge(load_config(folder / "config.yaml").model_dump(by_alias=True), keys))


def test_more_workers_than_gpus_are_refused_before_any_starts(run, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_masks.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"masks\.workers: 2 workers need a GPU each, this machine has 1"):
        ray_masks.connect(config(run, masks={"workers": 2}, ray={"use_gpu": True}))


def test_a_cluster_does_not_make_masks_in_a_folder_of_this_machine_alone(run, monkeypatch):
    there = config(run, run={"root": "s3://bucket/runs"}, masks={"workers": 2})
    folder = ray_masks.run_folder(there)
    ray_masks.check_shared(folder, there)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match=r"run\.root: s3://bucket/runs/run is an address"):
        ray_masks.check_shared(folder, there)


def test_a_worker_has_a_gpu_and_cores_for_its_refinement(run):
    asked = config(run, masks={"workers": 2, "processes": 3}, ray={"use_gpu": True, "threads": 2})
    assert ray_masks.of_a_worker(asked) == {"num_cpus": 5, "num_gpus": 1}


def test_a_node_that_does_not_see_the_run_is_named(run, tmp_path):
    worker = ray_masks.MaskWorker(RunFolder(tmp_path), config(run), None)
    with pytest.raises(UserError, match=r"--run .*: node .* does not see it"):
        worker.start()
