"""Memory and time of `ktse masks` for one large picture: 2400x1600, 20 tags of 80 classes, ResNet38d, CRF.

The network is untrained, which costs the same. Memory: resident bytes of the command and its processes together, looked
at 20 times a second; the figure is printed only after the mask has the picture's size and its tags' values alone.
    python benchmarks/large_picture.py [--quick | --scales 2] [--save FILE.json]
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import simplejpeg
import torch
from torch import nn

from ktse_dist import models
from ktse_dist.config.method import Network
from ktse_dist.config_file import load_config
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.models.weights import save_model
from ktse_dist.run_folder import RunFolder

CLASSES = [f"class {n:02}" for n in range(80)]
TAGS = list(range(0, 80, 4))
TARGET = 4e9  # bytes
SIZE, QUICK = (1600, 2400), (400, 600)  # height, width
STRIDE = {"resnet38d": 8}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="600x400 at scale 1, without a target; under 3 minutes")
    four = (0.5, 1.0, 1.5, 2.0)
    about = "masks.scales (default: the published four; the largest decides)"
    parser.add_argument("--scales", type=float, nargs="+", default=four, help=about)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of the network (%(default)s)")
    parser.add_argument("--backbone", default="resnet38d", choices=["resnet38d", "efficientnet_lite0", "resnet50"])
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args(arguments)
    network = Network(backbone=options.backbone, output_stride=STRIDE.get(options.backbone, 16), weights="none")
    size, scales = (QUICK, [1.0]) if options.quick else (SIZE, [*options.scales])
    keys = [f"masks.scales={scales}"]
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), network, size, options.precision)
        seconds, peak = watched(run, keys)
        check(run, size)
    result = report(network, size, [*keys, f"train.precision={options.precision}"], seconds, peak)
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def make_run(root: Path, network: Network, size: tuple[int, int], precision: str) -> RunFolder:
    """A finished training: the large picture is the only one of val."""
    with new_dataset(root / "data") as building:
        splits = {"train": [drawn(120, 160)], "val": [drawn(*size)]}
        made = {split: write_split(building, split, iter(some), 80, 10**8) for split, some in splits.items()}
        write_about(building, CLASSES, made)
    folder = RunFolder(root / "run")
    keys = [f"data.path={root / 'data'}", f"run.root={root}", "masks.strength=3", f"model.backbone={network.backbone}"]
    keys += [f"model.output_stride={network.output_stride}", f"train.precision={precision}"]
    folder.write_config(load_config(None, keys))
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(zip(("backbone", "head"), models.build(network, len(CLASSES)), strict=True)))
    save_model(folder.model, model.state_dict(), network, CLASSES)
    return folder


def drawn(height: int, width: int) -> Sample:
    rgb = np.random.default_rng(0).integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    return Sample(str(height), simplejpeg.encode_jpeg(rgb.repeat(40, 0).repeat(40, 1)), TAGS, None, "drawn")


def watched(run: RunFolder, keys: list[str]) -> tuple[float, int]:
    """Seconds of the command, and the most bytes that it and its processes had at a time."""
    start, peak = time.perf_counter(), 0
    command = psutil.Popen([sys.executable, "-m", "ktse_dist.masks", "--run", str(run.path), *keys])
    while command.poll() is None:
        peak = max(peak, resident(command))
        time.sleep(0.05)
    if command.returncode:
        raise SystemExit(command.returncode)
    return time.perf_counter() - start, peak


def resident(command: psutil.Process) -> int:
    total = 0
    for one in (command, *command.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def check(run: RunFolder, size: tuple[int, int]) -> None:
    index = Index.open(run.read_config().data.path, "val")
    mask = decode_mask(MaskIndex(run.masks, index).read(0, "mask"))
    assert mask.shape == size and set(np.unique(mask)) <= {0, *(tag + 1 for tag in TAGS)}


def report(network: Network, size: tuple[int, int], keys: list[str], seconds: float, peak: int) -> dict:
    targets = {"peak_gigabytes": {"max": TARGET / 1e9}} if size == SIZE else {}
    return {
        "benchmark": "large_picture",
        "device": f"{platform.machine()} cpu, {os.cpu_count()} cores",
        "figures": {"peak_gigabytes": round(peak / 1e9, 2), "seconds": round(seconds, 1)},
        "targets": targets,
        "holds": peak < TARGET,
        "backbone": network.backbone,
        "size": list(size),
        "keys": keys,
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
