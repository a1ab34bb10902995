"""How long a checkpoint holds the training up, what it costs the steps beside it, and the same written in the step.

A network and its momentum are trained on random pictures and saved as in a run: the step waits for the copy, a thread
writes. Figures are printed only after every checkpoint held the weights of its own step, though training went on
meanwhile.    python benchmarks/checkpoint.py [--quick]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ktse_dist import models
from ktse_dist.config.method import Network
from ktse_dist.config.training import Engine as EngineConfig
from ktse_dist.memory import keep_freed_memory
from ktse_dist.run_folder import RunFolder
from ktse_dist.training import checkpoint
from ktse_dist.training.engine import Engine, build_engine
from ktse_dist.training.engine.host_copies import HostCopies
from ktse_dist.training.writer import Snapshot, Writer

TARGET = 1.0  # seconds
PROBE = 97  # of so many numbers one is compared; all of them would need a second copy of the network
STRIDE = {"resnet38d": 8}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer checkpoints and steps, under 3 minutes on 2 cores")
    parser.add_argument("--backbone", default="resnet38d", choices=["resnet38d", "efficientnet_lite0", "resnet50"])
    parser.add_argument("--size", type=int, default=96, help="side of the two pictures of a step (96)")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written for the time (the system's own)")
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args(arguments)
    saves, steps = (3, 3) if options.quick else (7, 5)
    keep_freed_memory()
    network = Network(backbone=options.backbone, output_stride=STRIDE.get(options.backbone, 16), weights="none")
    trial = Trial(network, options.size)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(trial, Path(folder), saves, steps)
    result |= {"backbone": options.backbone, "size": options.size, "checkpoints": saves}
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("benchmark", "device", "figures", "targets", "holds")}))


class Trial:
    """A network in training."""

    def __init__(self, network: Network, size: int):
        torch.manual_seed(0)
        self.module = nn.Sequential(*models.build(network, 20)).to(memory_format=torch.channels_last)
        groups = [{"params": [p for p in self.module.parameters() if p.requires_grad]}]
        self.engine: Engine = build_engine(EngineConfig(name="torch"), self.module, groups, torch.device("cpu"))
        for group in self.engine.groups:
            group |= {"lr": 1e-4, "momentum": 0.9}
        self.images = torch.rand(2, 3, size, size).contiguous(memory_format=torch.channels_last)
        self.copies = HostCopies()

    def step(self) -> None:
        outputs = self.engine(self.images)
        tensors = [outputs] if isinstance(outputs, Tensor) else [x for x in outputs if isinstance(x, Tensor)]
        self.engine.update(sum(x.square().mean() for x in tensors))

    def probe(self) -> dict[str, Tensor]:
        return {name: sample(tensor) for name, tensor in self.module.state_dict().items()}


def sample(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten()[::PROBE].clone()


def measure(trial: Trial, place: Path, saves: int, steps: int) -> dict:
    folder, spent = RunFolder(place / "run"), {"alone": [], "held_up": [], "beside": [], "write": [], "in_the_step": []}
    trial.step()  # warm-up
    prepared = seconds(lambda: trial.engine.state(trial.copies))  # as a run does before its first step
    with Writer(folder, 1, None) as writer:
        for number in range(saves):
            spent["alone"] += [seconds(trial.step) for _ in range(steps)]
            expected, start = trial.probe(), time.perf_counter()
            writer.begin([f"step-{number:08}"], Snapshot(*trial.engine.state(trial.copies), {"step": number}))
            spent["held_up"].append(time.perf_counter() - start)
            while writer.busy:
                spent["beside"].append(seconds(trial.step))
            spent["write"].append(time.perf_counter() - start)
            writer.wait()
            check(folder, number, expected)
    for number in range(saves, saves + 3):
        spent["in_the_step"].append(seconds(lambda name=f"step-{number:08}": save_in_the_step(trial, folder, name)))
    return report(trial, spent, prepared)


def save_in_the_step(trial: Trial, folder: RunFolder, name: str) -> None:
    checkpoint.save(folder.checkpoints, name, *trial.engine.state(), {}, 1)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def check(folder: RunFolder, number: int, expected: dict[str, Tensor]) -> None:
    """What was written is the network as it was when the save began."""
    saved = checkpoint.load(folder.checkpoints / f"step-{number:08}")
    assert saved.state == {"step": number} and saved.weights.keys() == expected.keys()
    assert all(torch.equal(sample(saved.weights[name]), values) for name, values in expected.items())


def report(trial: Trial, spent: dict[str, list[float]], start: float) -> dict:
    alone, beside = statistics.median(spent["alone"]), spent["beside"]
    held_up = spent["held_up"]
    parameters = sum(p.numel() for p in trial.module.parameters())
    figures = {
        "held_up_s": statistics.median(held_up),
        "longest_held_up_s": max(held_up),
        "start_s": start,  # once a run, where the memory is new
        "write_s": statistics.median(spent["write"]),
        "step_s": alone,
        "step_beside_x": statistics.median(beside) / alone,
        "cost_s": (sum(held_up) + sum(beside) - alone * len(beside)) / len(held_up),
        "in_the_step_s": statistics.median(spent["in_the_step"]),
    }
    figures = {name: round(value, 3) for name, value in figures.items()}
    targets = {name: {"max": TARGET} for name in ("held_up_s", "longest_held_up_s")}
    print(
        f"{parameters / 1e6:.1f} M parameters: a checkpoint holds the training up for {figures['held_up_s']} s "
        f"(at most {figures['longest_held_up_s']} s); written in the step it would be {figures['in_the_step_s']} s"
    )
    return {
        "benchmark": "checkpoint",
        "device": f"cpu {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "figures": figures,
        "targets": targets,
        "holds": all(figures[name] <= bound["max"] for name, bound in targets.items()),
        "seconds": {name: [round(value, 4) for value in values] for name, values in spent.items()},
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
