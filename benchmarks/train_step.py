"""One whole training step of phase 2: published formulation against ours, with the same backbone in one process.

A step is data to the device, forward, backward and SGD. The published one makes four separate passes (pictures, all
partners, erased, mixed), the pyramid head in each of them, and the operations of published_ops.py with autograd on;
ours runs `ktse_dist` in the `published` preset and, as another row, in `corrected`. Nothing is printed unless the
total loss and the head's gradient of both formulations agree in the `published` preset.

    python benchmarks/train_step.py --backbone resnet38d --shapes voc --device cuda --precision bf16

Shapes: voc and coco 16 pictures of 320x320 with 20 or 80 classes, demo 8 pictures of 160x160 with 20. EfficientNet has
ImageNet's weights, ResNet38d random ones, the head is new: speed does not depend on them. Pictures are drawn.
"""

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
import measuring
import published_ops
import published_step
import torch
from step_parts import Clock, part, running, timed
from torch import Tensor, nn

import kernels
from ktse_dist import models
from ktse_dist.config import Config
from ktse_dist.config_file import load_config
from ktse_dist.memory import keep_freed_memory
from ktse_dist.method import ktse
from ktse_dist.method.batch import Batch
from ktse_dist.method.ktse import KTSE
from ktse_dist.training.optim import parameter_groups

SHAPES = {"voc": (16, 320, 20), "coco": (16, 320, 80), "demo": (8, 160, 20)}  # pictures, size, classes
WEIGHTS = {"efficientnet_lite0": "imagenet", "resnet38d": "none"}
STRIDE = {"efficientnet_lite0": 16, "resnet38d": 8}
TOLERANCE = {"fp32": (1e-4, 1e-3), "bf16": (2e-2, 1e-1)}  # total loss, gradient of the head
OPERATIONS = ("foreground", "erase", "transfer_loss", "align_loss", "seg_counts", "seg_loss", "par", "pyramid_gate")


class Step:
    """One formulation with its own optimiser: a call is one training step on the host's batch."""

    def __init__(self, module: nn.Module, loss: Callable[[Batch], Tensor], batch: Batch, config: Config):
        device = next(module.parameters()).device
        self.module, self.loss, self.device = module, loss, device
        self.batch = batch.pin_memory() if device.type == "cuda" else batch
        groups = parameter_groups(module, config.optimiser.weight_decay)
        fields = [{key: group[key] for key in ("params", "weight_decay")} for group in groups]
        # a learning rate of 0 keeps all steps alike: the work is the same, and parity holds after any number of them
        self.optimiser = torch.optim.SGD(fields, lr=0.0, momentum=config.optimiser.phase2.momentum)

    def __call__(self) -> None:
        with part("data to device"):
            batch = self.batch.to(self.device)
        self.loss(batch).backward()
        with part("optimiser"):
            self.optimiser.step()
            self.optimiser.zero_grad()

    def result(self) -> tuple[Tensor, Tensor]:
        """Total loss and gradient of the head's last convolution."""
        loss = self.loss(self.batch.to(self.device))
        loss.backward()
        gradient = self.module.head.fc9.weight.grad.clone()
        self.optimiser.zero_grad()
        return loss.detach(), gradient


@contextmanager
def parts_of(step: Step) -> Iterator[Clock]:
    """While open, the step's backbone, head and operations are timed."""
    module, ours = step.module, isinstance(step.module, KTSE)
    operations = kernels if ours else published_ops
    places = [(module.backbone, "forward", "backbone forward", "backbone backward"), (module.head, "forward", "head")]
    places += [(operations, name, name) for name in OPERATIONS if hasattr(operations, name)]
    places += [(ktse if ours else operations, "pseudo_labels", "pseudo-labels but PAR")]
    places += [(ktse if ours else published_step, "normalise", "data to device")]
    kept = [(owner, name, getattr(owner, name)) for owner, name, *_ in places]
    for (owner, name, *names), (_, _, call) in zip(places, kept, strict=True):
        setattr(owner, name, timed(call, *names))
    clock = Clock(step.device)
    try:
        with running(clock):
            yield clock
    finally:
        for owner, name, call in kept:
            if isinstance(owner, nn.Module):
                delattr(owner, name)  # the class's own is there again
            else:
                setattr(owner, name, call)


def breakdown(step: Step, repeats: int) -> dict[str, float]:
    """Seconds of each part, medians, and what no part covers as `rest`."""
    runs = []
    for _ in range(repeats):
        with parts_of(step) as clock:
            whole = measuring.seconds(step, step.device)
        runs.append(clock.spent | {"rest": whole - sum(clock.spent.values())})
    return {
        name: statistics.median(run.get(name, 0.0) for run in runs)
        for name in dict.fromkeys(k for r in runs for k in r)
    }


