"""Masks on Ray: `masks.workers` processes, each with a network of its own, make the pieces of a run.

The driver deals the pieces out and keeps count; a worker that is lost costs the piece it was at, which is made again.
All nodes see the run's folder, and what is finished is a file there, so nothing is lost with the driver either.
"""

import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from ktse_dist.config import Config
from ktse_dist.data.pool import WorkerDied
from ktse_dist.errors import UserError
from ktse_dist.files import remove_partials
from ktse_dist.inference.generate import Unreadable
from ktse_dist.launch.address import joins_cluster
from ktse_dist.mask_work import Maker, Piece, Told, place
from ktse_dist.run_folder import RunFolder, run_folder
from ktse_dist.training.setup import prepare_process

log = logging.getLogger("ktse")

LOOK_SECONDS = 1.0  # between two looks at how far the workers are, and between two of their reports
ANSWER_SECONDS = 10.0
WAIT_SECONDS = 30.0  # without any worker, until that is said


def make_with_ray(folder: RunFolder, config: Config, todo: Sequence[Piece], told: Told, bar: tqdm) -> None:
    """Make `todo` on `masks.workers` workers. UserError for what the user can mend."""
    check_shared(folder, config)
    connect(config)
    try:
        Crew(folder, config, todo, told, bar).work()
    finally:
        ray.shutdown()
        for look in {piece.look for piece in todo}:
            remove_partials(place(folder, look))  # of workers that were ended


def check_shared(folder: RunFolder, config: Config) -> None:
    """On a cluster, the working folder of a run at an address is nothing that other nodes see."""
    home = run_folder(config)
    if os.environ.get("RAY_ADDRESS") and home.address and home.path == folder.path:
        raise UserError(
            f"run.root: {home.address} is an address, and {folder.path} is on this machine alone; leave masks.workers "
            "at 0, unset RAY_ADDRESS, or copy the run to a folder that all nodes see"
        )


def connect(config: Config) -> None:
    """Join the cluster of RAY_ADDRESS (set inside a submitted job), else start one on this machine for this process."""
    quiet = {"logging_level": "WARNING", "log_to_driver": False}  # what a worker has to say comes as its answer
    if joins_cluster():
        ray.init(**quiet)
        return
    found, workers = torch.cuda.device_count(), config.masks.workers
    if config.ray.use_gpu and found < workers:
        raise UserError(
            f"masks.workers: {workers} workers need a GPU each, this machine has {found}; lower it, set "
            "ray.use_gpu=false, or join a cluster with RAY_ADDRESS"
        )
    cores = max(os.cpu_count() or 1, workers * int(of_a_worker(config)["num_cpus"]))
    ray.init("local", num_cpus=cores, include_dashboard=False, **quiet)


def of_a_worker(config: Config) -> dict[str, float]:
    """The network's threads, and the refinement's processes beside it."""
    needs: dict[str, float] = {"num_cpus": config.ray.threads + config.masks.processes}
    return needs | ({"num_gpus": 1} if config.ray.use_gpu else {})


class Tally:
    """The class of a small actor beside the driver: how many pictures of a piece are done."""

    def __init__(self) -> None:
        self._done: dict[int, int] = {}

    def note(self, number: int, done: int) -> None:
        self._done[number] = done

    def done(self) -> dict[int, int]:
        """By the number of the call, of all that changed since they were last asked for."""
        done, self._done = self._done, {}
        return done


class MaskWorker:
    """The actor's class. A piece's number is for the tally: a piece that is made again has a new one."""

    def __init__(self, folder: RunFolder, config: Config, tally: ActorHandle) -> None:
        self._folder, self._config, self._tally = folder, config, tally

    def start(self) -> None:
        """Get ready. UserError on a node that does not see the run or its data."""
        if not self._folder.config_file.is_file():
            raise UserError(
                f"--run {self._folder.path}: node {socket.gethostname()} does not see it; masks.workers on several "
                "machines need a folder that all of them see"
            )
        prepare_process(self._config.ray.threads)
        cv2.setNumThreads(self._config.ray.threads)
        self._maker = Maker(self._folder, self._config)

    def make(self, number: int, piece: Piece) -> list[Unreadable]:
        return self._maker.make(piece, Ticks(self._tally, number))


class Ticks:
    """Counts a worker's pictures and tells the tally of them now and then."""

    def __init__(self, tally: ActorHandle, number: int) -> None:
        self._tally, self._number, self._done, self._told = tally, number, 0, 0.0

    def __call__(self) -> None:
        self._done += 1
        if time.monotonic() - self._told > LOOK_SECONDS:
            self._told = time.monotonic()
            self._tally.note.remote(self._number, self._done)


@dataclass
class Call:
    """What a worker was asked: to make a piece, or (None) to start. since: its last sign of life."""

    worker: ActorHandle
    number: int
    piece: Piece | None
    since: float
    done: int = 0


