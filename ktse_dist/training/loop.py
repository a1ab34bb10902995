"""One training run on one rank, from its last checkpoint to its end. Nothing here knows Ray."""

import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import kernels
from ktse_dist.config import Config
from ktse_dist.data.bad_samples import BadSamples
from ktse_dist.data.index import Index
from ktse_dist.data.stream import Plan
from ktse_dist.errors import UserError
from ktse_dist.memory import keep_freed_memory, return_freed_memory
from ktse_dist.training import checkpoint
from ktse_dist.training.accumulation import train_step
from ktse_dist.training.context import RunContext
from ktse_dist.training.divergence import check_loss
from ktse_dist.training.engine import Engine, build_engine
from ktse_dist.training.engine.host_copies import HostCopies
from ktse_dist.training.job import Job, mirror_of, prepare
from ktse_dist.training.metrics import Means, MetricsLog, Progress
from ktse_dist.training.mirror import published
from ktse_dist.training.reached import Reached, going_on
from ktse_dist.training.schedule import Schedule
from ktse_dist.training.setup import uses_gpu
from ktse_dist.training.task import KTSE_TASK, Task
from ktse_dist.training.writer import Snapshot, Writer

log = logging.getLogger("ktse")

FULL = (errno.ENOSPC, errno.EDQUOT)


def run(job: Job, context: RunContext) -> None:
    """Train until the last step, or until the context asks to stop; either way a checkpoint is written last."""
    keep_freed_memory()
    try:
        run_on(job, context)
    except torch.OutOfMemoryError as error:
        raise UserError(f"no room for a step on the GPU ({str(error).partition('. ')[0]}); {job.task.room}") from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{error.filename or job.folder.path}: {error.strerror}; free some space there and run the same command "
            "again, which goes on from the last checkpoint"
        ) from None
    finally:
        return_freed_memory()  # the masks of all sizes that this process may make next would leave gaps


def run_on(job: Job, context: RunContext) -> None:
    """From the last checkpoint of the job, or from where it starts."""
    config = job.config
    index, schedule, saved = prepare(job)
    if dist.is_initialized():
        dist.barrier()  # nobody writes into a run's folder while another rank still brings it
    if job.start and not saved:
        raise UserError(f"{job.start}: not there, so nothing to fork from; run phase 1 again under a new run.name")
    first = saved.state["step"] if saved else 0
    if context.rank == 0:
        job.folder.write_config(config)
    if first == schedule.total_steps and job.folder.model.exists():
        return
    kernels.set_mode(config.kernels.mode)
    engine = make_engine(config, index, job.task)
    if saved:
        engine.load(saved.weights, saved.momentum)
    # a fork counts its own time and pictures only
    own = saved and checkpoint.latest(job.folder.checkpoints)
    spent = (saved.state["seconds"], saved.state["pictures"]) if own else (0.0, 0)
    before = saved.state.get("bad_samples", 0) if own else 0
    bad = BadSamples(len(index), config.data.max_bad_fraction, before, device_of(config))
    with Writer(job.folder, config.train.keep, mirror_of(job), job.fresh) as writer:
        Trainer(job, context, index, schedule, engine, bad, writer).train(first, *spent)
    if dist.is_initialized():
        dist.barrier()  # whoever looks for the latest checkpoint next finds this one


def device_of(config: Config) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if uses_gpu(config) else torch.device("cpu")


def make_engine(config: Config, index: Index, task: Task = KTSE_TASK) -> Engine:
    """The task's module with its seeded new parts, in an engine. Every rank builds the same weights."""
    torch.manual_seed(config.run.seed)
    module = task.module(config, index)
    device = device_of(config)
    module.to(device=device, memory_format=torch.channels_last)
    return build_engine(config.engine, module, task.groups(module, config), device)


