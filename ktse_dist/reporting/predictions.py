"""Many pictures through one network: which are left to do, same-size batches, files and records of each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from tqdm import tqdm

from ktse_dist.data.foreign import Upright, load_or_say
from ktse_dist.data.pool import ordered_map
from ktse_dist.data.search import Found
from ktse_dist.inference.same_size import same_size
from ktse_dist.reporting.prediction import Job, finish_picture, mask_file, overlay_file
from ktse_dist.reporting.prediction_log import PredictionLog

BATCH_PIXELS = {"cpu": 3_200_000, "cuda": 8_000_000}  # that the network sees at once


class Wanted(NamedTuple):
    """A picture to predict. identity: what its prediction is made of; tags: class ids, None where nobody gave any."""

    name: str
    path: Path
    identity: dict[str, Any]
    tags: tuple[int, ...] | None


class Loaded(NamedTuple):
    wanted: Wanted
    picture: Upright


class Predictor(Protocol):
    """What looks at pictures. settings: what makes one prediction unlike another."""

    classes: list[str]
    scales: Sequence[float]
    long_side: int
    processes: int
    settings: dict[str, Any]

    @property
    def device(self) -> torch.device: ...

    def jobs(self, batch: Sequence[Loaded]) -> Iterator[Job]:
        """What is to be finished of pictures of one size, in their order."""


def wanted(found: Iterable[Found], given: Mapping[Path, tuple[int, ...]], log: PredictionLog) -> list[Wanted]:
    """The pictures that are not finished yet."""
    left = []
    for picture in found:
        tags = given.get(picture.path)
        identity = {
            "path": str(picture.path),
            **stamp(picture.path),
            "given_tags": None if tags is None else list(tags),
        }
        name = log.name_for(picture)
        if not log.has(name, identity):
            left.append(Wanted(name, picture.path, identity, tags))
    return left


def stamp(path: Path) -> dict[str, int | None]:
    """Size and time of a file; None of what is not there any more, which is found out when it is read."""
    try:
        about = path.stat()
    except OSError:
        return {"file_bytes": None, "file_mtime_ns": None}
    return {"file_bytes": about.st_size, "file_mtime_ns": about.st_mtime_ns}


def predict(predictor: Predictor, left: Sequence[Wanted], log: PredictionLog) -> dict[str, str]:
    """Write the files of all pictures; returns {path: why it could not be read}."""
    failed: dict[str, str] = {}
    sent: list[tuple[Wanted, Job]] = []  # those in the pool, oldest first
    with tqdm(total=len(left), desc="predict", unit="picture") as progress:
        loaded = readable_only(left, predictor, failed, progress)
        views = 2 * max(predictor.scales, default=1.0) ** 2  # a picture and its mirror image at the largest scale
        budget = int(BATCH_PIXELS[predictor.device.type] / views)
        batches = same_size(loaded, lambda one: one.picture.rgb.shape[:2], budget)
        jobs = sending(jobs_of(predictor, batches), sent)
        for shares in ordered_map(partial(finish_picture, log.out), jobs, predictor.processes):
            one, job = sent.pop(0)
            log.add(one.name, record(one, job, shares))
            progress.update()
    return failed


def readable_only(
    left: Sequence[Wanted], predictor: Predictor, failed: dict[str, str], progress: tqdm
) -> Iterator[Loaded]:
    """The pictures that can be read, decoded beside the network; the others go to `failed`."""
    load = partial(load_or_say, predictor.long_side)
    results = ordered_map(load, (one.path for one in left), (predictor.processes + 1) // 2)
    for one, result in zip(left, results, strict=True):
        if isinstance(result, str):
            failed[str(one.path)] = result
            progress.update()
        else:
            yield Loaded(one, result)


def jobs_of(predictor: Predictor, batches: Iterable[list[Loaded]]) -> Iterator[tuple[Wanted, Job]]:
    for batch in batches:
        yield from zip((one.wanted for one in batch), predictor.jobs(batch), strict=True)


def sending(jobs: Iterable[tuple[Wanted, Job]], sent: list[tuple[Wanted, Job]]) -> Iterator[Job]:
    for pair in jobs:
        sent.append(pair)
        yield pair[1]


def record(one: Wanted, job: Job, shares: Mapping[str, float]) -> dict[str, Any]:
    """What scores.json says of a picture."""
    files = {"mask": mask_file(one.name), "overlay": overlay_file(one.name)}
    return one.identity | {"size": list(job.size)} | job.about() | files | {"share": dict(shares)}
