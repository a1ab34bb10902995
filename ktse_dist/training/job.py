"""What a run is, and whether it may start: everything the user can mend, found before any worker starts."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktse_dist.config import Config
from ktse_dist.data.index import SPLITS, Index
from ktse_dist.data.prefetch import check_room
from ktse_dist.data.remote_set import locate
from ktse_dist.errors import UserError
from ktse_dist.run_folder import RunFolder, dataset_path
from ktse_dist.training import checkpoint
from ktse_dist.training.checkpoint import Checkpoint
from ktse_dist.training.divergence import FRESH
from ktse_dist.training.mirror import Mirror, bring_fork
from ktse_dist.training.schedule import Schedule
from ktse_dist.training.storage import Storage
from ktse_dist.training.task import KTSE_TASK, Task

# Sections and keys that may differ when a run goes on: they change where and how it is computed, not what.
FREE = {
    "run.root",
    "run.name",
    "run.deadline",
    "engine",
    "ray",
    "kernels",
    "masks",
    "data.path",
    "data.sha256",
    "data.cache",
    "data.max_bad_fraction",
    "data.workers",
    "train.baseline",
    "train.checkpoint_steps",
    "train.grace_seconds",
    "train.hang_seconds",
    "train.keep",
    "train.log_steps",
    "train.micro_batch",
    "train.recompute",
}

OF_LATER_STAGES = frozenset({"segment"})  # says nothing about KTSE's own run

TAGS_AT_ONCE = 4096  # pictures


@dataclass(frozen=True)
class Job:
    """A run to train into `folder`; without a checkpoint of its own it starts from `start`, or from scratch.

    start: a checkpoint's path, or its address.    task: what is trained (training/task.py).
    forks: whether the end of phase 1 is kept for others to start from.
    free: sections and keys, beside FREE, that say nothing about this job.
    fresh: for people, how to train anew with other settings.
    """

    config: Config
    folder: RunFolder
    start: Path | str | None = None
    task: Task = KTSE_TASK
    forks: bool = True
    free: frozenset[str] = OF_LATER_STAGES
    fresh: str = FRESH


def mirror_of(job: Job) -> Mirror | None:
    return Mirror(job.folder, job.config.run.deadline) if job.folder.address else None


def prepare(job: Job) -> tuple[Index, Schedule, Checkpoint | None]:
    """What a run starts from, checked: UserError for everything the user can mend, before any worker starts.

    The working folder of a run at an address agrees with it afterwards.
    """
    mirror = mirror_of(job)
    if mirror:
        mirror.bring()
    place = locate(dataset_path(job.config), job.config.data)
    index, val = (Index.open(place, split) for split in SPLITS)
    for split in (index, val):  # val is looked at after hours of training: better to hear of it now
        split.check_files()
    check_room(index, job.config.data, job.config.world)
    check_tags_differ(index)
    index = job.task.pictures(index)
    schedule = Schedule(job.config, len(index))
    own = checkpoint.latest(job.folder.checkpoints)
    if own:
        saved = checkpoint.load(own)
        check_same_data(saved, index, own, job.fresh)
        check_same_run(saved, job.config, own, job.free, job.fresh)
    else:
        start = local_start(job)
        saved = checkpoint.load(start) if start else None  # a fork: another method on the same pictures
        if saved:
            check_same_data(saved, index, start, job.fresh)
    return index, schedule, saved


def local_start(job: Job) -> Path | None:
    """The checkpoint to fork from, on this machine; None where there is none, or none yet."""
    if isinstance(job.start, str):
        folder, _, name = job.start.rpartition("/")
        return bring_fork(Storage(folder, job.config.run.deadline), name, job.folder.path / "start")
    return job.start if job.start and job.start.exists() else None


def check_tags_differ(index: Index) -> None:
    """UserError where all pictures have the same tags: then there is nothing that a classifier could learn."""
    first = index.labels([0])
    for start in range(0, len(index), TAGS_AT_ONCE):
        if (index.labels(range(start, min(start + TAGS_AT_ONCE, len(index)))) != first).any():
            return
    names = [name for name, tag in zip(index.classes, first[0], strict=True) if tag]
    raise UserError(
        f"{index.place}: every training picture has the same tags ({', '.join(names[:5]) or 'none'}), and masks are "
        "learnt from what tells pictures apart; add pictures of another class, or some without any tag"
    )


def check_same_data(saved: Checkpoint, index: Index, position: Path, fresh: str) -> None:
    if saved.state["index_sha256"] != index.sha256:
        raise UserError(
            f"{position}: made with another data set than {index.place}; give that one as data.path, or {fresh}"
        )


def check_same_run(
    saved: Checkpoint, config: Config, position: Path, free: Set[str] = frozenset(), fresh: str = FRESH
) -> None:
    """A run goes on only with the settings it was started with."""
    then, now = (flatten(c) for c in (saved.state["config"], config.model_dump(mode="json", by_alias=True)))
    changed = [key for key in sorted(then | now) if then.get(key) != now.get(key) and not is_free(key, FREE | free)]
    if changed:
        key, *more = changed
        those = f"it and {', '.join(more)}" if more else "it"
        raise UserError(
            f"{key}: {now.get(key)!r}, but {position} was trained with {then.get(key)!r}; "
            f"set {those} back to go on, or {fresh} to train anew"
        )


def is_free(key: str, free: Set[str] = FREE | OF_LATER_STAGES) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in free)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
