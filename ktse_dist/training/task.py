"""What the loop trains: a module, its batches, and what is left of it in the end. KTSE itself; irn.py has another."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from ktse_dist import models
from ktse_dist.config import Config
from ktse_dist.data.index import Index
from ktse_dist.data.stream import Plan, stream
from ktse_dist.method.ktse import KTSE
from ktse_dist.models.recompute import recompute_blocks
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.export import export
from ktse_dist.training.optim import parameter_groups


class Task(Protocol):
    """Goes to the workers with the job, so it can be pickled. How long and how fast is trained, the config says."""

    room: ClassVar[str]  # what a user may do where a step finds no room on the GPU

    def pictures(self, index: Index) -> Index:
        """Those of split train that are learned from."""

    def module(self, config: Config, index: Index) -> nn.Module:
        """`module(batch, phase=1)` returns losses by name, among them `total`: shares whose mean over ranks counts.

        What is random in it comes from torch's global generator.
        """

    def groups(self, module: nn.Module, config: Config) -> list[dict]:
        """As optim.parameter_groups gives them."""

    def pairs(self, config: Config, phase: int, batch_size: int) -> int:
        """How many pictures of the global batch have a partner that a loss looks at."""

    def batches(self, config: Config, index: Index, plan: Plan) -> Iterator[Any]:
        """One rank's batches of one epoch, as the module takes them; they are `Movable` and have chunks, `pictures`
        and `replaced` as Batch has."""

    def rate_key(self, phase: int) -> str:
        """The key of the learning rate, for the user."""

    def export(self, folder: RunFolder, weights: dict[str, Tensor], config: Config, index: Index) -> None:
        """Write folder.model from the module's state. Rank 0 alone is asked."""


@dataclass(frozen=True)
class KTSETask:
    """The main run: classification, then KTSE's losses."""

    room: ClassVar[str] = (
        "set train.micro_batch or train.recompute=true, or take more workers; the same command goes on from the last "
        "checkpoint"
    )

    def pictures(self, index: Index) -> Index:
        return index

    def module(self, config: Config, index: Index) -> nn.Module:
        backbone, head = models.build(config.model, len(index.classes), names=index.classes)
        if config.train.recompute:
            recompute_blocks(backbone)
        if config.train.compile:
            backbone.compile(dynamic=False)  # few shapes: a batch size for each phase and pass
        return KTSE(backbone, head, config.method, config.train.precision)

    def groups(self, module: nn.Module, config: Config) -> list[dict]:
        return parameter_groups(module, config.optimiser.weight_decay)

    def pairs(self, config: Config, phase: int, batch_size: int) -> int:
        if phase == 1 or not config.method.uses_pairs:
            return 0
        return min(batch_size, config.method.transfer.pairs or batch_size)

    def batches(self, config: Config, index: Index, plan: Plan) -> Iterator[Any]:
        return stream(index, config.data, config.run.seed, plan)

    def rate_key(self, phase: int) -> str:
        return f"optimiser.phase{phase}.lr"

    def export(self, folder: RunFolder, weights: dict[str, Tensor], config: Config, index: Index) -> None:
        export(folder, weights, config, index)


KTSE_TASK = KTSETask()
