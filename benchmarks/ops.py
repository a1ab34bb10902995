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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
import measuring
import published_ops
import torch
from torch import Tensor

import kernels
from kernels import graphs
from kernels.dispatch import choose

CLASSES = {"voc": 20, "coco": 80}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # of the largest value
NEAR = 1e-4  # pixels so near to the erasing threshold may fall on either side
TIED = 1e-5  # of the best score: rounding may choose between classes so near to each other
THRESHOLD = 0.6
OPS = ("foreground", "erase", "transfer", "transfer16", "align", "seg_loss", "par", "pyramid_gate")
CPU_TARGETS = {"par_x": 6, "erase_x": 6, "foreground_x": 6, "seg_loss_x": 3, "transfer_x": 1.5, "align_x": 1.5,
               "seg_loss_mem_x": 5, "erase_mem_x": 5}  # fmt: skip
GPU_TARGETS = {"erase_us": {"max": 20}, "seg_loss_us": {"max": 200}, "par_us": {"max": 1000},
               "transfer_us": {"max": 10}, "seg_loss_mb": {"max": 150}, "erase_vs_compile_x": {"min": 2},
               "seg_loss_vs_compile_x": {"min": 2}, "par_vs_compile_x": {"min": 2}}  # fmt: skip
COLUMNS = ("op", "variant", "shapes", "dtype", "median_us", "q20_us", "q80_us", "graph_us", "peak_mb", "bound_mb",
           "moved_x", "bandwidth_share", "copy_gb_s", "device", "torch", "triton", "python", "date")  # fmt: skip


class Case(NamedTuple):
    """One operation on fixed inputs. `call(api)` runs the function of that name that `api` has, on `leaves` and others.

    leaves: the inputs that get a gradient in training. `trained` says that the result is a loss, to be timed with its
    backward pass. decided: 1 where the result does not hang on rounding, [B,1,H,W] or a number.
    """

    folder: str
    function: str
    call: Callable[[Any], Tensor]
    leaves: tuple[Tensor, ...]
    bound: int
    trained: bool = True
    decided: Tensor | float = 1.0


