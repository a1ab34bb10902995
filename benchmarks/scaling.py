"""Bytes that each rank sends in a training step, measured against a formula; and what follows for 8 to 512 GPUs.

Real engines train the real module on small pictures in 2 and 4 local processes (gloo, a thread each); how large a
picture is changes no byte. Every collective is counted by the ring convention (traffic.py), and the kernel's count of
what the sockets sent shows that none was missed. The formula and the times on paper are step_model.py's; no time of a
GPU is measured. docs/scaling.md explains both.    python benchmarks/scaling.py [--quick] [--save FOLDER]
"""

import argparse
import csv
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
import measuring
import step_model
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from traffic import GLOO, Traffic, sent, sent_by_sockets
from train_step import draw_batch

from ktse_dist.config_file import load_config
from ktse_dist.training.engine import Engine, zero
from ktse_dist.training.loop import make_engine
from ktse_dist.training.setup import prepare_process

DEVICE = f"cpu {platform.machine()}, 1 thread a process"
ENGINES = ("ddp", "zero1", "zero2", "zero3", "zero3_recompute", "zero3_released")
LARGE = ("ddp", "zero1", "zero3")  # what ResNet38d is measured with, too
TARGETS = {"bytes_model_error": {"max": 0.05}, "socket_error": {"max": 0.02}}
PATIENCE = timedelta(minutes=10)  # for a rank that does not come to a collective
SIDE, PICTURES, CLASSES = 64, 2, 20
WARM, STEPS = 3, 2  # DDP lays out its buckets and ZeRO 3 its prefetching after a phase's first step
GPUS = (8, 16, 32, 64, 128, 256, 512)
ON_PAPER = ("ddp", "zero1", "zero2", "zero3")


# --- measured --------------------------------------------------------------------------------------------------------


def measure(world: int, backbone: str, engines: tuple[str, ...]) -> list[dict]:
    """A row for each engine and phase, from `world` new processes."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OMP_NUM_THREADS"] = "1"
        mp.start_processes(work, (world, backbone, engines, Path(folder)), nprocs=world, start_method="spawn")
        return json.loads((Path(folder) / "rows").read_text())


def work(rank: int, world: int, backbone: str, engines: tuple[str, ...], folder: Path) -> None:
    prepare_process(1)
    meeting = {"init_method": f"file://{folder}/meeting", "timeout": PATIENCE}
    dist.init_process_group("gloo", rank=rank, world_size=world, **meeting)
    rows = []
    for name in engines:
        engine = engine_of(name, backbone)
        for phase in (1, 2):
            about = {"backbone": backbone, "engine": name, "workers": world, "phase": phase}
            rows.append(about | traffic_of(engine, world, phase))
        del engine
    if rank == 0:
        (folder / "rows").write_text(json.dumps(rows))
    dist.barrier()
    os._exit(0)  # past Python's finalisers, where tensors that gloo's threads still hold abort it at random


def engine_of(name: str, backbone: str) -> Engine:
    """The engine that a run would make, at some learning rate."""
    engine = "ddp" if name == "ddp" else "deepspeed"
    network = [f"model.backbone={backbone}", f"model.output_stride={step_model.STRIDE[backbone]}", "model.weights=none"]
    more = [f"engine.name={engine}", f"train.recompute={name.endswith('recompute')}"]
    if engine == "deepspeed":
        more.append(f"engine.zero={name.removeprefix('zero')[0]}")
    config = load_config(None, [*network, *more])
    with weights_released() if name.endswith("released") else nullcontext():
        made = make_engine(config, SimpleNamespace(classes=[str(n) for n in range(CLASSES)]))
    for group in made.groups:
        group |= {"lr": 1e-4, "momentum": 0.9}
    return made


@contextmanager
def weights_released() -> Iterator[None]:
    """Engines built inside take weights away after each use, which no key of a run asks for."""

    def loads(text: str) -> dict:
        settings = json.loads(text)
        settings["zero_optimization"] |= {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
        return settings

    with patch.object(zero, "json", SimpleNamespace(loads=loads)):
        yield


def traffic_of(engine: Engine, world: int, phase: int) -> dict:
    """Bytes that a rank sends in a step, the mean over steps and ranks."""
    pairs = PICTURES if phase == 2 else 0
    batch = replace(draw_batch(PICTURES, SIDE, CLASSES, pairs), pictures=PICTURES * world, pairs=pairs * world)
    for _ in range(WARM):
        engine.update(engine(batch, phase=phase)["total"])
    dist.barrier()
    before, traffic = sent_by_sockets(), Traffic()
    with traffic:
        for _ in range(STEPS):
            engine.update(engine(batch, phase=phase)["total"])
    dist.barrier()
    sockets = torch.tensor(float(sent_by_sockets() - before), dtype=torch.float64)
    dist.all_reduce(sockets)
    return {
        "bytes": sent(traffic.size, world) / STEPS,
        "gloo_bytes": sent(traffic.size, world, GLOO) / STEPS,
        "socket_bytes": sockets.item() / world / STEPS,
        "calls": sum(traffic.calls.values()) / STEPS,
        "mb_by_collective": {name: size / STEPS / 1e6 for name, size in traffic.size.items()},
    }


def against_formula(row: dict) -> dict:
    """The row with what the formula says, and how far off it is."""
    kind = row["engine"].removesuffix("_recompute")  # weights that stay are not gathered again
    told = step_model.sent(kind, step_model.size_of(row["backbone"]), row["workers"], row["phase"])
    return row | {
        "formula_bytes": told.total,
        "formula_calls": told.calls,
        "error": abs(told.total / row["bytes"] - 1),
        "socket_error": abs(row["socket_bytes"] / row["gloo_bytes"] - 1),
    }


# --- on paper --------------------------------------------------------------------------------------------------------


def on_paper(pictures: int) -> list[dict]:
    """A row for each network, phase, engine, link and number of GPUs."""
    return [
        paper_row(backbone, phase, engine, link, world, pictures)
        for backbone in step_model.STRIDE
        for phase in (1, 2)
        for engine in ON_PAPER
        for link in step_model.LINKS
        for world in GPUS
    ]


def paper_row(backbone: str, phase: int, engine: str, link: str, world: int, pictures: int) -> dict:
    speed = step_model.PEAK * step_model.REACHED[backbone]
    step = step_model.step(engine, backbone, phase, pictures, world, link, speed)
    told = step_model.sent(engine, step_model.size_of(backbone), world, phase)
    return {
        "backbone": backbone, "phase": phase, "engine": engine, "link": link, "gpus": world,
        "pictures_per_gpu": pictures, "mb_sent_per_rank": round(told.total / 1e6, 1), "calls": told.calls,
        "computing_ms": round(1e3 * step.computing, 2), "sending_ms": round(1e3 * step.sending, 2),
        "hidden_ms": round(1e3 * step.hidden, 2), "efficiency": round(step.efficiency, 3),
        "efficiency_without_overlap": round(step.efficiency_without_overlap, 3),
    }  # fmt: skip


def plot(rows: list[dict], file: Path) -> None:
    """Efficiency of ResNet38d in phase 2, a panel for each link."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(step_model.LINKS), sharey=True)
    for axes, link in zip(panels, step_model.LINKS, strict=True):
        for engine, style in zip(ON_PAPER, ("-", "--", ":", "-."), strict=True):
            chosen = [row for row in rows if (row["backbone"], row["phase"]) == ("resnet38d", 2)]
            line = [row["efficiency"] for row in chosen if (row["engine"], row["link"]) == (engine, link)]
            axes.plot(GPUS, line, style, label=engine, marker=".")
        axes.set(xscale="log", title=f"{link} a node", xlabel="GPUs", xticks=GPUS[::2], xticklabels=GPUS[::2])
        axes.set(ylim=(0, 1.05))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("efficiency")
    panels[-1].legend(fontsize="small")
    figure.suptitle("ResNet38d, phase 2: a model on paper, nothing measured on GPUs", fontsize="medium")
    figure.savefig(file, dpi=110)


