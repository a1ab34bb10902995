"""The method's operations: published formulation, eager reference, torch.compile of it, and ours, in one process.

A row is printed only after its values and gradients agreed with the reference in this process. Losses and the pyramid
head are timed forward and backward. Needs torch and triton only (matplotlib for --plot):

    python benchmarks/ops.py --device cuda --shapes coco [--dtype bf16] [--save FILE.csv] [--plot FILE.png]

Shapes: 16 pictures of 320x320 with 1 to 3 tags of 20 (voc) or 80 (coco) classes, CAMs of 40x40, PAR at 160x160 as in a
training step. `bound_mb` is what an operation must read and write (kernels/ops/*/README.md), `moved_x` how many times
that its torch operations do, `bandwidth_share` bound over time as a share of a copy's bandwidth measured in this run.
"""

import argparse
import csv
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
import measuring
import torch
from op_cases import Case, Inputs, cases, disagreement, reference_of, run, variants

from kernels import graphs

CLASSES = {"voc": 20, "coco": 80}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # of the largest value
OPS = ("foreground", "erase", "transfer", "transfer16", "align", "seg_loss", "par", "pyramid_gate")
CPU_TARGETS = {"par_x": 6, "erase_x": 6, "foreground_x": 6, "seg_loss_x": 3, "transfer_x": 1.5, "align_x": 1.5,
               "seg_loss_mem_x": 5, "erase_mem_x": 5}  # fmt: skip
GPU_TARGETS = {"erase_us": {"max": 20}, "seg_loss_us": {"max": 200}, "par_us": {"max": 1000},
               "transfer_us": {"max": 10}, "seg_loss_mb": {"max": 150}, "erase_vs_compile_x": {"min": 2},
               "seg_loss_vs_compile_x": {"min": 2}, "par_vs_compile_x": {"min": 2}}  # fmt: skip
COLUMNS = ("op", "variant", "shapes", "dtype", "median_us", "q20_us", "q80_us", "graph_us", "peak_mb", "bound_mb",
           "moved_x", "bandwidth_share", "copy_gb_s", "device", "torch", "triton", "python", "date")  # fmt: skip


