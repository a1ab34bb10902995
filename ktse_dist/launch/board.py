"""What the driver and the ranks tell each other while Ray Train has the floor: a small actor beside the driver.

Ranks give signs of life and learn whether to stop; the driver learns who hangs and what the user has to mend.
"""

import logging
import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from ray.train.v2._internal.execution.context import get_train_context
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ktse_dist.config import Config
from ktse_dist.training.watchdog import Watch

log = logging.getLogger("ktse")

ANSWER_SECONDS = 10.0  # a board or a rank that does not answer for so long is not there
LEFT_SECONDS = 1.0  # for the lines that say what happened, within the grace


class Board:
    """The actor's class."""

    def __init__(self, limit: float) -> None:
        self._watch, self._actors, self._stop, self._mistake = Watch(limit), {}, False, None
        self._resizing, self._seen = False, {}

    def beat(self, rank: int, host: str, pid: int, step: int, actor: ActorHandle) -> bool:
        """A rank's sign of life. Returns whether the job is asked to stop."""
        self._watch.beat(rank, host, pid, step, time.monotonic())
        self._actors[rank] = actor
        self._seen[rank] = time.monotonic()
        return self._stop or self._resizing

    def leave(self, rank: int) -> None:
        self._watch.forget(rank)
        self._seen.pop(rank, None)

    def resize(self, resizing: bool) -> None:
        """Whether all ranks are to leave with a checkpoint, because another number of them will go on."""
        self._resizing = resizing

    def ranks(self) -> list[int]:
        """Those that are there; one that was killed has not left, but is silent."""
        return [rank for rank, seen in self._seen.items() if time.monotonic() - seen < ANSWER_SECONDS]

    def stop(self) -> None:
        self._stop = True

    def give_up(self, mistake: str) -> None:
        """What the user has to mend: starting again would not help."""
        self._mistake = self._mistake or mistake

    def mistake(self) -> str | None:
        return self._mistake

    def hanging(self) -> list[tuple[int, str, ActorHandle]]:
        return [(rank, line, self._actors[rank]) for rank, line in self._watch.hanging(time.monotonic()).items()]


def make_board(config: Config) -> ActorHandle:
    """On the driver's own node, so that losing another one does not lose it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote(config.train.hang_seconds)


def pause(config: Config) -> float:
    """Seconds between two signs of life, and between two looks at them."""
    return min(5.0, config.train.hang_seconds / 10)


class Pulse:
    """A thread of a rank that tells the board how far it is, and hears what is asked of it.

    step: written by the rank.    asked_to_stop: by the driver.    going: ranks whose nodes are about to be taken away.
    """

    def __init__(self, board: ActorHandle, rank: int, config: Config) -> None:
        self.step, self.asked_to_stop, self.going = 0, False, []
        self._board, self._rank, self._pause = board, rank, min(1.0, pause(config))
        self._actor = ray.get_runtime_context().current_actor
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def _beat(self) -> None:
        host, pid = socket.gethostname(), os.getpid()
        while not self._ended.is_set():
            try:
                beat = self._board.beat.remote(self._rank, host, pid, self.step, self._actor)
                self.asked_to_stop = ray.get(beat, timeout=ANSWER_SECONDS)
                self.going = going_ranks()
            except RayError as error:  # the driver is going; Ray ends this rank
                log.warning(f"rank {self._rank}: the driver does not answer ({type(error).__name__})")
            self._ended.wait(self._pause)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(2 * ANSWER_SECONDS)
        self._board.leave.remote(self._rank)


def going_ranks() -> list[int]:
    """Those on nodes that are drained: by `ray drain-node`, by an autoscaler, by a SIGTERM to `ray start --block`.

    Ray's public question is a barrier of all ranks, too slow for every step.
    """
    notice = get_train_context().preemption_context.preemption_info
    return notice.preempted_ranks if notice else []


class Warden:
    """The driver's thread: hands SIGTERM on to the ranks, and ends ranks that hang so that Ray starts again.

    `with Warden(...)` in the main thread, after ray.init (which has a SIGTERM handler of its own).
    """

    def __init__(self, board: ActorHandle, config: Config, status: int) -> None:
        self._board, self._pause, self._grace, self._status = board, pause(config), config.train.grace_seconds, status
        self._stopped_at: float | None = None
        self._wake, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="warden", daemon=True)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopped_at = self._stopped_at or time.monotonic()
        self._wake.set()

    def _watch(self) -> None:
        told = False
        while not self._ended:
            self._wake.wait(0.2 if told else self._pause)
            if self._ended:
                return
            if self._stopped_at and not told:
                log.info(f"SIGTERM: a checkpoint, then the end, within {self._grace} s")
                self._board.stop.remote()
                told = True
            if told:
                self._wake.clear()
                self._end_in_time()
            else:
                self._end_hanging()

    def _end_in_time(self) -> None:
        assert self._stopped_at
        if time.monotonic() - self._stopped_at > self._grace - LEFT_SECONDS:
            log.error(f"no checkpoint within train.grace_seconds={self._grace}; the last one is where the run goes on")
            os._exit(self._status)

    def _end_hanging(self) -> None:
        try:
            found = ray.get(self._board.hanging.remote(), timeout=ANSWER_SECONDS)
        except RayError:
            return  # asked again after the pause; Ray's own limits hold meanwhile
        for rank, line, actor in found:
            self._board.leave.remote(rank)
            if is_there(actor):
                log.error(line)
                ray.kill(actor)

    def __enter__(self) -> "Warden":
        self._before: Any = signal.signal(signal.SIGTERM, self._ask)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended = True
        self._wake.set()
        self._thread.join(2 * ANSWER_SECONDS)
        signal.signal(signal.SIGTERM, self._before)


def is_there(actor: ActorHandle) -> bool:
    """False for the rank of a worker group that Ray has ended already; a stopped process is there, but silent."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=1.0)
    except GetTimeoutError:
        return True
    except RayError:
        return False
    return True
