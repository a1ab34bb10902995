"""Seconds of each part of a training step, forward and backward; needs torch alone."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import measuring
import torch
from torch import Tensor

_clock: "Clock | None" = None


class Clock:
    """Seconds of each part of a step, a part inside another not counted twice."""

    def __init__(self, device: torch.device):
        self.device, self.spent, self.open = device, {}, []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        measuring.synchronize(self.device)
        start = time.perf_counter()
        self.open.append(0.0)
        try:
            yield
        finally:
            measuring.synchronize(self.device)
            whole = time.perf_counter() - start
            self.spent[name] = self.spent.get(name, 0.0) + whole - self.open.pop()
            if self.open:
                self.open[-1] += whole


@contextmanager
def part(name: str) -> Iterator[None]:
    """Time what is inside under `name`, if a clock runs."""
    if _clock is None:
        yield
        return
    with _clock.part(name):
        yield


class _Timed(torch.autograd.Function):
    """A call whose forward and backward passes are parts of their own: it records its own graph inside.

    start: any scalar that needs a gradient, so that the result has one where only parameters inside the call want it.
    """

    @staticmethod
    def forward(ctx, start, names, call, *arguments):
        leaves = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in arguments]
        with torch.enable_grad(), part(names[0]):
            results = call(*leaves)
        ctx.set_materialize_grads(False)
        ctx.name, ctx.leaves = names[1], leaves
        ctx.results = results if isinstance(results, tuple) else (results,)
        outside = tuple(x.detach() if isinstance(x, Tensor) else x for x in ctx.results)
        return outside if isinstance(results, tuple) else outside[0]

    @staticmethod
    def backward(ctx, *grads):
        wanted = [(x, grad) for x, grad in zip(ctx.results, grads, strict=True) if grad is not None]
        with part(ctx.name):
            if wanted:
                torch.autograd.backward(*zip(*wanted, strict=True))
        return None, None, None, *[x.grad if isinstance(x, Tensor) else None for x in ctx.leaves]


def timed(call: Callable, forward: str, backward: str | None = None) -> Callable:
    """`call` as a part named `forward`; its backward pass, where it has one, as `backward` or the same."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        learns = backward or any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
        if not (learns and torch.is_grad_enabled()):
            with part(forward):
                return call(*arguments, **keywords)
        start = torch.zeros((), requires_grad=True)
        return _Timed.apply(start, (forward, backward or forward), partial(call, **keywords), *arguments)

    return run


@contextmanager
def running(clock: Clock) -> Iterator[None]:
    """While open, `part` and `timed` write to the clock."""
    global _clock
    _clock = clock
    try:
        yield
    finally:
        _clock = None
