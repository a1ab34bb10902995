"""Masks on Ray: one worker against two, one thread each, and a command that is killed in the middle and started again.

Drawn pictures, the demo's network untrained, one scale, CRF; every command is `ktse masks` as people type it. Figures
are printed only after all commands left the same files, byte by byte.    python benchmarks/masks.py [--quick]
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray
import simplejpeg
import torch
from torch import nn

from ktse_dist import models
from ktse_dist.config.method import Network
from ktse_dist.config_file import load_config
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.files import PARTIAL
from ktse_dist.models.weights import save_model
from ktse_dist.run_folder import RunFolder

CLASSES = ["red", "green", "blue"]
SIZES = ((96, 128), (90, 120), (128, 96), (80, 128))
SHARD = 100_000  # bytes: about 40 pictures
NETWORK = Network(weights="none")
TARGET = 1.6
KEYS = ("masks.scales=[1.0]", "masks.strength=3", "masks.refine=crf", "masks.processes=0", "ray.threads=1")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


class Made(NamedTuple):
    """seconds: of the whole command; at_work: from the first picture shard's begin to the last one's end."""

    seconds: float
    at_work: float
    files: dict[str, bytes]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer pictures, under 3 minutes on 2 cores")
    parser.add_argument("--pictures", type=int, help="how many (2000; 240 with --quick)")
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args(arguments)
    pictures = options.pictures or (240 if options.quick else 2000)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), pictures) | {"pictures": pictures}
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("benchmark", "device", "figures", "targets", "holds")}))


def measure(root: Path, pictures: int) -> dict:
    pack(root / "data", pictures)
    one, two = (make(run(root, f"workers-{workers}"), workers) for workers in (1, 2))
    killed, begun = run(root, "killed"), time.perf_counter()
    before = kill_in_the_middle(killed)
    print(f"killed after {time.perf_counter() - begun:.1f} s, {len(before)} of {shards(one)} shards finished")
    again = make(killed, 2)
    after = finished(killed)
    figures = {
        "workers_x": one.at_work / two.at_work,
        "command_x": one.seconds / two.seconds,  # with the start of Ray and of the workers
        "pictures_per_second": pictures / two.at_work,
        "start_s": two.seconds - two.at_work,
        "files_that_differ": differing(one, two) + differing(one, again),
        "shards_made_twice": sum(after[name] != at for name, at in before.items()),
    }
    return report({name: round(value, 3) for name, value in figures.items()}, one, two, again)


def pack(place: Path, pictures: int) -> None:
    with new_dataset(place) as building:
        splits = {"train": write_split(building, "train", drawn(pictures), len(CLASSES), SHARD)}
        splits["val"] = write_split(building, "val", drawn(1), len(CLASSES), SHARD)
        write_about(building, CLASSES, splits)


def drawn(count: int) -> Iterator[Sample]:
    for number in range(count):
        random = np.random.default_rng(number)
        rgb = random.integers(0, 90, (*SIZES[number % len(SIZES)], 3), np.uint8)
        rgb[20:60, 30:80, number % 3] = 230
        tags = sorted({number % 3, int(random.integers(3))})
        yield Sample(f"{number:05}", simplejpeg.encode_jpeg(rgb, 40, "RGB", "420"), tags, None, "drawn")


def run(root: Path, name: str) -> RunFolder:
    """A run as `ktse train` leaves it."""
    folder = RunFolder(root / name)
    everything = ["masks.pictures.train=null", "masks.pictures.val=null"]  # the demo takes the first 150
    given = [f"data.path={root / 'data'}", f"run.root={root}", f"run.name={name}", "train.precision=fp32"]
    folder.write_config(load_config(None, given + everything))
    torch.manual_seed(0)
    backbone, head = models.build(NETWORK, len(CLASSES))
    weights = nn.ModuleDict({"backbone": backbone, "head": head}).state_dict()
    save_model(folder.model, weights, NETWORK, CLASSES)
    return folder


def start(folder: RunFolder, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "ktse_dist.masks", "--run", str(folder.path), *KEYS, f"masks.workers={workers}"]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def make(folder: RunFolder, workers: int) -> Made:
    start_time, process = time.time(), start(folder, workers)
    wait(process, lambda: any(folder.masks.glob(f".*.tar.*{PARTIAL}")))
    first = time.time()
    if process.wait():
        raise SystemExit(f"ktse masks ended with status {process.returncode}")
    ended = time.time()
    last = max(finished(folder).values()) / 1e9
    files = {file.name: file.read_bytes() for file in folder.masks.iterdir() if file.suffix in (".tar", ".npz", ".npy")}
    return Made(ended - start_time, last - first, files)


def kill_in_the_middle(folder: RunFolder) -> dict[str, int]:
    """SIGKILL of the driver when a third of the pictures have masks; returns the finished shards."""
    process, third = start(folder, 2), len(list((folder.path.parent / "data").glob("train-*.tar"))) // 3
    wait(process, lambda: len(finished(folder)) >= third)
    process.kill()
    process.wait()
    return finished(folder)


def wait(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.02)


def finished(folder: RunFolder) -> dict[str, int]:
    """When each shard was finished, in ns."""
    return {file.name: file.stat().st_mtime_ns for file in folder.masks.glob("*.seeds.npz")}


def shards(made: Made) -> int:
    return sum(name.endswith(".tar") for name in made.files)


def differing(one: Made, other: Made) -> int:
    return sum(one.files.get(name) != other.files.get(name) for name in one.files.keys() | other.files.keys())


def report(figures: dict[str, float], one: Made, two: Made, again: Made) -> dict:
    targets = {"workers_x": {"min": TARGET}, "files_that_differ": {"max": 0}, "shards_made_twice": {"max": 0}}
    holds = figures["workers_x"] >= TARGET and not figures["files_that_differ"] and not figures["shards_made_twice"]
    if figures["files_that_differ"]:
        print(f"NOT PRINTED: {figures['files_that_differ']} files differ")
        figures = {}
    else:
        print(f"one worker {one.at_work:.1f} s, two {two.at_work:.1f} s; the same {len(one.files)} files after a kill")
    return {
        "benchmark": "masks",
        "device": f"cpu {platform.machine()}, {os.cpu_count()} cores, 1 thread a worker",
        "figures": figures,
        "targets": targets,
        "holds": holds,
        "seconds": {
            name: {"command": round(made.seconds, 1), "at_work": round(made.at_work, 1)}
            for name, made in {"one": one, "two": two, "after_kill": again}.items()
        },
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__},
    }


if __name__ == "__main__":
    main()
