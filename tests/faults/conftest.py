"""Runs of two ranks that lose some: the command a user types, killed for real."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.run_folder import RunFolder

LIMIT = 150  # seconds


class Training:
    """`python -m ktse_dist.train` of 24 steps on two ranks, a checkpoint every 4."""

    def __init__(self, runs: Path, data: Path, name: str) -> None:
        self.folder, self.output = RunFolder(runs / name), runs / f"{name}.txt"
        self._keys = [
            f"run.root={runs}", f"run.name={name}", f"data.path={data}", "data.crop=64", "data.long_side=[64,96]",
            "train.epochs=8", "train.phase1_epochs=4", "train.batch=[[0,8]]", "train.baseline=false",
            "train.precision=fp32", "train.checkpoint_steps=4", "train.log_steps=1", "engine.name=ddp",
        ]  # fmt: skip
        self.process: subprocess.Popen | None = None

    def start(self, *keys: str) -> "Training":
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, "-m", "ktse_dist.train", *self._keys, *keys]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        return self

    def wait(self) -> int:
        assert self.process
        return self.process.wait(LIMIT)

    def until_step(self, step: int) -> None:
        """Until the log shows that step, or a later one."""
        until(lambda: self.steps and self.steps[-1] >= step, self)

    def until_text(self, text: str) -> None:
        until(lambda: text in self.text, self)

    @property
    def steps(self) -> list[int]:
        file = self.folder.metrics_file
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]

    @property
    def text(self) -> str:
        return self.output.read_text()

    def ranks(self) -> list[psutil.Process]:
        assert self.process
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]

    def end(self) -> None:
        if self.process and self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for one in family:
                if one.is_running():
                    one.kill()


def until(condition: Callable[[], object], training: Training) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert training.process and training.process.poll() is None, training.text[-3000:]
        assert time.monotonic() < deadline, training.text[-3000:]
        time.sleep(0.02)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("faults") / "stickers"
    pack_stickers(place, train=24, val=2, workers=1)
    return place


@pytest.fixture
def training(tmp_path, data) -> Iterator[Callable[[str], Training]]:
    made = []

    def make(name: str) -> Training:
        made.append(Training(tmp_path, data, name))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, data) -> dict:
    """The weights of a run that nothing happened to."""
    calm = Training(tmp_path_factory.mktemp("calm"), data, "calm").start()
    try:
        assert calm.wait() == 0, calm.text[-3000:]
    finally:
        calm.end()
    return load_file(calm.folder.model)