class Trainer:
    """The steps of one run."""

    def __init__(
        self,
        job: Job,
        context: RunContext,
        index: Index,
        schedule: Schedule,
        engine: Engine,
        bad: BadSamples,
        writer: Writer,
    ):
        self.bad, self.writer, self.copies = bad, writer, HostCopies()
        self.written: Path | None = None
        self.job, self.config, self.context = job, job.config, context
        self.index, self.schedule, self.engine = index, schedule, engine
        self.device = device_of(job.config)
        engine.state(self.copies)  # new memory comes slowly, so now and not within the first checkpoint's step

    def train(self, first: int, seconds: float, pictures: int) -> None:
        """From step `first` on; seconds, pictures: what the run spent and saw before it was stopped."""
        schedule, step = self.schedule, first
        progress = Progress(schedule.pictures_after(first), seconds, pictures)
        metrics = MetricsLog(self.job.folder, first) if self.context.rank == 0 else None
        reached = self._reached(first) if self.context.rank == 0 else None
        means = Means()
        for batch in self._batches(first):
            means.add(self._update(batch, step))
            step += 1
            self.context.step = step
            if reached:
                reached.note(step)
            progress.add(batch.pictures)
            stopping = self.context.should_stop()
            if step % self.config.train.log_steps == 0 or step == schedule.total_steps:
                losses = means.over_ranks()
                self.bad.check()
                self._check_loss(step, losses["total"])
                if metrics:
                    self._log(metrics, progress, step, losses)
            if stopping or self._is_checkpoint(step):
                self._save(step, progress)
            if stopping:
                break
        if metrics and reached:
            metrics.close()
            reached.close()
        if step == schedule.total_steps:
            self._export(progress)

    def _reached(self, first: int) -> Reached:
        """The note of steps; says first how much of it is done again."""
        if line := going_on(self.job.folder, first):
            log.info(line)
        return Reached(self.job.folder)

    def _batches(self, first: int) -> Iterator[Any]:
        """Global batches from step `first` to the end, this rank's part of each."""
        step = first
        while step < self.schedule.total_steps:
            place = self.schedule.place(step)
            # a phase begins with an epoch, so an epoch has pairs in all of its batches or in none
            pairs = self.job.task.pairs(self.config, self.schedule.phase(step), place.batch_size)
            plan = Plan(place.epoch, place.batch_size, place.batch, pairs, self.context.rank, self.context.world)
            for batch in self.job.task.batches(self.config, self.index, plan):
                self.bad.add(batch.replaced)
                yield batch.to(self.device)
            step = self.schedule.epoch_end(place.epoch)
            self.bad.check()
            self.bad.next_epoch()

    def _update(self, batch: Any, step: int) -> dict[str, torch.Tensor]:
        sgd, lr = self.schedule.sgd(step), self.schedule.lr(step)
        for group in self.engine.groups:
            group["lr"] = lr * group["rate"] * (sgd.head_rate if group["head"] else 1.0)
            group["momentum"] = sgd.momentum
        return train_step(self.engine, batch, self.schedule.phase(step), self.config, self.context.world)

    def _check_loss(self, step: int, total: float) -> None:
        rate_key = self.job.task.rate_key(self.schedule.phase(step - 1))
        check_loss(total, step, rate_key, checkpoint.latest(self.job.folder.checkpoints), self.job.fresh)

    def _log(self, metrics: MetricsLog, progress: Progress, step: int, losses: dict[str, float]) -> None:
        place, phase = self.schedule.place(step - 1), self.schedule.phase(step - 1)
        rates = {"lr": self.engine.groups[0]["lr"], "images_per_second": round(progress.images_per_second, 2)}
        metrics.write(step, {"epoch": place.epoch, "phase": phase} | losses | rates)
        log.info(progress.line(step, self.schedule.total_steps, place.epoch, phase, losses))

    def _is_checkpoint(self, step: int) -> bool:
        ends = (self.schedule.phase1_steps, self.schedule.total_steps)
        return step in ends or step % self.config.train.checkpoint_steps == 0

    def _save(self, step: int, progress: Progress) -> None:
        """Every rank gathers, rank 0's writer goes on from there; the end of phase 1 has its own name for forks."""
        self.writer.wait()  # it still reads the copies
        weights, momentum = self.engine.state(self.copies)
        bad = self.bad.check()
        if self.context.rank == 0:
            seconds, pictures = progress.spent
            state = self._state(step, bad) | {"seconds": round(seconds, 1), "pictures": pictures}
            self.writer.begin(self._names(step), Snapshot(weights, momentum, state))
        metrics = {"step": step, "images_per_second": progress.images_per_second}
        self.context.report(metrics, self.written)
        self.written = self.job.folder.checkpoints / self._names(step)[-1]  # by the next time

    def _names(self, step: int) -> list[str]:
        forks_here = step == self.schedule.phase1_steps < self.schedule.total_steps and not self.job.start
        forks_here &= self.job.forks
        return [self.job.folder.phase1.name] * forks_here + [f"step-{step:08}"]

    def _state(self, step: int, bad: int) -> dict[str, Any]:
        place = self.schedule.place(step) if step < self.schedule.total_steps else None
        return {
            "step": step,
            "epoch": place.epoch if place else self.config.train.epochs,
            "samples_consumed": place.samples_consumed if place else 0,
            "bad_samples": bad if place and place.batch else 0,  # of the epoch that goes on
            "seed": self.config.run.seed,
            "index_sha256": self.index.sha256,
            "config": self.config.model_dump(mode="json", by_alias=True),
        }

    def _export(self, progress: Progress) -> None:
        """The finished network as one self-describing file, and how fast it was trained."""
        self.writer.wait()
        weights, _ = self.engine.state(self.copies)
        if self.context.rank:
            return
        folder = self.job.folder
        seconds, pictures = progress.spent
        folder.update_summary(images_per_second=round(pictures / seconds, 2), seconds={"train": round(seconds, 1)})
        self.job.task.export(folder, weights, self.config, self.index)
        self.writer.publish(folder.metrics_file, *published(folder))
