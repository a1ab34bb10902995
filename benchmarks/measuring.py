"""Time, memory and bytes of a call, for the benchmarks; needs torch alone."""

import datetime
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # before torch: its profiler tells every start and stop otherwise

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FLUSH = 256 << 20  # bytes written between two calls on a GPU, so that none finds its inputs in the cache
COPY = {"cpu": 256 << 20, "cuda": 1 << 30}  # bytes of the copy that tells the bandwidth: no cache holds them

Call = Callable[[], object]


def timed_in_turn(
    calls: dict[str, Call], device: torch.device, budget: float, least: int = 3
) -> dict[str, list[float]]:
    """Seconds of each call. They take turns, so whatever else the machine does falls on all of them.

    Their order is drawn anew for each round: what ran just before decides how warm a call finds the caches. As many
    rounds as fit into `budget` seconds, `least` to 200, after a warm-up.
    """
    for call in calls.values():
        call()
    once = sum(seconds(call, device) for call in calls.values())
    rounds, draw = max(least, min(200, int(budget / once))), random.Random(0)
    turns = [name for _ in range(rounds) for name in draw.sample(list(calls), len(calls))]
    if device.type == "cuda":
        return _events(calls, device, turns)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for name in turns:
        spent[name].append(seconds(calls[name], device))
    return spent


def seconds(call: Call, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _events(calls: dict[str, Call], device: torch.device, turns: list[str]) -> dict[str, list[float]]:
    """GPU seconds as called; the flush before each call also hides some of the time that starting kernels takes."""
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=device)
    marks: dict[str, list] = {name: [] for name in calls}
    for name in turns:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        calls[name]()
        end.record()
        marks[name].append((start, end))
    torch.cuda.synchronize(device)
    return {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in marks.items()}


def graph_seconds(call: Call, device: torch.device, repeats: int = 20) -> float | None:
    """GPU seconds of a call in a CUDA graph, so without the host's; None where the call cannot be captured."""
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=device)
    graph, stream, current = torch.cuda.CUDAGraph(), torch.cuda.Stream(device), torch.cuda.current_stream(device)
    try:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        current.wait_stream(stream)
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:  # it asks the device something, which a graph cannot
        torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind
        torch.cuda.synchronize(device)
        return None
    spent = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize(device)
        spent.append(start.elapsed_time(end) / 1e3)
    return statistics.median(spent)


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most bytes that are allocated at once during a call, beyond what was there before: tensors, results, scratch.

    On a GPU the caching allocator's own figure; on a CPU the running sum of every allocation and release of torch's CPU
    allocator, as its profiler records them.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return _highest(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))


def _highest(changes: Iterator[int]) -> int:
    level = highest = 0
    for change in changes:
        level += change
        highest = max(highest, level)
    return highest


class BytesMoved(TorchDispatchMode):
    """Adds up what every torch operation inside reads and writes; views move nothing. Blind to Triton's launches."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, results)) if isinstance(x, Tensor)]
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return results


def moved_bytes(call: Call) -> int:
    with BytesMoved() as moved:
        call()
    return moved.total


def copy_bandwidth(device: torch.device, budget: float = 1.0) -> float:
    """Bytes read and written per second by the copy of one large tensor."""
    source = torch.ones(COPY[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = timed_in_turn({"copy": lambda: target.copy_(source)}, device, budget)["copy"]
    return 2 * source.numel() / statistics.median(spent)


def about(device: torch.device) -> dict[str, str]:
    """Device, versions and date, for every result."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return {
        "device": name + threads,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
