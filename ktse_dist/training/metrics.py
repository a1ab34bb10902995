"""What a run says while it trains: metrics.jsonl, TensorBoard, and a progress line. Rank 0 only."""

import json
import logging
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter

from ktse_dist.files import finished_lines, write_text
from ktse_dist.run_folder import RunFolder

log = logging.getLogger("ktse")


class MetricsLog:
    """Appends to metrics.jsonl and TensorBoard; lines of steps that a resumed run repeats are dropped first."""

    def __init__(self, folder: RunFolder, first_step: int):
        self._path = folder.metrics_file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line, said in finished_lines(self._path) if said["step"] <= first_step]
        write_text(self._path, "".join(f"{line}\n" for line in kept))
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line for the state after `step` updates."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class Means:
    """Running sums of the losses on the device; only logging waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._steps = 0

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        if losses.keys() != self._sums.keys():  # another phase has other losses
            self._sums, self._steps = {name: torch.zeros_like(loss) for name, loss in losses.items()}, 0
        for name, loss in losses.items():
            self._sums[name] += loss
        self._steps += 1

    def over_ranks(self) -> dict[str, float]:
        """Mean over the steps since the last call and over ranks. Every rank calls it."""
        values = torch.stack(list(self._sums.values())) / self._steps
        if dist.is_initialized():
            dist.all_reduce(values)
            values /= dist.get_world_size()
        names, self._sums = list(self._sums), {}
        return dict(zip(names, values.tolist(), strict=True))


class Progress:
    """Pictures a second and time left, measured since this process started training; `spent` is over all its parts."""

    def __init__(self, pictures_left: int, seconds_before: float = 0.0, pictures_before: int = 0):
        self._left, self._seen, self._start = pictures_left, 0, time.perf_counter()
        self._before = seconds_before, pictures_before

    def add(self, pictures: int) -> None:
        self._seen += pictures

    @property
    def spent(self) -> tuple[float, int]:
        """Seconds and pictures of the whole run so far."""
        seconds, pictures = self._before
        return seconds + time.perf_counter() - self._start, pictures + self._seen

    @property
    def images_per_second(self) -> float:
        return self._seen / max(time.perf_counter() - self._start, 1e-9)

    def line(self, step: int, steps: int, epoch: int, phase: int, losses: dict[str, float]) -> str:
        left = (self._left - self._seen) / max(self.images_per_second, 1e-9)
        parts = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        return (
            f"step {step}/{steps} epoch {epoch} phase {phase}: {parts} "
            f"| {self.images_per_second:.1f} images/s, {clock(left)} left"
        )


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