def measure(name: str, case: Case, x: Inputs, options: argparse.Namespace, copy: float) -> list[dict[str, Any]]:
    """The rows of one operation, without those whose check failed."""
    device, tolerance = x.cam.device, TOLERANCE[options.dtype]
    expected, calls = run(case, reference_of(case)), {}
    for variant, api in variants(case, x, options.compile).items():
        try:
            off = disagreement(case, run(case, api), expected)
        except Exception as error:  # memory, a compiler: the other rows stand
            print(f"{name} {variant}: NOT PRINTED, {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            continue
        if off <= tolerance:
            calls[variant] = lambda api=api: run(case, api)
        else:
            print(f"{name} {variant}: NOT PRINTED, differs from the reference by {off:.1e} (allowed {tolerance:.0e})")
    times = measuring.timed_in_turn(calls, device, options.seconds)
    rows = []
    for variant, call in calls.items():
        low, _, _, high = (1e6 * t for t in statistics.quantiles(times[variant], n=5))
        median = 1e6 * statistics.median(times[variant])
        graph = measuring.graph_seconds(call, device) if device.type == "cuda" else None
        counted = variant in ("published", "reference", "fast path")
        graphs.forget()  # their memory was taken earlier, and belongs to the peak of a call
        moved = measuring.moved_bytes(call) / case.bound if counted else None
        seconds = graph or median / 1e6
        row = {"op": name, "variant": variant, "shapes": options.shapes, "dtype": options.dtype, "median_us": median,
               "q20_us": low, "q80_us": high, "graph_us": graph and 1e6 * graph,
               "peak_mb": measuring.peak_bytes(call, device) / 1e6, "bound_mb": case.bound / 1e6, "moved_x": moved,
               "bandwidth_share": case.bound / seconds / copy, "copy_gb_s": copy / 1e9}  # fmt: skip
        rows.append({key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in row.items()})
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    graph = f"  graph {row['graph_us']:10.1f} us" if row["graph_us"] else ""
    moved = f"{row['moved_x']:7.1f}" if row["moved_x"] is not None else "      -"
    return (f"{row['op']:13}{row['variant']:10}{row['median_us']:12.1f} us [{row['q20_us']:.1f}, {row['q80_us']:.1f}]"
            f"{graph}  peak {row['peak_mb']:8.1f} MB  moves {moved} x bound"
            f"  {100 * row['bandwidth_share']:5.1f} % of copy")  # fmt: skip


def figures(rows: list[dict[str, Any]], device: str) -> dict[str, float]:
    """Ratios by the time as called; on a GPU microseconds and the ratio to torch.compile by CUDA graphs."""
    by_op: dict[str, dict[str, dict]] = {}
    for row in rows:
        by_op.setdefault(row["op"], {})[row["variant"]] = row
    found: dict[str, float] = {}
    for op, table in by_op.items():
        ours, slow, fused = table.get("triton") or table.get("fast path"), table.get("published"), table.get("compile")
        if not ours:
            continue
        if slow:
            found[f"{op}_x"] = slow["median_us"] / ours["median_us"]
            found[f"{op}_mem_x"] = slow["peak_mb"] / ours["peak_mb"]
        if device == "cuda":
            found[f"{op}_us"], found[f"{op}_mb"] = ours["graph_us"] or ours["median_us"], ours["peak_mb"]
        if fused:
            clock = "graph_us" if ours["graph_us"] and fused["graph_us"] else "median_us"
            found[f"{op}_vs_compile_x"] = fused[clock] / ours[clock]
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def targets(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Ratios for a CPU at VOC shapes, times for an H100-class GPU at COCO shapes; of the operations asked for."""
    if (options.pictures, options.size, options.dtype) != (16, 320, "fp32"):
        return {}
    wanted: dict[str, dict[str, float]] = {}
    if (options.device, options.shapes) == ("cpu", "voc"):
        wanted = {name: {"min": value} for name, value in CPU_TARGETS.items()}
    elif (options.device, options.shapes) == ("cuda", "coco"):
        wanted = {name: bound for name, bound in GPU_TARGETS.items() if options.compile or "compile" not in name}
    return {name: bound for name, bound in wanted.items() if op_of(name) in options.ops}


def op_of(figure: str) -> str:
    return next(op for op in sorted(OPS, key=len, reverse=True) if figure.startswith(f"{op}_"))


def holds(found: dict[str, float], wanted: dict[str, dict[str, float]]) -> bool:
    """A figure that is missing holds nothing."""
    ranges = ((found.get(name, math.nan), bound) for name, bound in wanted.items())
    return all(bound.get("min", 0) <= value <= bound.get("max", math.inf) for value, bound in ranges)


def plot(file: Path, out: Path) -> None:
    """Time over the bytes an operation must move; the line is what a copy of so many bytes takes."""
    from matplotlib.figure import Figure

    with file.open(newline="") as table:
        rows = list(csv.DictReader(table))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    styles = {"published": "x", "reference": "+", "compile": "^", "fast path": "o", "triton": "o"}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        points = [(float(row["bound_mb"]), float(row["graph_us"] or row["median_us"])) for row in own]
        axis.scatter(*zip(*points, strict=True), marker=styles[variant], label=variant)
    for row in rows:
        if row["variant"] == "reference":
            axis.annotate(row["op"], (float(row["bound_mb"]), float(row["graph_us"] or row["median_us"])), fontsize=7)
    ends = [min(float(row["bound_mb"]) for row in rows), max(float(row["bound_mb"]) for row in rows)]
    axis.plot(ends, [1e3 * end / float(rows[0]["copy_gb_s"]) for end in ends], color="grey", label="copy bandwidth")
    axis.set(xscale="log", yscale="log", xlabel="bytes that must move [MB]", ylabel="time [us]")
    axis.set_title(f"{rows[0]['device']}, {rows[0]['shapes']}, {rows[0]['dtype']}")
    axis.legend()
    figure.savefig(out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", choices=CLASSES, default="voc")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS, metavar="OP", help=", ".join(OPS))
    parser.add_argument("--dtype", choices=TOLERANCE, default="fp32")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no torch.compile; under 3 minutes")
    parser.add_argument("--seconds", type=float, help="how long to time one operation (15, with --quick 2)")
    parser.add_argument("--save", type=Path, metavar="FILE.csv")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the rows of --save; needs matplotlib")
    parser.add_argument("--pictures", type=int, default=16, help="other than 16: no targets (%(default)s)")
    parser.add_argument("--size", type=int, default=320, help="other than 320: no targets (%(default)s)")
    options = parser.parse_args(arguments)
    if options.plot and not options.save:
        parser.error("--plot draws the rows of --save FILE.csv, which is missing")
    options.compile, options.seconds = not options.quick, options.seconds or (2.0 if options.quick else 15.0)
    os.environ.pop("KTSE_KERNELS", None)  # it would win over the modes that are compared
    device = torch.device(options.device)
    if device.type == "cuda":  # fp32 means fp32, for every variant
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    x = Inputs(CLASSES[options.shapes], device, {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype],
               options.pictures, options.size)  # fmt: skip
    about, copy = measuring.about(device), measuring.copy_bandwidth(device, min(1.0, options.seconds))
    print(f"{about['device']}, torch {about['torch']}, triton {about['triton']}, {options.shapes}, {options.dtype}, "
          f"a copy moves {copy / 1e9:.0f} GB/s")  # fmt: skip
    table = cases(x)
    rows: list[dict[str, Any]] = []
    for op in options.ops:
        rows += [row | about for row in measure(op, table[op], x, options, copy)]
        if options.save:
            save(rows, options.save)  # what is done stays, whatever comes next
    if options.plot:
        plot(options.save, options.plot)
    found, wanted = figures(rows, options.device), targets(options)
    asked = (len(variants(table[op], x, False)) + options.compile for op in options.ops)
    whole = len(rows) == sum(asked)  # no check failed
    result = {"benchmark": "ops", "device": about["device"], "figures": found, "targets": wanted,
              "holds": whole and holds(found, wanted)}  # fmt: skip
    print(json.dumps(result))


def save(rows: list[dict[str, Any]], file: Path) -> None:
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
