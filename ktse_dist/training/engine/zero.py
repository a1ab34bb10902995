"""DeepSpeed ZeRO 1, 2 and 3 with our SGD and our own, layout-free state. The only import of deepspeed.

Settings are zero1.json, zero2.json and zero3.json beside this file, ordinary DeepSpeed configurations. Bucket sizes in
them are elements: DeepSpeed's default of 5e8 would be a 2 GB buffer for a network of 0.4 GB. The micro-batch size there
only feeds DeepSpeed's sample counter.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ktse_dist.training.engine import Copy
from ktse_dist.training.engine.host_copies import fresh_copy
from ktse_dist.training.engine.layout import Layout

MOMENTUM = "momentum_buffer"


class ZeroEngine:
    """Optimiser state (ZeRO 1), gradients (2) and weights (3) split over the ranks.

    The module opens torch.autocast inside its forward: DeepSpeed switches off one that is opened outside of it. Under
    ZeRO 3 a parameter is whole only while its own module's forward runs.
    """

    def __init__(self, module: nn.Module, groups: list[dict], device: torch.device, stage: int) -> None:
        self.deepspeed = _start(device)
        self.stage = stage
        self.module = module.to(device=device, memory_format=torch.contiguous_format)  # all that DeepSpeed can view
        self.layout = Layout(module)
        settings = json.loads(files(__package__).joinpath(f"zero{stage}.json").read_text())
        self.sgd = torch.optim.SGD(groups, lr=0.0)
        self.engine, self.zero, _, _ = self.deepspeed.initialize(
            model=self.module, optimizer=self.sgd, config=settings, dist_init_required=False
        )
        self._allocate_momentum()

    @property
    def groups(self) -> list[dict]:
        return self.sgd.param_groups

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(False)
        yield
        self.engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def update(self, loss: Tensor) -> None:
        """Raises FloatingPointError for gradients that are not finite: DeepSpeed skips such a step without a word."""
        self.backward(loss)
        self.engine.step()
        if not self.engine.was_step_applied():
            raise FloatingPointError("gradients are not finite, so DeepSpeed skipped the update")

    def state(self, copy: Copy = fresh_copy) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        first, get = dist.get_rank() == 0, self.deepspeed.utils.safe_get_full_optimizer_state
        weights, momentum = {}, {}
        for name, buffer in self._buffers():
            if first:
                weights[name] = copy(name, buffer)
        for name, parameter in self.module.named_parameters():
            with self.deepspeed.zero.GatheredParameters([parameter]):
                if first:
                    weights[name] = copy(name, parameter)
        for name, parameter in self.layout.trainable.items():
            whole = get(parameter, MOMENTUM)
            if first:
                momentum[name] = copy(f"momentum of {name}", whole)
        return {name: weights[name] for name in self.layout.shapes if first}, momentum

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], momentum: dict[str, Tensor]) -> None:
        self.layout.check(weights, momentum)
        for name, buffer in self._buffers():
            buffer.copy_(weights[name])
        for name, parameter in self.module.named_parameters():
            with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(weights[name])
        self.zero.refresh_fp32_params()
        for name, parameter in self.layout.trainable.items():
            self._set_momentum(parameter, momentum.get(name, torch.zeros(self.layout.shapes[name])))

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """Those that a state dict holds; ZeRO leaves them whole on every rank."""
        return [(name, buffer) for name, buffer in self.module.named_buffers() if name in self.layout.shapes]

    def _allocate_momentum(self) -> None:
        """Zeros where SGD would make its buffers in the first step: the same result, and load() can write there."""
        flats = self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
        for flat in flats:
            self.sgd.state[flat][MOMENTUM] = torch.zeros_like(flat, requires_grad=False)
        if self.stage < 3:
            self.zero._lazy_init_hp_params_optimizer_state()  # DeepSpeed itself links them after the first step only

    def _set_momentum(self, parameter: nn.Parameter, value: Tensor) -> None:
        utils = self.deepspeed.utils
        if self.stage < 3:
            utils.safe_set_full_optimizer_state(parameter, value, MOMENTUM)
            return
        # safe_set_full_optimizer_state fails for ZeRO 3 when the ranks do not divide the size: it does not pad.
        share = utils.safe_get_local_optimizer_state(parameter, MOMENTUM).numel()
        padded = nn.functional.pad(value.flatten(), (0, share * dist.get_world_size() - value.numel()))
        utils.safe_set_local_optimizer_state(parameter, padded.narrow(0, share * dist.get_rank(), share), MOMENTUM)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether DeepSpeed's line is for the user: that SGD is not on its list of optimisers is ours to test."""
    return "untested optimizer" not in record.getMessage()


def _start(device: torch.device) -> ModuleType:
    """Import DeepSpeed for this kind of device and put it on top of the process group that is already there."""
    os.environ["DS_ACCELERATOR"] = device.type
    # DeepSpeed reads there which GPU is meant, and wants to find a number for a CPU too.
    os.environ["LOCAL_RANK"] = os.environ.get("LOCAL_RANK", "0") if device.index is None else str(device.index)
    import deepspeed
    from deepspeed.utils import logger
    from deepspeed.utils.logging import set_log_level_from_string

    set_log_level_from_string("warning")
    logger.addFilter(_is_news)
    # DeepSpeed still calls both by the names that torch 2.13 gave up, and torch would say so at every call.
    warnings.filterwarnings("ignore", r"`torch.distributed.(reduce_scatter|all_gather_into)_tensor` is deprecated")
    # Its shared-memory all-reduce for one machine is C++ that it compiles for 100 s; gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    return deepspeed
