"""The data stream: pictures a second against the published loader and against plain webdataset; order, resume, memory.

JPEGs of 500x375 in pairs, crop 320, two loading processes, measured after the first batches. published: PIL and numpy
as in docs/method.md 1.1. wds: webdataset with our decoding and augmentation, and neither order, partners nor checks.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ktse_dist.config.data import Data
from ktse_dist.data.augment import augment, draw
from ktse_dist.data.decode import decode_jpeg
from ktse_dist.data.index import MAGIC, Index
from ktse_dist.data.order import epoch_order
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.stream import Plan, stream

CLASSES, SHARDS, BATCH, WARM, WORKERS, CROP, LONG_SIDE = 20, 8, 16, 6, 2, 320, (256, 512)
SETTLED = 64  # batches after which an allocator has what it needs
PROCESSES = {"num_workers": WORKERS, "multiprocessing_context": "forkserver"}  # OpenCV may hang in forked ones
MILLIONS = (1, 3, 10)
TARGETS = {
    "vs_published": {"min": 3.0},
    "vs_wds": {"min": 1.0},
    "order_10m_seconds": {"max": 3.0},
    "order_bytes_per_sample": {"max": 100},
    "resume_1m_seconds": {"max": 3.0},
    "memory_growth": {"max": 1.1},
}
Run = Iterable[int]  # pictures of each batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer pictures, under 3 minutes on 2 cores")
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args()
    pictures, repeats = (512, 3) if options.quick else (2048, 5)
    with tempfile.TemporaryDirectory() as folder:
        index = pack(Path(folder) / "set", pictures)
        rates = compare(index, repeats)
        large = million(index, Path(folder) / "million")
        resume, growth = seconds_to_first_batch(large), memory_growth(large)
    orders = [measured_order(count) for count in MILLIONS]
    result = report(rates, growth, resume, orders, pictures)
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("benchmark", "device", "figures", "targets", "holds")}))


def compare(index: Index, repeats: int) -> dict[str, list[float]]:
    """Pictures a second of each way in each repeat, taken in turns."""
    names = {"published": published, "wds": plain_wds, "ours": ours}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name, run in names.items():
            rates[name].append(pictures_a_second(run(index, repeat)))
    return rates


def memory_growth(path: Path) -> float:
    """The most that a loading process holds in the last SETTLED batches, against as many before them."""
    sizes: list[int] = []
    for _ in islice(watched(ours(Index.open(path, "train"), 0), sizes), 3 * SETTLED):
        pass
    return max(sizes[2 * SETTLED :]) / max(sizes[SETTLED : 2 * SETTLED])


def pictures_a_second(run: Run) -> float:
    """Of all batches after the first WARM ones."""
    count, start = 0, 0.0
    for number, pictures in enumerate(run):
        if number < WARM:
            start = time.perf_counter()
        else:
            count += pictures
    return count / (time.perf_counter() - start)


def watched(run: Run, sizes: list[int]) -> Run:
    """Notes after each batch the most pages that a loading process holds alone: batches lie in shared ones."""
    for pictures in run:
        files = [Path(f"/proc/{child.pid}/statm") for child in multiprocessing.active_children()]
        held = [[int(n) for n in file.read_text().split()[1:3]] for file in files if file.exists()]
        sizes.append(max((resident - shared for resident, shared in held), default=0))
        yield pictures


def ours(index: Index, repeat: int) -> Run:
    data = Data(crop=CROP, long_side=LONG_SIDE, workers=WORKERS)
    for batch in stream(index, data, 1, Plan(repeat, BATCH, 0, BATCH, 0, 1)):
        yield len(batch.images) + len(batch.partners)


def published(index: Index, repeat: int) -> Run:
    loader = DataLoader(PublishedPairs(index.path), BATCH, shuffle=True, drop_last=True, **PROCESSES)
    for image, partner, _ in loader:
        yield len(image) + len(partner)


def plain_wds(index: Index, repeat: int) -> Run:
    """Every picture twice, as many as in the other two."""
    urls = [str(index.path / shard.name) for shard in index.shards]
    pipeline = wds.WebDataset(urls, shardshuffle=False).map(single).repeat(2).batched(BATCH, partial=False)
    for images, _ in DataLoader(pipeline, batch_size=None, **PROCESSES):
        yield len(images)


def single(sample: dict) -> tuple[torch.Tensor, torch.Tensor]:
    cv2.setNumThreads(1)
    picture = decode_jpeg(sample["jpg"])
    choices = draw(random.getrandbits(64), picture.shape[:2], LONG_SIDE, CROP)
    tags = np.zeros(CLASSES, np.float32)
    tags[json.loads(sample["json"])["labels"]] = 1
    pixels = augment(picture, choices, CROP, "opencv").pixels
    return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(tags)


class PublishedPairs(Dataset):
    """A picture and one of the same class, as the published loader reads, crops and normalises them."""

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, path: Path):
        self.files = sorted((path / "files").glob("*.jpg"))
        self.tags = np.load(path / "files" / "tags.npy")
        self.members = [np.flatnonzero(self.tags[:, c]) for c in range(CLASSES)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        partner = random.choice(self.members[random.choice(np.flatnonzero(self.tags[row]))])
        return self.crop(row), self.crop(partner), self.tags[row]

    def crop(self, row: int) -> np.ndarray:
        picture = Image.open(self.files[row]).convert("RGB")
        scale = random.randint(*LONG_SIDE) / max(picture.size)
        size = tuple(round(side * scale) for side in picture.size)
        resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        if random.random() < 0.5:
            resized = np.fliplr(resized)
        normal = np.empty(resized.shape, np.float32)
        for channel in range(3):
            normal[..., channel] = (resized[..., channel] / 255.0 - self.MEAN[channel]) / self.STD[channel]
        (top, y, high), (left, x, wide) = (self.span(side) for side in normal.shape[:2])
        canvas = np.zeros((CROP, CROP, 3), np.float32)
        canvas[top : top + high, left : left + wide] = normal[y : y + high, x : x + wide]
        return np.ascontiguousarray(canvas.transpose(2, 0, 1))

    @staticmethod
    def span(side: int) -> tuple[int, int, int]:
        """Place on the canvas, offset in the picture, length."""
        free = random.randint(0, abs(side - CROP))
        return (0, free, CROP) if side > CROP else (free, 0, side)


def pack(path: Path, pictures: int) -> Index:
    """Drawn pictures of 1 to 3 classes, once as shards and once as files."""
    numbers = np.random.default_rng(0)
    tags = np.zeros((pictures, CLASSES), np.float32)
    for row in range(pictures):
        tags[row, numbers.choice(CLASSES, numbers.integers(1, 4), replace=False)] = 1
    contents = [picture(numbers) for _ in range(pictures)]
    with new_dataset(path) as folder:
        samples = [
            Sample(f"p{row:06}", content, np.flatnonzero(tags[row]).tolist(), None, "drawn")
            for row, content in enumerate(contents)
        ]
        entry = write_split(folder, "train", samples, CLASSES, sum(map(len, contents)) // SHARDS)
        write_about(folder, [f"class{c}" for c in range(CLASSES)], {"train": entry})
    (path / "files").mkdir()
    np.save(path / "files" / "tags.npy", tags)
    for row, content in enumerate(contents):
        (path / "files" / f"{row:06}.jpg").write_bytes(content)
    return Index.open(path, "train")


def picture(numbers: np.random.Generator) -> bytes:
    """A JPEG of 500x375 and about 60 kB: large shapes, edges and grain, as photographs have."""
    wide, high = (500, 375) if numbers.random() < 0.7 else (375, 500)
    canvas = cv2.resize(numbers.integers(0, 256, (6, 8, 3), np.uint8), (wide, high), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        centre = (int(numbers.integers(wide)), int(numbers.integers(high)))
        colour = tuple(int(n) for n in numbers.integers(0, 256, 3))
        cv2.circle(canvas, centre, int(numbers.integers(10, 90)), colour, -1 if numbers.random() < 0.5 else 3)
    grain = numbers.normal(0, 8, canvas.shape)
    return simplejpeg.encode_jpeg(np.clip(canvas + grain, 0, 255).astype(np.uint8), 90, "RGB", "420")


def million(index: Index, path: Path) -> Path:
    """A set of 1,000,000 samples whose shards are those of `index`, many times."""
    copies = 1_000_000 // len(index) + 1
    records = np.tile(np.asarray(index.samples), copies)
    count = len(records)
    records["shard"] += np.repeat(np.arange(copies, dtype="<u4") * len(index.shards), len(index))
    keys = b"".join(b"k%07d" % row for row in range(count))
    records["key_end"] = np.arange(1, count + 1) * 8
    tags = np.packbits(np.tile(index.labels(range(len(index))).astype(np.uint8), (copies, 1)), axis=1)
    path.mkdir()
    header = MAGIC + np.array([count, CLASSES, len(keys)], "<i8").tobytes()
    (path / "train.index").write_bytes(header + records.tobytes() + keys + tags.tobytes())
    about = json.loads((index.path / "dataset.json").read_text())
    shards = []
    for copy in range(copies):
        for shard in index.shards:
            name = f"c{copy:05}-{shard.name}"
            os.link(index.path / shard.name, path / name)
            shards.append(shard._replace(name=name)._asdict())
    about["splits"]["train"]["shards"] = shards
    (path / "dataset.json").write_text(json.dumps(about))
    return path


def seconds_to_first_batch(path: Path) -> float:
    """From nothing to the first batch in the middle of an epoch, with partners, in this process."""
    start = time.perf_counter()
    index = Index.open(path, "train")
    batches: Iterator = stream(index, Data(), 1, Plan(3, BATCH, len(index) // BATCH // 2, BATCH, 0, 1))
    next(batches)
    return time.perf_counter() - start


def measured_order(millions: int) -> tuple[float, float]:
    """Seconds and peak bytes a sample of one epoch's order over shards of 10,000, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(make_order, (millions,))