class Crew:
    """The workers, what each of them is at, and what is still to make."""

    def __init__(self, folder: RunFolder, config: Config, todo: Sequence[Piece], told: Told, bar: tqdm) -> None:
        self._folder, self._config, self._told, self._bar = folder, config, told, bar
        first = [piece for piece in todo if piece.look == "calibration"]
        self._after = [piece for piece in todo if first and piece.look == "masks"]  # the calibration
        self._queue = deque([*first, *(piece for piece in todo if piece not in [*first, *self._after])])
        self._calls: dict[ray.ObjectRef, Call] = {}
        self._idle: list[ActorHandle] = []
        self._numbers, self._lost, self._worked = 0, Counter[str](), time.monotonic()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._tally = ray.remote(Tally).options(num_cpus=0, scheduling_strategy=here).remote()

    def work(self) -> None:
        """Until all is made."""
        looked = time.monotonic()
        while self._deal():
            ended, _ = ray.wait(list(self._calls), timeout=LOOK_SECONDS)
            for reference in ended:
                self._end(reference, self._calls.pop(reference))
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                self._look(looked)

    def _deal(self) -> bool:
        """Give idle workers something to do, and hire as many as there is work for. False: all is made."""
        while self._idle and self._queue:
            self._ask(self._idle.pop(), self._queue.popleft())
        if not (self._queue or self._after):
            for worker in self._idle:
                ray.kill(worker)  # its GPU may be of use to others
            self._idle.clear()
        starting = sum(call.piece is None for call in self._calls.values())
        room = self._config.masks.workers - len(self._calls) - len(self._idle)
        for _ in range(min(room, len(self._queue) + len(self._after) - starting - len(self._idle))):
            self._ask(self._hire(), None)
        return bool(self._calls)

    def _hire(self) -> ActorHandle:
        from ktse_dist.launch.ray_train import worker_environment  # not above: workers would load Ray Train, too

        options = of_a_worker(self._config) | {"runtime_env": {"env_vars": worker_environment(self._config)}}
        return ray.remote(MaskWorker).options(**options).remote(self._folder, self._config, self._tally)

    def _ask(self, worker: ActorHandle, piece: Piece | None) -> None:
        self._numbers += 1
        reference = worker.make.remote(self._numbers, piece) if piece else worker.start.remote()
        self._calls[reference] = Call(worker, self._numbers, piece, time.monotonic())

    def _end(self, reference: ray.ObjectRef, call: Call) -> None:
        try:
            unreadable = ray.get(reference)
        except RayTaskError as error:
            if not isinstance(error.cause, UserError):
                raise
            if not isinstance(error.cause, WorkerDied):
                raise error.cause from None
            self._lose(call, str(error.cause))
        except RayError as error:
            self._lose(call, str(error))
        else:
            self._idle.append(call.worker)
            if call.piece:
                self._finish(call.piece, unreadable, call.done)

    def _finish(self, piece: Piece, unreadable: list[Unreadable], counted: int) -> None:
        self._bar.update(len(piece.part.rows) - counted)
        self._told(piece, unreadable)
        if piece.look == "calibration":
            self._queue.extendleft(reversed(self._after))
            self._after = []

    def _lose(self, call: Call, why: str) -> None:
        """Make the piece again, with another worker. UserError where that went on for too long."""
        ray.kill(call.worker)
        what, why = str(call.piece or "the start of a worker"), " ".join(why.split())
        self._lost[what] += 1
        if self._lost[what] > self._config.ray.max_failures:
            raise UserError(
                f"masks.workers: {what} lost {self._lost[what]} workers, more than ray.max_failures="
                f"{self._config.ray.max_failures} ({why}); memory is the likely cause: lower masks.workers or "
                "masks.processes; the same command goes on from what is finished"
            )
        if call.piece:
            log.warning("%s: its worker was lost, another one makes it again (%.300s)", what, why)
            self._bar.update(-call.done)
            self._queue.appendleft(call.piece)

    def _look(self, now: float) -> None:
        """Move the bar, and end workers that have not moved for too long."""
        try:
            done = ray.get(self._tally.done.remote(), timeout=ANSWER_SECONDS)
        except RayError:
            return  # asked again soon
        limit = self._config.train.hang_seconds
        for reference, call in list(self._calls.items()):
            if call.number in done:
                self._bar.update(done[call.number] - call.done)
                call.done, call.since = done[call.number], now
            elif call.piece and now - call.since > limit:
                del self._calls[reference]
                self._lose(call, f"no picture for train.hang_seconds={limit}")
        if self._idle or any(call.piece for call in self._calls.values()):
            self._worked = now
        else:
            self._nobody_works(now - self._worked)

    def _nobody_works(self, seconds: float) -> None:
        """UserError when no worker could start for too long; an autoscaler's machines may still be on their way."""
        needs = " and ".join(f"{n:g} {name.removeprefix('num_')}" for name, n in of_a_worker(self._config).items())
        if seconds > self._config.train.hang_seconds:
            have = ray.cluster_resources()
            raise UserError(
                f"masks.workers: no worker could start within train.hang_seconds={self._config.train.hang_seconds}; "
                f"each needs {needs}, the cluster has {have.get('CPU', 0):g} cpus and {have.get('GPU', 0):g} gpus; "
                "lower masks.processes or ray.threads, or set ray.use_gpu=false"
            )
        if WAIT_SECONDS < seconds <= WAIT_SECONDS + 2 * LOOK_SECONDS:
            log.info("waiting for a worker: each needs %s", needs)
