"""A chain of launches recorded once as a CUDA graph and then started by a single call."""

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

KEPT = 6  # combinations of shapes, types and options that a thread remembers


def replayed(function: Callable[..., Tensor], *tensors: Tensor, **options) -> Tensor:
    """function(*copies of tensors, **options), as a CUDA graph where that is possible.

    The copies are contiguous, and `function` may overwrite them. It must not wait for the device, and whatever else it
    reads must stay where it is. The result may lie in memory that the next call overwrites: copy what should last.
    A combination of shapes, types, options and stream that comes again is recorded, which waits for the device once.
    Started plainly on a CPU, for the first time, and while the caller records a graph; a caller who does that has run
    its own work once before, so that Triton has compiled the kernels and constants have reached the device.
    """
    device = tensors[0].device
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return function(*_copies(tensors), **options)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream  # two streams must not share memory
        return _own.call(function, tensors, options, (device.index, stream))


def forget() -> None:
    """Drop this thread's recordings and the memory that they hold."""
    _own.kept.clear()


class Recording:
    """One function at fixed shapes: a graph, the memory that it reads and the memory that it leaves its result in."""

    def __init__(self, function: Callable[..., Tensor], tensors: tuple[Tensor, ...], options: dict, pool: object):
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        self.graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(False), torch.no_grad():  # a later call may be outside of the caller's mode
            self.inputs = _copies(tensors)
            side.wait_stream(current)
            torch.cuda.synchronize()
            with torch.cuda.stream(side):
                # thread_local: threads that prefetch batches or watch NCCL go on meanwhile
                self.graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    self.result = function(*self.inputs, **options)
                finally:
                    self.graph.capture_end()
        current.wait_stream(side)

    def replay(self, tensors: tuple[Tensor, ...]) -> Tensor:
        for own, tensor in zip(self.inputs, tensors, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return self.result


class Recordings(threading.local):
    """Those of one thread: what another replays could overwrite a result before it is copied."""

    def __init__(self, record: Callable[..., Recording] = Recording, new_pool: Callable[[], object] | None = None):
        self.kept: OrderedDict[tuple, Recording | None] = OrderedDict()
        self.pools: dict[tuple, object] = {}
        self._record, self._new_pool = record, new_pool or torch.cuda.graph_pool_handle

    def call(self, function: Callable[..., Tensor], tensors: tuple[Tensor, ...], options: dict, place: tuple) -> Tensor:
        """place: device and stream. Recordings of one place follow each other, so that they share their memory."""
        about = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        key = (function, about, tuple(sorted(options.items())), place)
        if key not in self.kept:  # perhaps the last picture of this size: a recording must pay
            self._keep(key, None)
            return function(*_copies(tensors), **options)
        recording = self.kept[key] or self._record(function, tensors, options, self._pool(place))
        self._keep(key, recording)
        return recording.replay(tensors)

    def _keep(self, key: tuple, recording: Recording | None) -> None:
        self.kept[key] = recording
        self.kept.move_to_end(key)
        if len(self.kept) > KEPT:
            self.kept.popitem(last=False)

    def _pool(self, place: tuple) -> object:
        if place not in self.pools:
            self.pools[place] = self._new_pool()
        return self.pools[place]


_own = Recordings()


def _copies(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor) for tensor in tensors]
