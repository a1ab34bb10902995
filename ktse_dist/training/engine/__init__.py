"""Three engines behind one interface: who averages the gradients, and where weights and momentum live.

All train fp32 weights with torch.optim.SGD and average gradients over the ranks (the caller scales its loss so that
the mean is right); there is no clipping. Mixed precision is the module's own torch.autocast inside `forward`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ktse_dist.config.training import Engine as EngineConfig
from ktse_dist.errors import UserError
from ktse_dist.training.engine.host_copies import fresh_copy

Copy = Callable[[str, Tensor], Tensor]


class Engine(Protocol):
    """One training step is one call, one `update`; every rank makes the same calls in the same order.

    A step in parts is `with accumulating()`: a call and `backward`, for all parts but the last, then as above.
    """

    @property
    def groups(self) -> list[dict]:
        """The optimiser's groups: set "lr" and "momentum" in them before every update."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's forward returns."""

    def accumulating(self) -> AbstractContextManager:
        """Around the call and `backward` of a part: its gradients wait for the next `update`.

        Ranks exchange nothing meanwhile, except under ZeRO 2 and 3: they keep gradients only in shares, which are
        summed over ranks part by part.
        """

    def backward(self, loss: Tensor) -> None:
        """Backward pass from the scalar `loss` of a part."""

    def update(self, loss: Tensor) -> None:
        """Backward pass from the scalar `loss`, mean of the gradients over ranks, SGD step, gradients dropped."""

    def state(self, copy: Copy = fresh_copy) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Full weights (names of `module.state_dict()`) and momentum (names of trainable parameters), on the CPU.

        copy: makes a CPU tensor of a name, unique among both, and a tensor.
        Collective: every rank calls it. Rank 0 gets the tensors, the others two empty dicts. The result depends
        neither on the engine nor on the number of ranks.
        """

    def load(self, weights: dict[str, Tensor], momentum: dict[str, Tensor]) -> None:
        """Put such a state back. Collective; every rank passes the full dicts. Absent momentum becomes zero.

        Raises UserError when names or shapes are not this network's.
        """


def build_engine(config: EngineConfig, module: nn.Module, groups: list[dict], device: torch.device) -> Engine:
    """The engine that `config.name` asks for: torch (one process), ddp, or deepspeed with ZeRO stage `config.zero`.

    groups: as optim.parameter_groups gives them (trainable parameters only). ddp and deepspeed need a started process
    group. The module belongs to the engine from here on: under ZeRO 3 its parameters are empty outside of forward.
    """
    started = dist.is_available() and dist.is_initialized()
    workers = dist.get_world_size() if started else 1
    if config.name == "torch":
        if workers > 1:
            raise UserError(f"engine.name: 'torch' is for one process, {workers} were started; use ddp or deepspeed")
        from ktse_dist.training.engine.replicated import TorchEngine

        return TorchEngine(module, groups, device)
    if not started:
        raise UserError(f"engine.name: '{config.name}' needs Ray workers and there are none; use engine.name=torch")
    if config.name == "ddp":
        from ktse_dist.training.engine.replicated import DdpEngine

        return DdpEngine(module, groups, device)
    from ktse_dist.training.engine.zero import ZeroEngine

    return ZeroEngine(module, groups, device, config.zero)
