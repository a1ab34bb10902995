"""A chain of launches recorded once as a CUDA graph and then started by a single call."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

KEPT = 6  # recordings of a process; each holds the memory that its function needs
_recordings: OrderedDict[tuple, "Recording"] = OrderedDict()


def replayed(function: Callable[..., Tensor], *tensors: Tensor, **options) -> Tensor:
    """function(*copies of tensors, **options), as a CUDA graph where that is possible.

    The copies are contiguous, and `function` may overwrite them. It must not wait for the device, and whatever else it
    reads must stay where it is. The result may lie in memory that the next call overwrites: copy what should last.
    A new combination of shapes, types, options and stream is recorded first, which waits for the device once. Started
    plainly on a CPU, and while the caller records a graph.
    """
    device = tensors[0].device
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return function(*_copies(tensors), **options)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream  # two streams must not share memory
        about = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        key = (function, about, tuple(sorted(options.items())), device.index, stream)
        recording = _recordings.pop(key, None) or Recording(function, tensors, options)
        _recordings[key] = recording
        if len(_recordings) > KEPT:
            _recordings.popitem(last=False)
        return recording.replay(tensors)


class Recording:
    """One function at fixed shapes: a graph, the memory that it reads and the memory that it leaves its result in."""

    def __init__(self, function: Callable[..., Tensor], tensors: tuple[Tensor, ...], options: dict):
        self.inputs = _copies(tensors)
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            function(*self.inputs, **options)  # Triton compiles and loads now: it cannot while a graph is recorded
        current.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: threads that prefetch batches or watch NCCL go on meanwhile
        with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
            self.result = function(*self.inputs, **options)

    def replay(self, tensors: tuple[Tensor, ...]) -> Tensor:
        for own, tensor in zip(self.inputs, tensors, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return self.result


def _copies(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor) for tensor in tensors]
