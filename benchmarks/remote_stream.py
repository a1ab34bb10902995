"""Images per second of a remote data set against the same one in a local folder, after the first window.

HTTP and S3 (moto) servers run on loopback as processes of this machine, so they share its cores with the loader. The
figures are printed only after all streams gave the same pictures.    python benchmarks/remote_stream.py [--quick]
"""

import argparse
import datetime
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import cv2
import numpy as np
import simplejpeg
import torch

from ktse_dist.config.data import Data
from ktse_dist.data.index import Index
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.remote_set import locate
from ktse_dist.data.stream import Plan, stream

TARGET = 0.9  # of the local images/s
BATCH, WINDOW, SHARD_BYTES = 16, 3, 4_000_000
CACHE = 36_000_000  # bytes: the index and a little more than two windows
SERVER = Path(__file__).parents[1] / "tests" / "data" / "range_server.py"
PLACES = ("local", "http", "s3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer pictures and repeats, under 3 minutes on 2 cores")
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args()
    pictures, repeats = (1200, 3) if options.quick else (3000, 5)
    with tempfile.TemporaryDirectory() as folder:
        pack(Path(folder) / "set", pictures)
        with http_server(Path(folder) / "set") as http, s3_server(Path(folder) / "set") as s3:
            result = measure(Path(folder), {"local": Path(folder) / "set", "http": http, "s3": s3}, repeats)
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("benchmark", "device", "figures", "targets", "holds")}))


def measure(folder: Path, places: dict[str, Path | str], repeats: int) -> dict:
    """All places in turn, each time with an empty cache."""
    rates: dict[str, list[float]] = {name: [] for name in PLACES}
    peaks, sums = [], set()
    for repeat in range(repeats + 1):  # the first one warms up
        for name in PLACES:
            rate, peak, checksum = epoch(places[name], folder / f"cache-{name}-{repeat}")
            sums.add(checksum)
            if repeat:
                rates[name].append(rate)
                peaks.append(peak)
    assert len(sums) == 1, "the streams gave different pictures"
    rate = {name: statistics.median(found) for name, found in rates.items()}
    print(", ".join(f"{name} {rate[name]:.0f} images/s" for name in PLACES) + f", medians of {repeats}, same pictures")
    figures = {f"{name}_vs_local": paired_median(rates[name], rates["local"]) for name in PLACES[1:]}
    figures["peak_cache_share"] = round(max(peaks) / CACHE, 3)
    targets = {"http_vs_local": {"min": TARGET}, "s3_vs_local": {"min": TARGET}, "peak_cache_share": {"max": 1}}
    return {
        "benchmark": "remote_stream",
        "device": f"cpu {platform.machine()}, {os.cpu_count()} cores, servers on the same",
        "figures": figures,
        "targets": targets,
        "holds": all(
            figures[name] >= bound.get("min", 0) and figures[name] <= bound.get("max", float("inf"))
            for name, bound in targets.items()
        ),
        "images_per_second": rates,
        "date": datetime.date.today().isoformat(),
        "versions": {"python": sys.version.split()[0], "numpy": np.__version__, "torch": torch.__version__},
    }


def paired_median(rates: list[float], local: list[float]) -> float:
    """Of the ratios within each repeat: what else the machine does changes from repeat to repeat."""
    return round(statistics.median(rate / base for rate, base in zip(rates, local, strict=True)), 3)


def epoch(place: Path | str, cache: Path) -> tuple[float, int, int]:
    """Images/s after the first window, the largest size of the cache in bytes, and a checksum of all pictures."""
    data = Data(path=place, window_shards=WINDOW, workers=1, cache={"folder": cache, "gigabytes": CACHE / 1e9})
    index = Index.open(locate(data.path, data), "train")
    first = WINDOW * int(index.shard_sizes.max()) // BATCH  # batches
    checksum, peak, start, seen = 0, 0, 0.0, 0
    for number, batch in enumerate(stream(index, data, 7, Plan(0, BATCH, 0, 0, 0, 1))):
        checksum = zlib.crc32(batch.images.contiguous().numpy(), checksum)
        peak = max(peak, size(cache))
        seen += BATCH * (number > first)
        start = time.perf_counter() if number == first else start
    return seen / (time.perf_counter() - start), peak, checksum


def size(cache: Path) -> int:
    sizes = []
    for file in cache.glob("*/*"):
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:
            continue  # it made room
    return sum(sizes)


def pack(path: Path, pictures: int) -> None:
    """JPEGs of 500x375, smooth with some grain: about 50 kB each."""
    random = np.random.default_rng(0)

    def picture(number: int) -> Sample:
        smooth = cv2.resize(random.integers(0, 256, (12, 16, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
        grain = random.integers(-16, 17, smooth.shape, np.int16)
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        return Sample(f"{number:06}", simplejpeg.encode_jpeg(pixels, 85, "RGB", "420"), [number % 20], None, "drawn")

    with new_dataset(path) as folder:
        entry = write_split(folder, "train", map(picture, range(pictures)), 20, SHARD_BYTES)
        write_about(folder, [f"class{n}" for n in range(20)], {"train": entry})


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    command = [sys.executable, str(SERVER), str(folder), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port)
            client = boto3.client("s3")
            client.create_bucket(Bucket="pictures")
            for file in folder.iterdir():
                client.upload_file(str(file), "pictures", f"set/{file.name}")
            yield "s3://pictures/set"
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int) -> None:
    last = time.monotonic() + 60
    while time.monotonic() < last:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("moto did not start within 60 s")


if __name__ == "__main__":
    main()
