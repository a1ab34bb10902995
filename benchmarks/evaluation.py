"""Threshold sweep: the published formulation (all pictures again for each threshold) against ours (once in all).

Both read the same files, CAM dictionaries (.npy) and ground truth (.png) of drawn pictures in the sizes of VOC, in this
one process. The figure is printed only after both gave the same IoU.    python benchmarks/evaluation.py [--quick]
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ktse_dist.data.decode import decode_mask
from ktse_dist.evaluation.sweep import PUBLISHED_THRESHOLDS, ThresholdSweep
from ktse_dist.inference.formats import encode_mask

CLASSES = 20
TARGET = 20
SIZES = ((375, 500), (333, 500), (500, 375), (281, 500))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer pictures, under 3 minutes on 2 cores")
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args()
    pictures, repeats = (12, 3) if options.quick else (60, 5)
    with tempfile.TemporaryDirectory() as folder:
        names = draw_pictures(Path(folder), pictures)
        published, ours = compare(Path(folder), names, repeats)
    result = report(published, ours, pictures)
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("benchmark", "device", "figures", "targets", "holds")}))


def compare(folder: Path, names: list[str], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of each repeat of both ways, after one warm-up each, whose scores must agree."""
    np.testing.assert_allclose(one_pass(folder, names), pass_per_threshold(folder, names), rtol=1e-9)
    published, ours = [], []
    for _ in range(repeats):
        published.append(seconds(pass_per_threshold, folder, names))
        ours.append(seconds(one_pass, folder, names))
    return published, ours


def seconds(run: Callable[[Path, list[str]], np.ndarray], folder: Path, names: list[str]) -> float:
    start = time.perf_counter()
    run(folder, names)
    return time.perf_counter() - start


def report(published: list[float], ours: list[float], pictures: int) -> dict:
    slow, fast = statistics.median(published), statistics.median(ours)
    print(f"{pictures} pictures, {len(PUBLISHED_THRESHOLDS)} thresholds, medians of {len(ours)} repeats, same scores")
    print(f"published {1e3 * slow / pictures:.1f} ms a picture, one pass {1e3 * fast / pictures:.2f} ms a picture")
    figure = round(slow / fast, 1)
    return {
        "benchmark": "evaluation",
        "device": f"cpu {platform.machine()}, one process",
        "figures": {"sweep_x": figure},
        "targets": {"sweep_x": {"min": TARGET}},
        "holds": figure >= TARGET,
        "seconds": {"published": published, "one_pass": ours},
        "pictures": pictures,
        "date": datetime.date.today().isoformat(),
        "versions": {"python": sys.version.split()[0], "numpy": np.__version__, "opencv": cv2.__version__},
    }


def one_pass(folder: Path, names: list[str]) -> np.ndarray:
    """IoU in percent [thresholds, classes+1], our way."""
    sweep = ThresholdSweep(CLASSES)
    for name in names:
        cams = np.load(folder / f"{name}.npy", allow_pickle=True).item()
        truth = decode_mask((folder / f"{name}.png").read_bytes())
        sweep.update(np.array(list(cams)), np.stack(list(cams.values())), truth)
    return sweep.iou()


def pass_per_threshold(folder: Path, names: list[str]) -> np.ndarray:
    """IoU in percent [thresholds, classes+1], the published way: everything again for each threshold."""
    return np.array([published_iou(folder, names, threshold) for threshold in PUBLISHED_THRESHOLDS])


def published_iou(folder: Path, names: list[str], threshold: float) -> list[float]:
    hits, predictions, truths = (np.zeros(CLASSES + 1) for _ in range(3))
    for name in names:
        cams = np.load(folder / f"{name}.npy", allow_pickle=True).item()
        height, width = next(iter(cams.values())).shape
        planes = np.zeros((CLASSES + 1, height, width), np.float32)
        planes[0] = threshold
        for key, cam in cams.items():
            planes[key + 1] = cam
        predicted = np.argmax(planes, axis=0).astype(np.uint8)
        truth = np.array(Image.open(folder / f"{name}.png"))
        known = truth < 255
        right = (predicted == truth) * known
        for value in range(CLASSES + 1):
            predictions[value] += np.sum((predicted == value) * known)
            truths[value] += np.sum((truth == value) * known)
            hits[value] += np.sum((truth == value) * right)
    return [100 * hits[i] / (truths[i] + predictions[i] - hits[i] + 1e-10) for i in range(CLASSES + 1)]


def draw_pictures(folder: Path, count: int) -> list[str]:
    """Write `count` CAM dictionaries and masks: 1 to 3 classes a picture, smooth maps with peak 1, blobs as truth."""
    random, palette = np.random.default_rng(0), np.zeros((256, 3), np.uint8)
    for index in range(count):
        height, width = SIZES[index % len(SIZES)]
        keys = np.sort(random.choice(CLASSES, random.integers(1, 4), replace=False))
        maps = [cv2.resize(random.random((6, 6), np.float32), (width, height)) for _ in keys]
        cams = [np.maximum(plane - 0.4, 0) for plane in maps]
        cams = [plane / (plane.max() + 1e-5) for plane in cams]
        truth = np.zeros((height, width), np.uint8)
        for key, cam in zip(keys, cams, strict=True):
            truth[cv2.GaussianBlur(cam, (0, 0), 9) > 0.3] = key + 1
        truth[random.random(truth.shape) < 0.03] = 255
        np.save(folder / f"{index}.npy", dict(zip(keys.tolist(), cams, strict=True)), allow_pickle=True)
        (folder / f"{index}.png").write_bytes(encode_mask(truth, palette))
    return [str(index) for index in range(count)]


if __name__ == "__main__":
    main()