def make_order(millions: int) -> tuple[float, float]:
    epoch_order([100], 1, 0)
    before = peak_bytes()
    start = time.perf_counter()
    epoch_order([10_000] * (100 * millions), 1, 0)
    seconds = time.perf_counter() - start
    return seconds, (peak_bytes() - before) / (millions * 1e6)


def peak_bytes() -> int:
    """What this program held at most so far; getrusage would count the process that it was started from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def report(rates: dict, growth: float, resume: float, orders: list[tuple[float, float]], pictures: int) -> dict:
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in middle.items():
        print(f"{name}: {rate:.0f} pictures/s, median of {len(rates[name])} epochs of {pictures} pairs")
    for millions, (seconds, size) in zip(MILLIONS, orders, strict=True):
        print(f"order of {millions:,},000,000 samples: {seconds:.2f} s, {size:.0f} bytes a sample at most")
    figures = {
        "vs_published": round(middle["ours"] / middle["published"], 2),
        "vs_wds": round(middle["ours"] / middle["wds"], 2),
        "images_per_second": round(middle["ours"], 1),
        **{f"order_{m}m_seconds": round(seconds, 2) for m, (seconds, _) in zip(MILLIONS, orders, strict=True)},
        "order_bytes_per_sample": round(max(size for _, size in orders)),
        "resume_1m_seconds": round(resume, 2),
        "memory_growth": round(growth, 3),
    }
    within = [t.get("min", -1e9) <= figures[name] <= t.get("max", 1e9) for name, t in TARGETS.items()]
    return {
        "benchmark": "data_stream",
        "device": f"cpu {platform.machine()}, {os.cpu_count()} cores, {WORKERS} loading processes",
        "figures": figures,
        "targets": TARGETS,
        "holds": all(within),
        "pictures_a_second": rates,
        "pictures": pictures,
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": sys.version.split()[0],
            **{
                module.__name__: module.__version__
                for module in (np, cv2, torch, simplejpeg, wds)
                if hasattr(module, "__version__")
            },
        },
    }


if __name__ == "__main__":
    main()
