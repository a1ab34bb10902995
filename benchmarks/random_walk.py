"""IRN's random walk: the published dense matrix, squared 8 times, against 256 sparse steps.

Both start from the same drawn CAM and boundary map of a 500x375 picture (125x94 at IRN's stride of 4), in this one
process; the figure is printed only if both give the same labels. The sparse walk is also timed alone at 2000x1500,
where the dense matrix would take 141 GB.    python benchmarks/random_walk.py [--quick]
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ktse_dist.inference.random_walk import affinities, random_walk, views

STRIDE, BETA, DOUBLINGS, BACKGROUND = 4, 10, 8, 0.25
TARGETS = {"walk_x": {"min": 10}, "walk_mem_x": {"min": 10}}
CLEAR = 1e-4  # labels are compared where the two best scores differ by more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller pictures, under 3 minutes on 2 cores")
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args()
    sizes = ((188, 250), (750, 1000)) if options.quick else ((375, 500), (1500, 2000))
    result = report(sizes[0], compare(*drawn(*sizes[0])), alone(*drawn(*sizes[1])), sizes[1])
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("benchmark", "device", "figures", "targets", "holds")}))


def drawn(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes' CAMs and boundaries of smooth noise, at IRN's stride."""
    draw = np.random.default_rng(0)
    size = -(-width // STRIDE), -(-height // STRIDE)
    noise = [cv2.resize(draw.random((9, 12), np.float32), size, interpolation=cv2.INTER_CUBIC) for _ in range(3)]
    cams = np.clip(np.stack(noise[:2]) * 2 - 1, 0, 1)
    edge = np.exp(-(((noise[2] - 0.5) / 0.05) ** 2)) * 0.9 + draw.random(noise[2].shape, np.float32) * 0.05
    return cams.astype(np.float32), edge.astype(np.float32)


def compare(cams: np.ndarray, edge: np.ndarray) -> dict[str, Any]:
    """Seconds and bytes of both, and whether their labels agree."""
    sparse, sparse_seconds = timed(lambda: random_walk(cams, edge, BETA))
    dense, dense_seconds = timed(lambda: dense_walk(cams, edge))
    return {
        "same": same_labels(sparse, dense),
        "difference": float(np.abs(sparse - dense).max()),
        "seconds": {"dense": dense_seconds, "sparse": sparse_seconds},
        "bytes": {"dense": 2 * 4 * edge.size**2, "sparse": peak_bytes(cams, edge)},  # dense: a matrix and its square
    }


def alone(cams: np.ndarray, edge: np.ndarray) -> dict[str, float]:
    _, seconds = timed(lambda: random_walk(cams[:1], edge, BETA))
    return {"seconds": seconds, "bytes": peak_bytes(cams[:1], edge)}


def timed(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    found = call()
    return found, time.perf_counter() - start


def peak_bytes(cams: np.ndarray, edge: np.ndarray) -> int:
    """The sparse walk's most memory at once; it is the same in a short walk."""
    tracemalloc.start()
    random_walk(cams, edge, BETA, steps=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def dense_walk(cams: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """As the published code does it: all pairs of pixels as one matrix."""
    matrix: Tensor = torch.eye(edge.size)
    places = np.arange(edge.size).reshape(edge.shape)
    for end, weights in affinities(edge, BETA):
        near, far = (torch.from_numpy(place.copy()) for place in views(places, end))
        matrix[near, far] = matrix[far, near] = torch.from_numpy(weights)
    matrix /= matrix.sum(0)
    for _ in range(DOUBLINGS):
        matrix = matrix @ matrix
    start = torch.from_numpy((cams * (1 - edge)).reshape(len(cams), -1))
    return (start @ matrix).reshape(cams.shape).numpy()


def same_labels(one: np.ndarray, two: np.ndarray) -> bool:
    """The labels after division by the highest value, wherever they are clear."""
    scores = [np.concatenate([np.full_like(walk[:1], BACKGROUND), walk / walk.max()]) for walk in (one, two)]
    best = np.sort(scores[1], 0)
    clear = best[-1] - best[-2] > CLEAR
    return bool((scores[0].argmax(0) == scores[1].argmax(0))[clear].all())


def report(size: tuple[int, int], both: dict[str, Any], large: dict[str, float], large_size: tuple[int, int]) -> dict:
    names, figures = ("dense", "sparse"), {}
    if both["same"]:
        times, room = ([both[kind][name] for name in names] for kind in ("seconds", "bytes"))
        figures = {"walk_x": round(times[0] / times[1], 1), "walk_mem_x": round(room[0] / room[1], 1)}
        print(f"{size[1]}x{size[0]}, 2 classes: dense {times[0]:.1f} s, {room[0] / 1e6:,.0f} MB for two matrices")
        print(
            f"sparse {times[1]:.2f} s, {room[1] / 1e6:.1f} MB; same labels, scores at most {both['difference']:.0e} off"
        )
    else:
        print("NOT PRINTED: the two give different labels")
    where = f"{large_size[1]}x{large_size[0]}"
    print(f"{where}, one class, sparse: {large['seconds']:.1f} s, {large['bytes'] / 1e6:.0f} MB")
    held = [figures.get(name, 0) >= target["min"] for name, target in TARGETS.items()]
    return {
        "benchmark": "random_walk",
        "device": f"cpu {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads for the matrix",
        "figures": figures,
        "targets": TARGETS,
        "holds": all(held),
        "compared": both,
        "large": large,
        "date": datetime.date.today().isoformat(),
        "versions": {"python": sys.version.split()[0], "numpy": np.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
