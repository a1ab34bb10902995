"""Curves of the report as PNG data URIs: black on nothing, so that a dark page can invert them."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ktse_dist.evaluation.sweep import ThresholdSweep
from ktse_dist.files import finished_lines

DPI = 120
RUN, BASELINE = "#0072b2", "#d55e00"
NOT_LOSSES = {"step", "epoch", "phase", "lr", "images_per_second"}
Points = dict[str, list[tuple[int, float]]]


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none if it is not there."""
    return [said for _, said in finished_lines(file)]


def losses(lines: Sequence[Mapping[str, Any]]) -> Points:
    """loss name -> [(step, value)], in the order in which losses first appear, the total first."""
    points: Points = {}
    for line in lines:
        for name in line.keys() - NOT_LOSSES:
            points.setdefault(name, []).append((line["step"], line[name]))
    order = list(dict.fromkeys(name for line in lines for name in line))
    return {name: points[name] for name in sorted(points, key=lambda n: (n != "total", order.index(n)))}


def loss_plots(run: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(loss, image) for each loss of the run; the baseline's curve where it has that loss too."""
    others = losses(baseline)
    phase2 = next((line["step"] for line in run if line["phase"] == 2), None)
    return [(name, loss_plot(points, others.get(name, []), phase2)) for name, points in losses(run).items()]


def loss_plot(run: Sequence[tuple[int, float]], baseline: Sequence[tuple[int, float]], phase2: int | None) -> str:
    figure, axes = new_figure()
    for points, colour, name in ((run, RUN, "KTSE"), (baseline, BASELINE, "baseline")):
        if points:
            mark = "." if len(points) < 4 else None
            axes.plot(*zip(*points, strict=True), color=colour, label=name, linewidth=1.4, marker=mark)
    if phase2 and phase2 > run[0][0]:
        axes.axvline(phase2, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_xlabel("step")
    if baseline:
        axes.legend(frameon=False, fontsize=8)
    return data_uri(figure)


def sweep_plot(sweeps: Mapping[str, ThresholdSweep], chosen: Mapping[str, float]) -> str:
    """Seed mIoU over the background threshold. sweeps: by "KTSE, val" and the like; chosen: by "KTSE", "baseline"."""
    figure, axes = new_figure(height=2.9)
    colours = {"KTSE": RUN, "baseline": BASELINE}
    for name, sweep in sweeps.items():
        who, split = name.split(", ")
        style = "-" if split == "val" else "--"
        axes.plot(sweep.thresholds, sweep.miou(), style, color=colours[who], label=name, linewidth=1.4)
    for who, threshold in chosen.items():
        axes.axvline(threshold, color=colours[who], linewidth=0.8, linestyle=":")
    axes.set_xlabel("background threshold (dotted: chosen on train)")
    axes.set_ylabel("seed mIoU, %")
    axes.legend(frameon=False, fontsize=8, loc="lower center", ncols=2)
    return data_uri(figure)


def confusion_plot(names: Sequence[str], counts: np.ndarray) -> str:
    """counts int [K, K+1] of (truth, answer), the last column no answer: shares of each true class, as shades."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = new_figure(height=4.6, width=5.2)
    axes.grid(visible=False)
    image = axes.imshow(100 * shares, cmap="Greys", vmin=0, vmax=100, interpolation="nearest")
    size = min(7.0, 220 / len(names))  # points; 80 classes still fit
    names = [name.replace("$", r"\$") for name in names]  # not a formula
    axes.set_xticks(range(len(names) + 1), [*names, "no answer"], rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    bar = figure.colorbar(image, shrink=0.6)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("% of the true pixels", fontsize=8)
    return data_uri(figure)


def new_figure(height: float = 2.1, width: float = 4.2) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(8)
    axes.yaxis.label.set_size(8)
    axes.grid(axis="y", color="#888888", alpha=0.25, linewidth=0.6)
    return figure, axes


def data_uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, transparent=True, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
