"""`ktse pack coco` on a generated set in COCO's format: pictures a second, memory, and ten kills with restart.

The pictures (500x375, 40 to 60 KB) are a few hundred distinct ones under many names, each name with annotations of its
own: 7 polygons a picture on average, some of them crowds. Speed and memory are of the real command, in a process of its
own, at a quarter of the pictures and at all of them.    python benchmarks/packing.py [--quick]
"""

import argparse
import datetime
import hashlib
import json
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

TARGETS = {"pictures_per_second": {"min": 500}, "memory_growth": {"max": 1.1}, "kills_identical": {"min": 10}}
HEIGHT, WIDTH, QUALITY = 375, 500, 84
WORKERS = 2
VAL = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2,000 pictures, under 3 minutes on 2 cores")
    parser.add_argument("--repeats", type=int, default=2, help="packs of all pictures (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work; needs 4 GB (default: the system's)")
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args()
    pictures = 2000 if options.quick else 20_000
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), pictures, options.repeats)
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("benchmark", "device", "figures", "targets", "holds")}))


def measure(folder: Path, pictures: int, repeats: int) -> dict:
    distinct = write_pictures(folder / "distinct", 300)
    quarter, whole = folder / "quarter", folder / "whole"
    write_tree(quarter, distinct, pictures // 4)
    write_tree(whole, distinct, pictures)
    small = pack(quarter, folder / "small")
    runs = [pack(whole, folder / f"run{number}") for number in range(repeats)]
    kills = kill_and_restart(whole, folder / "killed", folder / "run0", runs[0]["seconds"])
    rate = statistics.median((pictures + VAL) / run["seconds"] for run in runs)
    growth = max(runs[0]["parent_mb"] / small["parent_mb"], runs[0]["worker_mb"] / small["worker_mb"])
    figures = {
        "pictures_per_second": round(rate, 1),
        "memory_growth": round(growth, 3),
        "kills_identical": kills["identical"],
    }
    return {
        "benchmark": "packing",
        "device": f"cpu {platform.machine()}, {os.cpu_count()} cores, {WORKERS} workers",
        "figures": figures,
        "targets": TARGETS,
        "holds": all(holds(figures[name], target) for name, target in TARGETS.items()),
        "pictures": pictures,
        "quarter": small,
        "whole": runs,
        "kills": kills,
        "date": datetime.date.today().isoformat(),
        "versions": {"python": sys.version.split()[0], "numpy": np.__version__, "simplejpeg": simplejpeg.__version__},
    }


def holds(figure: float, target: dict[str, float]) -> bool:
    return target.get("min", -math.inf) <= figure <= target.get("max", math.inf)


def command(root: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "ktse_dist.data.pack", "coco", str(root), str(out), f"--workers={WORKERS}"]


def start(root: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(command(root, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def pack(root: Path, out: Path) -> dict:
    """Seconds of the whole command, on the clock and of the processor; peak memory of the parent and of its largest
    child in MB; load of the machine before."""
    load, began = os.getloadavg()[0], time.perf_counter()
    process, peaks, used = start(root, out), {}, {}
    os.set_blocking(process.stderr.fileno(), False)
    while process.poll() is None:
        process.stderr.read()
        for number, seconds in family(process.pid):
            peaks[number], used[number] = max(peaks.get(number, 0), peak_mb(number)), seconds
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command(root, out))} ended with {process.returncode}")
    parent = peaks.pop(process.pid)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "parent_mb": round(parent, 1),
        "worker_mb": round(max(peaks.values()), 1),
        "processor_seconds": round(sum(used.values()), 2),
        "load_before": round(load, 2),
    }


def family(number: int) -> Iterator[tuple[int, float]]:
    """The process and all below it, each with the seconds of processor time that it has used."""
    below: dict[int, list[tuple[int, float]]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, state = file.read_text().rsplit(")", 1)
        except OSError:
            continue  # it has just ended
        fields = state.split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        below.setdefault(int(fields[1]), []).append((int(file.parent.name), used))
        if file.parent.name == str(number):
            yield number, used
    waiting = [number]
    while waiting:
        for child, used in below.get(waiting.pop(), []):
            yield child, used
            waiting.append(child)


def peak_mb(number: int) -> float:
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0)


def kill_and_restart(root: Path, out: Path, reference: Path, seconds: float, kills: int = 10) -> dict:
    """SIGKILL the command at random moments, one start after the other, and let the last start end.

    `identical` counts the kills that hit a running command, 0 if any file differs from the uninterrupted pack's.
    """
    rng, hits = random.Random(0), []
    while len(hits) < kills:
        process, pause = start(root, out), rng.uniform(0.1, seconds / 3)
        try:
            process.communicate(timeout=pause)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            hits.append(round(pause, 2))
        else:
            same = digests(out) == digests(reference)
            if process.returncode or not same:
                return {"identical": 0, "killed_after_seconds": hits}
            subprocess.run(["rm", "-r", str(out)], check=True)
    if not out.exists():
        subprocess.run(command(root, out), check=True, capture_output=True)
    return {"identical": len(hits) * (digests(out) == digests(reference)), "killed_after_seconds": hits}


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for file in folder.iterdir():
        with file.open("rb") as stream:
            found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def write_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    files = [folder / f"{number}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        rng = np.random.default_rng(number)
        smooth = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        picture = np.clip(smooth + rng.normal(0, rng.uniform(6, 10), smooth.shape), 0, 255).astype(np.uint8)
        file.write_bytes(simplejpeg.encode_jpeg(picture, QUALITY, "RGB", "420"))
    return files


def write_tree(root: Path, distinct: list[Path], pictures: int) -> None:
    """COCO's layout: hard links to the pictures, and annotations in no order."""
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train2014", pictures), ("val2014", VAL)):
        folder = root / split
        folder.mkdir()
        names = [f"COCO_{split}_{number:012d}.jpg" for number in range(count)]
        for number, name in enumerate(names):
            os.link(distinct[number % len(distinct)], folder / name)
        size = {"height": HEIGHT, "width": WIDTH, "license": 1}
        images = [{"id": number, "file_name": name, **size} for number, name in enumerate(names)]
        categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
        with (root / "annotations" / f"instances_{split}.json").open("w") as stream:
            stream.write(f'{{"info": {{}}, "images": {json.dumps(images)}, "annotations": [')
            for number, annotation in enumerate(annotations(count)):
                stream.write((", " if number else "") + json.dumps(annotation))
            stream.write(f'], "categories": {json.dumps(categories)}}}')


def annotations(pictures: int) -> Iterator[dict]:
    """As in COCO: 1 to 13 a picture of 1 to 5 classes, 20 to 60 corners each, 1 in 100 a crowd."""
    rng, number = random.Random(1), 0
    for picture in rng.sample(range(pictures), pictures):
        classes = rng.sample(range(1, 81), rng.randint(1, 5))
        for _ in range(rng.randint(1, 13)):
            crowd = rng.random() < 0.01
            size = math.exp(rng.uniform(math.log(8), math.log(150)))
            middle = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
            box = [middle[0] - size, middle[1] - size, 2 * size, 2 * size]
            yield {
                "segmentation": runs(rng) if crowd else [outline(rng, size, *middle)],
                "area": round(3 * size**2, 4),
                "iscrowd": int(crowd),
                "image_id": picture,
                "bbox": [round(side, 2) for side in box],
                "category_id": rng.choice(classes),
                "id": number,
            }
            number += 1


def outline(rng: random.Random, size: float, x: float, y: float) -> list[float]:
    corners = rng.randint(20, 60)
    numbers = []
    for corner in range(corners):
        angle, reach = 2 * math.pi * corner / corners, size * rng.uniform(0.7, 1.3)
        numbers += [min(max(x + reach * math.cos(angle), 0), WIDTH), min(max(y + reach * math.sin(angle), 0), HEIGHT)]
    return [round(number, 2) for number in numbers]


def runs(rng: random.Random) -> dict:
    counts = [rng.randint(50, 300) for _ in range(200)]
    return {"size": [HEIGHT, WIDTH], "counts": [*counts, HEIGHT * WIDTH - sum(counts)]}


if __name__ == "__main__":
    main()