def outside(parts: dict[str, float]) -> float:
    """Share of a step that is neither forward nor backward pass of the backbone."""
    return 1 - (parts["backbone forward"] + parts["backbone backward"]) / sum(parts.values())


def draw_batch(pictures: int, size: int, classes: int, pairs: int) -> Batch:
    """Smooth noise with 1 to 3 tags a picture; a partner shares a tag. The same pictures for any `pairs`."""
    random = torch.Generator().manual_seed(0)
    tags = torch.zeros(2, pictures, classes)
    for i in range(pictures):
        some = torch.randperm(classes, generator=random)
        tags[0, i, some[: 1 + (i % 5 > 2) + (i % 8 == 7)]] = 1
        tags[1, i, some[: 1 + (i % 4 == 3)]] = 1
    coarse = torch.randn(2 * pictures, 3, -(-size // 16), -(-size // 16), generator=random)
    fine = 0.1 * torch.randn(2 * pictures, 3, size, size, generator=random)
    grey = ((published_ops.upsample(coarse, (size, size)) + fine).sigmoid() * 255).to(torch.uint8)
    inside = torch.tensor([[0, 0, size, size]], dtype=torch.int32).repeat(pictures, 1)
    return Batch(
        grey[:pictures], inside, tags[0], torch.arange(pictures),
        grey[pictures:][:pairs], inside[:pairs], tags[1, :pairs],
        pictures=pictures, pairs=pairs, local_pairs=pairs, most_tags=int(tags.sum(dim=2).max()),
    )  # fmt: skip


def formulations(options: argparse.Namespace, pictures: int, size: int, classes: int) -> dict[str, Step]:
    """Every row's step, all around one backbone and one head."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    configs = {preset: config_of(options, preset) for preset in ("published", "corrected")}
    backbone, head = models.build(configs["published"].model, classes)
    nn.ModuleList([backbone, head]).to(device=device, memory_format=torch.channels_last)

    def published(precision: str) -> Step:
        module = published_step.PublishedStep(backbone, head, precision)
        return Step(module, module, draw_batch(pictures, size, classes, pictures), configs["published"])

    def ours(preset: str, count: int = pictures, phase: int = 2) -> Step:
        method = configs[preset].method
        module = KTSE(backbone, head, method, options.precision)
        pairs = min(count, method.transfer.pairs or count) if phase == 2 else 0
        batch = draw_batch(count, size, classes, pairs)
        return Step(module, lambda batch: module(batch, phase=phase)["total"], batch, configs[preset])

    steps = {"published": published(options.precision)}
    if options.precision == "bf16":
        steps["published fp32"] = published("fp32")
    steps |= {"ours, published preset": ours("published"), "ours, corrected": ours("corrected")}
    if projects(options):
        steps["ours, published preset, phase 1, 8 pictures"] = ours("published", 8, 1)
    return steps


def config_of(options: argparse.Namespace, preset: str) -> Config:
    network = f"model.backbone={options.backbone}", f"model.output_stride={STRIDE[options.backbone]}"
    pairs = 4 if preset == "published" or options.shapes == "demo" else "null"  # as presets and the demo have it
    return load_config(None, [f"method.preset={preset}", *network, f"model.weights={WEIGHTS[options.backbone]}",
                              f"method.transfer.pairs={pairs}"])  # fmt: skip


def disagreement(steps: dict[str, Step]) -> tuple[float, float]:
    """Of ours from the published step: total loss, head's gradient, relative."""
    (loss, gradient), (expected, slope) = (steps[name].result() for name in ("ours, published preset", "published"))
    return ((loss - expected).abs() / expected.abs()).item(), ((gradient - slope).norm() / slope.norm()).item()


def projects(options: argparse.Namespace) -> bool:
    """Whether the length of the published VOC run follows from this: its network, pictures and batches, on a GPU."""
    whole = options.pictures is None and options.size is None
    return options.device == "cuda" and options.backbone == "resnet38d" and options.shapes == "voc" and whole


def measure(steps: dict[str, Step], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rows by name."""
    device = torch.device(options.device)
    times = measuring.timed_in_turn(dict(steps), device, options.seconds)
    rows = {}
    for name, step in steps.items():
        median, pictures = statistics.median(times[name]), step.batch.pictures
        parts = breakdown(step, 2 if options.quick else 5)
        rows[name] = {
            "images_per_second": pictures / median, "seconds": median, "repeats": len(times[name]),
            "spread": (max(times[name]) - min(times[name])) / median,
            "peak_mb": measuring.peak_bytes(step, device) / 1e6,
            "outside_backbone": outside(parts), "parts_ms": {key: 1e3 * value for key, value in parts.items()},
        }  # fmt: skip
        print(f"{name}: {pictures / median:.2f} images/s, {1e3 * median:.0f} ms a step, "
              f"peak {rows[name]['peak_mb']:.0f} MB, outside the backbone {outside(parts):.3f}")  # fmt: skip
        ordered = sorted(rows[name]["parts_ms"].items(), key=lambda item: -item[1])
        print("    " + ", ".join(f"{key} {value:.1f} ms" for key, value in ordered), flush=True)
    return rows


def figures(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    ours, corrected = rows["ours, published preset"], rows["ours, corrected"]
    found = {
        "step_x": ours["images_per_second"] / rows["published"]["images_per_second"],
        "outside_backbone": ours["outside_backbone"],
        "memory_x": rows["published"]["peak_mb"] / ours["peak_mb"],
        "corrected_step_x": corrected["images_per_second"] / rows["published"]["images_per_second"],
        "corrected_outside_backbone": corrected["outside_backbone"],
    }
    if "published fp32" in rows:
        found["step_vs_fp32_x"] = ours["images_per_second"] / rows["published fp32"]["images_per_second"]
    for name, row in rows.items():
        if "phase 1" in name:  # docs/method.md 1.3: 1,322 updates in each of 10 epochs, then 661 in each of 30
            found["published_schedule_hours"] = (13_220 * row["seconds"] + 19_830 * ours["seconds"]) / 3600
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def targets(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    wanted, whole = {}, not (options.pictures or options.size)
    if whole and (options.device, options.backbone, options.shapes) == ("cpu", "efficientnet_lite0", "demo"):
        wanted = {"step_x": {"min": 1.5}, "outside_backbone": {"max": 0.25}}
    if options.backbone == "resnet38d":
        wanted = {"outside_backbone": {"max": 0.05}}
        if whole and options.device == "cuda" and options.precision == "bf16":
            wanted["step_vs_fp32_x"] = {"min": 3.0}
    return wanted


def holds(found: dict[str, float], wanted: dict[str, dict[str, float]]) -> bool:
    return all(bound.get("min", 0) <= found[name] <= bound.get("max", math.inf) for name, bound in wanted.items())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=WEIGHTS, default="efficientnet_lite0")
    parser.add_argument("--shapes", choices=SHAPES, default="demo")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=TOLERANCE, default="fp32", help="bf16: also a row published fp32")
    parser.add_argument("--quick", action="store_true", help="few repeats, under 3 minutes (a CPU: EfficientNet, demo)")
    parser.add_argument("--pictures", type=int, help="another batch than the shapes'; no target for the speed then")
    parser.add_argument("--size", type=int, help="another picture size than the shapes'; no target for the speed then")
    parser.add_argument("--seconds", type=float, help="how long to time (60, with --quick 15)")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="add the result to the list in this file")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (15.0 if options.quick else 60.0)
    os.environ.pop("KTSE_KERNELS", None)
    kernels.set_mode("auto")
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as the published run had it
    pictures, size, classes = SHAPES[options.shapes]
    pictures, size = options.pictures or pictures, options.size or size
    steps = formulations(options, pictures, size, classes)
    about = measuring.about(torch.device(options.device))
    print(f"{about['device']}, torch {about['torch']}, {options.backbone}, {pictures} pictures of {size}x{size}, "
          f"{classes} classes, {options.precision}")  # fmt: skip
    off, allowed = disagreement(steps), TOLERANCE[options.precision]
    agree = all(found <= bound for found, bound in zip(off, allowed, strict=True))
    rows = measure(steps, options) if agree else {}
    if agree:
        print(f"loss and head's gradient differ from the published step by {off[0]:.1e} and {off[1]:.1e}")
    else:
        print(f"NOT PRINTED: loss and head's gradient differ from the published step by {off[0]:.1e} and {off[1]:.1e} "
              f"(allowed {allowed[0]:.0e} and {allowed[1]:.0e})")  # fmt: skip
    found, wanted = figures(rows) if rows else {}, targets(options)
    result = {"benchmark": "train_step", "device": about["device"], "figures": found, "targets": wanted,
              "holds": agree and holds(found, wanted)}  # fmt: skip
    if options.save:
        shape = {"backbone": options.backbone, "weights": WEIGHTS[options.backbone], "precision": options.precision}
        shape |= {"pictures": pictures, "size": size, "classes": classes, "differs": off}
        save(result | shape | {"rows": rows} | about, options.save)
    print(json.dumps(result))


def save(result: dict[str, Any], file: Path) -> None:
    results = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*results, rounded(result)], indent=1) + "\n")


def rounded(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(value) for value in x]
    return float(f"{x:.4g}") if isinstance(x, float) else x


if __name__ == "__main__":
    main()
