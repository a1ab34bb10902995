"""Engines that hold the whole network in every process: plain PyTorch, and DistributedDataParallel."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ktse_dist.training.engine import Copy
from ktse_dist.training.engine.host_copies import fresh_copy
from ktse_dist.training.engine.layout import Layout


class TorchEngine:
    """One process without torch.distributed: for one GPU, laptops, notebooks and debugging."""

    def __init__(self, module: nn.Module, groups: list[dict], device: torch.device) -> None:
        self.module = module.to(device)
        self.forward: nn.Module = self.module
        self.layout = Layout(module)
        self.optimizer = torch.optim.SGD(groups, lr=0.0)
        # A buffer of zeros makes SGD's first step the same as no buffer, and gives load() a place to write to.
        for parameter in self.layout.trainable.values():
            self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @property
    def groups(self) -> list[dict]:
        return self.optimizer.param_groups

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def accumulating(self) -> AbstractContextManager:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self, loss: Tensor) -> None:
        self.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self, copy: Copy = fresh_copy) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights = {name: copy(name, tensor) for name, tensor in self.module.state_dict().items()}
        return weights, {name: copy(f"momentum of {name}", self._momentum(name)) for name in self.layout.trainable}

    def load(self, weights: dict[str, Tensor], momentum: dict[str, Tensor]) -> None:
        self.layout.check(weights, momentum)
        self.module.load_state_dict(weights)
        for name in self.layout.trainable:
            if name in momentum:
                self._momentum(name).copy_(momentum[name])
            else:
                self._momentum(name).zero_()

    def _momentum(self, name: str) -> Tensor:
        return self.optimizer.state[self.layout.trainable[name]]["momentum_buffer"]


class DdpEngine(TorchEngine):
    """The same in every rank, with gradients averaged by DistributedDataParallel.

    Every trainable parameter must get a gradient in every update; the classification loss reaches all of them. Then
    DDP need not search the graph for unused ones, and a parameter that was left out is an error instead of a slow hang.
    """

    def __init__(self, module: nn.Module, groups: list[dict], device: torch.device) -> None:
        super().__init__(module, groups, device)
        with warnings.catch_warnings():  # torch 2.13 renames broadcast_buffers; 2.11 knows no other name
            warnings.simplefilter("ignore", FutureWarning)
            # BatchNorm statistics never change, or the module keeps them equal (method/cotrain.py): none to broadcast.
            self.forward = DistributedDataParallel(self.module, broadcast_buffers=False, gradient_as_bucket_view=True)

    def accumulating(self) -> AbstractContextManager:
        return self.forward.no_sync()

    def state(self, copy: Copy = fresh_copy) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return super().state(copy) if dist.get_rank() == 0 else ({}, {})
