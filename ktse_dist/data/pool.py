"""Work spread over processes, results in the order of the input, memory bounded. Free of torch."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import TypeVar

from ktse_dist.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDied(UserError):
    """A worker process ended without an answer, typically killed for lack of memory; a new start may do."""


def ordered_map(
    function: Callable[[Item], Result],
    iterable: Iterable[Item],
    processes: int,
    in_flight: int | None = None,
) -> Iterator[Result]:
    """Yield function(item) in input order, computed by `processes` workers; 0 computes in this process.

    `function` is a module-level function or a functools.partial of one; its module should not import torch, since every
    worker imports it. At most `in_flight` (default: two per worker) items are taken from `iterable` ahead of the
    results asked for. An exception of `function` is raised here at its item's turn; a worker that dies raises
    WorkerDied. Both end the pool, as does closing the generator; items not yet started are dropped.
    """
    if processes == 0:
        yield from map(function, iterable)
        return
    executor = ProcessPoolExecutor(processes, mp_context=_context(function), initializer=_start_worker)
    try:
        yield from _in_order(executor, function, iterable, in_flight or 2 * processes)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _in_order(
    executor: ProcessPoolExecutor, function: Callable[[Item], Result], iterable: Iterable[Item], in_flight: int
) -> Iterator[Result]:
    items, waiting, position = iter(iterable), deque[Future](), 0
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
                position += 1
        while waiting:
            yield waiting.popleft().result()
            position += 1
    except BrokenProcessPool as broken:
        raise WorkerDied(
            f"a worker process died at or after item {position} (killed, or out of memory?); "
            "use fewer workers or look into the system's log"
        ) from broken


def _context(function: Callable) -> BaseContext:
    """Forkserver where there is one: the function's module is imported once, and no thread or GPU state is forked."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    module = getattr(function, "func", function).__module__  # a partial's own module is functools
    if module != "__main__":
        context.set_forkserver_preload([module])
    return context


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle, a worker does not outlive its parent, and gives way to it: threads of a network
    there wait for each other, so that taking the core of one holds up all."""
    os.nice(19)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