class Inputs:
    """Pictures, CAMs and labels of one batch; the same for every variant."""

    def __init__(self, classes: int, device: torch.device, dtype: torch.dtype, pictures: int = 16, size: int = 320):
        random = torch.Generator().manual_seed(0)
        self.cam_size, self.classes, self.pictures, self.size = size // 8, classes, pictures, size

        def draw(*shape: int, smooth: int = 1) -> Tensor:
            coarse = torch.randn(*shape[:2], -(-shape[2] // smooth), -(-shape[3] // smooth), generator=random)
            return published_ops.upsample(coarse, shape[2:]) if smooth > 1 else coarse

        def cams(count: int, channels: int, height: int = self.cam_size) -> Tensor:
            return draw(count, channels, height, self.cam_size, smooth=4).to(device, dtype).requires_grad_()

        self.tags = [1 + (i % 5 > 2) + (i % 8 == 7) for i in range(pictures)]  # 60, 30, 10 % with 1, 2, 3 tags
        self.labels = torch.zeros(pictures, classes)
        for row, tags in zip(self.labels, self.tags, strict=True):
            row[torch.randperm(classes, generator=random)[:tags]] = 1
        colours = (draw(pictures, 3, size, size, smooth=20) + 0.05 * draw(pictures, 3, size, size)).sigmoid()
        images = (colours - 0.45) / 0.22
        regions = draw(pictures, 2, size, size, smooth=16)
        nearest = self.labels.argmax(dim=1)[:, None, None] + 1
        target = torch.where(regions[:, 0] > 0.3, nearest, 0).masked_fill(regions[:, 1] > 1.2, 255)
        self.labels, self.images, self.target = (
            self.labels.to(device), images.to(device, dtype), target.to(device, torch.uint8)
        )  # fmt: skip
        self.small = published_ops.upsample(colours, (size // 2, size // 2)).to(device, dtype)
        self.cam, self.erased = cams(pictures, classes), cams(pictures, classes)
        self.partner, self.mixed = cams(pictures, classes), cams(pictures, classes, 2 * self.cam_size)
        self.logits = cams(pictures, classes + 1)
        self.gates = [
            tuple((0.1 * draw(2, 2 * classes, 3, 3)).to(device).requires_grad_() for _ in range(2)) for _ in range(3)
        ]
        self.seeds = self._seeds(draw(pictures, max(self.tags), size // 2, size // 2, smooth=8)).to(device, dtype)

    def _seeds(self, planes: Tensor) -> Tensor:
        """[B, 2 * (1 + most tags), h, w]: background and present classes for two background planes; absent ones 0."""
        absent = torch.arange(max(self.tags)) >= torch.tensor(self.tags)[:, None]
        planes = planes.masked_fill(absent[:, :, None, None], -torch.inf)
        levels = (torch.full_like(planes[:, :1], level) for level in (0.3, 0.15))
        return torch.cat([torch.cat([level, planes], dim=1).softmax(dim=1) for level in levels], dim=1)


def cases(x: Inputs) -> dict[str, Case]:
    """What is measured. Bounds in bytes: every input read once, every result and gradient written once."""
    present, keep = sum(x.tags), (reference_foreground(x) < THRESHOLD).to(x.cam.dtype)
    strongest = reference_foreground(x, (x.size, x.size))
    decided = ((strongest - THRESHOLD).abs() > NEAR).float()
    confident = strongest * untied(x)  # else `inter` may lower one class or another
    pixels, item, small = x.pictures * x.size**2, x.cam.element_size(), x.pictures * (x.size // 2) ** 2
    cam_bytes, image_bytes = x.cam.numel() * item, x.images.numel() * item
    tagged_bytes = present * x.cam_size**2 * item
    seg_bytes = 2 * x.logits.numel() * item + pixels + strongest.numel() * 4
    # PAR: colours and masks once, the 48 weights written once, then weights and masks in each of 10 iterations
    par_bytes = small * (3 * item + 4 * 48 * 11 + 2 * 10 * 4 * x.seeds.shape[1])

    def transfer(count: int) -> Case:
        halves = x.cam[:count], x.partner[:count], x.mixed[:count]
        leaves = tuple(part.detach().requires_grad_() for part in halves)
        union = torch.maximum(x.labels, x.labels.roll(1, 0))[:count]
        bound = 2 * sum(leaf.numel() for leaf in leaves) * item
        return Case("transfer", "transfer_loss", lambda api: api.transfer_loss(*leaves, union), leaves, bound)

    all_gates = tuple(weight for pair in x.gates for weight in pair)
    upstream = torch.linspace(-1, 1, x.labels.numel(), device=x.cam.device).view_as(x.labels)
    return {
        "foreground": Case(
            "erasing", "foreground", lambda api: api.foreground(x.cam, x.labels, (x.size, x.size)),
            (), tagged_bytes + 4 * pixels, trained=False,
        ),
        "erase": Case(
            "erasing", "erase", lambda api: api.erase(x.images, x.cam, x.labels, THRESHOLD),
            (), tagged_bytes + 2 * image_bytes, trained=False, decided=decided,
        ),
        "transfer": transfer(min(4, x.pictures)),
        "transfer16": transfer(x.pictures),
        "align": Case(
            "transfer", "align_loss", lambda api: api.align_loss(x.cam, x.erased, keep, x.labels),
            (x.cam, x.erased), 4 * cam_bytes + keep.numel() * item,
        ),
        "seg_loss": Case(
            "segmentation", "seg_loss", lambda api: api.seg_loss(x.logits, x.target, x.labels, confident)[0],
            (x.logits,), seg_bytes,
        ),
        "par": Case("affinity", "par", lambda api: api.par(x.small, x.seeds), (), par_bytes, trained=False),
        "pyramid_gate": Case(
            "pyramid", "pyramid_gate", lambda api: (api.pyramid_gate(x.cam, x.gates)[1] * upstream).sum(),
            (x.cam, *all_gates), 4 * cam_bytes,
        ),
    }  # fmt: skip


def untied(x: Inputs) -> Tensor:
    """1 where the three best classes are told apart by more than rounding, [B,1,H,W]."""
    scores = published_ops.upsample(x.logits.detach().float().relu()[:, 1:], (x.size, x.size))
    first, second, third = scores.topk(3, dim=1).values.split(1, dim=1)
    return (torch.minimum(first - second, second - third) > TIED * first).float()


def reference_foreground(x: Inputs, size: tuple[int, int] | None = None) -> Tensor:
    return in_mode("reference", lambda: kernels.foreground(x.cam, x.labels, size))


def published(x: Inputs) -> SimpleNamespace:
    """The published functions for the inputs; in fp32, which is all that the published code knows."""
    half = x.seeds.shape[1] // 2

    def par(images: Tensor, seeds: Tensor) -> Tensor:
        """Each picture's present masks, for each background plane, as a graph that nobody uses: autograd is on."""
        parts = [seeds[:, :half], seeds[:, half:]]
        masks = [[part[i : i + 1, : 1 + tags].requires_grad_() for part in parts] for i, tags in enumerate(x.tags)]
        result = torch.zeros_like(seeds)
        for i, planes in enumerate(published_ops.par_each(images, masks)):
            for k, refined in enumerate(planes):
                result[i, k * half : k * half + refined.shape[1]] = refined[0].detach()
        return result

    return SimpleNamespace(**{name: in_fp32(getattr(published_ops, name)) for name in FUNCTIONS if name != "par"},
                           par=in_fp32(par))  # fmt: skip


FUNCTIONS = ("foreground", "erase", "transfer_loss", "align_loss", "seg_loss", "par", "pyramid_gate")


def in_fp32(function: Callable) -> Callable:
    def cast(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x

    return lambda *arguments: function(*(cast(argument) for argument in arguments))


def in_mode(mode: str, call: Callable[[], Any]) -> Any:
    before = kernels.mode()
    kernels.set_mode(mode)
    try:
        return call()
    finally:
        kernels.set_mode(before)


def compiled(case: Case) -> SimpleNamespace:
    torch._dynamo.reset()
    return SimpleNamespace(**{case.function: torch.compile(getattr(reference_of(case), case.function), dynamic=False)})


def reference_of(case: Case) -> ModuleType:
    return __import__(f"kernels.ops.{case.folder}.reference", fromlist=["reference"])


def run(case: Case, api: Any) -> list[Tensor]:
    """The value and, of a loss, the gradients for all leaves."""
    value = case.call(api)
    if not case.trained:
        return [value.detach()]
    return [value.detach(), *torch.autograd.grad(value, case.leaves)]


def disagreement(case: Case, found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference to the reference, relative to the largest value of each tensor; NaN counts as infinite."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = (x.double() * case.decided for x in (ours, theirs))
        scale = theirs.abs().amax().clamp(min=1e-30)
        worst = max(worst, ((ours - theirs).abs().amax() / scale).nan_to_num(nan=torch.inf).item())
    return worst


def variants(case: Case, x: Inputs, with_compile: bool) -> dict[str, Any]:
    """What runs the case, by name; ours is called by what ran: `triton`, or `fast path` in torch."""
    ours = choose(case.folder, x.cam).__name__.rpartition(".")[2]
    found = {"published": published(x), "reference": reference_of(case)}
    if with_compile:
        found["compile"] = compiled(case)
    return found | {{"function": "triton", "eager": "fast path"}[ours]: kernels}


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
