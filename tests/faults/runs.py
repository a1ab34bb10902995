"""Runs of two ranks that lose some: the command a user types, killed for real."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from safetensors.torch import load_file
from torch import Tensor

from ktse_dist.run_folder import RunFolder

LIMIT = 150  # seconds
INTERVAL = 4  # steps between two checkpoints
STEPS = 30


class Training:
    """`python -m ktse_dist.train` of 30 steps on two ranks, a checkpoint every 4."""

    command = (sys.executable, "-m", "ktse_dist.train")

    def __init__(self, runs: Path, data: Path, name: str, cluster: str = "") -> None:
        """cluster: its address; without one the command starts its own on this machine."""
        self.folder, self.output = RunFolder(runs / name), runs / f"{name}.txt"
        self._keys = [
            f"run.root={runs}", f"run.name={name}", f"data.path={data}", "data.crop=64", "data.long_side=[64,96]",
            "train.epochs=10", "train.phase1_epochs=5", "train.batch=[[0,8]]", "train.baseline=false",
            "train.precision=fp32", f"train.checkpoint_steps={INTERVAL}", "train.log_steps=1", "engine.name=ddp",
        ]  # fmt: skip
        self._environment = {"RAY_USAGE_STATS_ENABLED": "0"} | ({"RAY_ADDRESS": cluster} if cluster else {})
        self.process: subprocess.Popen | None = None

    def start(self, *keys: str) -> "Training":
        command = [*self.command, *self._keys, *keys]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | self._environment
            )
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

    @property
    def repeated(self) -> list[int]:
        """The steps that each new start did again."""
        return [int(steps) for steps in re.findall(r"goes on from step \d+; (\d+) steps are done again", self.text)]

    def ranks(self) -> list[psutil.Process]:
        """Those that train now, below this process: its command's, or its cluster's."""
        children = psutil.Process().children(recursive=True)
        return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]

    def end(self) -> None:
        """SIGKILL to the driver and all it started."""
        if self.process and self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for one in family:
                if one.is_running():
                    one.kill()
            self.process.wait()


class Calm(Training):
    """The same run without Ray, so that nothing can happen to it."""

    command = (sys.executable, str(Path(__file__).with_name("calm_run.py")))

    def weights(self) -> dict[str, Tensor]:
        if not self.process:
            self.start()
        assert self.wait() == 0, self.text[-3000:]
        return load_file(self.folder.model)


def until(condition: Callable[[], object], training: Training) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert training.process and training.process.poll() is None, training.text[-3000:]
        assert time.monotonic() < deadline, training.text[-3000:]
        time.sleep(0.02)


def same(run: Training, calm: Calm) -> bool:
    """Whether the weights of both are equal bit by bit."""
    found, weights = load_file(run.folder.model), calm.weights()
    return found.keys() == weights.keys() and all(found[name].equal(weights[name]) for name in weights)
