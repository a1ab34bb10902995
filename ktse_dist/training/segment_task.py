"""Stage 2 as a task of the loop: segmentation networks that learn from mask shards (docs/method.md 4)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ktse_dist.config import Config
from ktse_dist.data.index import Index
from ktse_dist.data.mask_settings import masks_command
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.data.masked import masked
from ktse_dist.data.stream import Plan, stream
from ktse_dist.errors import UserError
from ktse_dist.method.batch import MaskedBatch
from ktse_dist.method.cotrain import CoTraining
from ktse_dist.models import build_deeplab
from ktse_dist.models.recompute import recompute_blocks
from ktse_dist.models.segmenter import save_segmenter
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.export import published


@dataclass(frozen=True)
class SegmentTask:
    """masks: the folder with the mask shards of the first `count` training pictures (None: of all)."""

    room: ClassVar[str] = (
        "lower train.batch or data.crop (and delete RUN/segment, if it has a checkpoint), or take more workers"
    )
    masks: Path
    count: int | None

    def pictures(self, index: Index) -> Index:
        known, found = index.first(self.count), MaskIndex(self.masks, index)
        missing = next((row for row in range(len(known)) if not found.has(row)), None)
        if missing is not None:
            raise UserError(f"{self.masks}: no mask of '{index.key(missing)}'; make it: {masks_command(self.masks)}")
        return known

    def module(self, config: Config, index: Index) -> nn.Module:
        networks = [build_deeplab(config.model, len(index.classes)) for _ in range(config.segment.networks)]
        for network in networks:
            if config.train.recompute:
                recompute_blocks(network.backbone)
            if config.train.compile:
                network.backbone.compile(dynamic=False)
        return CoTraining(networks, config.segment, config.train.precision)

    def groups(self, module: nn.Module, config: Config) -> list[dict]:
        """One rate and decay for all, as published; `head` marks where optimiser.phaseN.head_rate applies."""
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        groups = []
        for head in (False, True):
            members = [(name, parameter) for name, parameter in named if (".aspp." in name) == head]
            names, params = zip(*members, strict=True)
            rest = {"rate": 1.0, "head": head, "weight_decay": config.optimiser.weight_decay}
            groups.append({"params": list(params), "names": list(names)} | rest)
        return groups

    def pairs(self, config: Config, phase: int, batch_size: int) -> int:
        return 0  # partners are in the batch itself

    def batches(self, config: Config, index: Index, plan: Plan) -> Iterator[MaskedBatch]:
        making = masked(index, config.data, config.segment, config.run.seed, plan, self.masks)
        return stream(index, config.data, config.run.seed, plan, making)

    def rate_key(self, phase: int) -> str:
        return f"optimiser.phase{phase}.lr"

    def export(self, folder: RunFolder, weights: dict[str, Tensor], config: Config, index: Index) -> None:
        def save(path: Path, made: dict[str, str]) -> None:
            save_segmenter(path, weights, config.model, index.classes, made)

        with published(folder, index, save):
            pass  # it has no card of its own