# --- told ------------------------------------------------------------------------------------------------------------


def told(rows: list[dict]) -> None:
    print(f"{'network':20}{'engine':17}workers phase {'MB a rank':>10} {'formula':>8} {'sockets':>8} {'calls':>6}")
    for row in rows:
        counted, formula, sockets = (row[key] / 1e6 for key in ("bytes", "formula_bytes", "socket_bytes"))
        print(
            f"{row['backbone']:20}{row['engine']:17}{row['workers']:7} {row['phase']:5} {counted:10.2f} {formula:8.2f} "
            f"{sockets:8.2f} {row['calls']:6.0f}",
            flush=True,
        )


def told_on_paper(rows: list[dict]) -> None:
    print("On paper, nothing measured: efficiency of ResNet38d in phase 2 at 100 Gbit/s a node")
    for engine in ON_PAPER:
        chosen = [row for row in rows if (row["backbone"], row["phase"]) == ("resnet38d", 2)]
        line = [row for row in chosen if (row["engine"], row["link"]) == (engine, "100 Gbit/s")]
        print(f"  {engine:6}" + "".join(f" {row['gpus']} GPUs {row['efficiency']:.2f}" for row in line))


def result_of(rows: list[dict]) -> dict:
    errors = {"bytes_model_error": "error", "socket_error": "socket_error"}
    figures = {name: float(f"{max(row[key] for row in rows):.2g}") for name, key in errors.items()}
    return {
        "benchmark": "scaling",
        "device": DEVICE,
        "figures": figures,
        "targets": TARGETS,
        "holds": all(figures[name] <= bound["max"] for name, bound in TARGETS.items()),
    }


def save(folder: Path, result: dict, rows: list[dict], paper: list[dict]) -> None:
    about = measuring.about(torch.device("cpu")) | {"device": DEVICE, "deepspeed": version("deepspeed")}
    whole = result | {"rows": rows} | about
    (folder / "scaling.json").write_text(json.dumps(whole, indent=1) + "\n")
    with (folder / "scaling_on_paper.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, paper[0])
        writer.writeheader()
        writer.writerows(paper)
    plot(paper, folder / "scaling_on_paper.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="EfficientNet alone, under 3 minutes on 2 cores")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="local processes (2 and 4)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--pictures", type=int, default=16, help="of a GPU, on paper (16)")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write scaling.json and scaling_on_paper.csv, .png")
    options = parser.parse_args(arguments)
    rows = [row for world in options.workers for row in measure(world, "efficientnet_lite0", tuple(options.engines))]
    if not options.quick:
        rows += measure(2, "resnet38d", tuple(name for name in LARGE if name in options.engines))
    rows = [against_formula(row) for row in rows]
    paper = on_paper(options.pictures)
    told(rows)
    told_on_paper(paper)
    result = result_of(rows)
    if options.save:
        save(options.save, result, rows, paper)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
