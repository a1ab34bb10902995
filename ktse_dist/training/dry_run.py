"""What a run would be, without running it: data, parameters, memory, steps."""

from pathlib import Path

import torch
from torch import nn

from ktse_dist import models
from ktse_dist.config import Config
from ktse_dist.data.index import Index
from ktse_dist.errors import UserError
from ktse_dist.training.checkpoint import Checkpoint
from ktse_dist.training.schedule import Schedule

GIGABYTE = 1e9
FP32 = 4  # bytes


def describe(config: Config, index: Index, schedule: Schedule, saved: Checkpoint | None) -> str:
    """Lines for people, from what a start found (job.prepare). UserError for weights that are there and do not fit.

    Memory is an estimate: weights, gradients, momentum and the activations kept for backward.
    """
    with torch.device("meta"):
        backbone, head = models.build(config.model, len(index.classes), load_weights=False)
    parameters = list(backbone.parameters()) + list(head.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    state = state_bytes(config, sum(p.numel() for p in parameters), trainable) / GIGABYTE
    activations = activation_bytes(backbone, head, config.data.crop) * pictures_in_flight(config) / GIGABYTE
    return "\n".join(
        [
            f"data: {len(index):,} training pictures, {len(index.classes)} classes, {index.place}",
            f"parameters: {sum(p.numel() for p in parameters):,}, of which {trainable:,} are trained",
            f"memory of each of {config.world} workers: about {state:.2f} GB for weights, gradients and momentum, "
            f"{activations:.2f} GB for activations",
            f"steps: {schedule.phase1_steps:,} of classification, "
            f"{schedule.total_steps - schedule.phase1_steps:,} of KTSE, {schedule.pictures_after(0):,} pictures in all",
            f"model.weights: {starting_point(config, index, saved)}",
        ]
    )


def starting_point(config: Config, index: Index, saved: Checkpoint | None) -> str:
    """What training would start from, or that it is not there yet: a dry run may come before the weights are made."""
    if saved:
        return f"not looked at, the run goes on from step {saved.state['step']:,}"
    weights = config.model.weights
    try:
        return models.starting_point(config.model, index.classes)
    except UserError as error:
        if not isinstance(weights, Path) or weights.exists():
            raise
        return f"not ready: {error}"


def state_bytes(config: Config, parameters: int, trainable: int) -> int:
    """Bytes of one worker: ZeRO 1 shards the momentum, 2 also the gradients, 3 also the weights."""
    stage = config.engine.zero if config.engine.name == "deepspeed" else 0
    shard = [config.world if stage >= needed else 1 for needed in (3, 2, 1)]
    return FP32 * (parameters // shard[0] + trainable // shard[1] + trainable // shard[2])


def pictures_in_flight(config: Config) -> float:
    """Pictures whose activations one worker holds at once in the costliest phase; a mixed picture counts twice."""
    method = config.method
    batch = max(size for _, size in config.train.batch)
    share, pairs = batch / config.world, min(batch, method.transfer.pairs or batch) / config.world
    at_once = min(share, config.train.micro_batch or share)
    pictures = at_once
    if config.train.epochs > config.train.phase1_epochs:
        pictures += at_once if method.mga else 0
        pictures += 3 * min(at_once, pairs) if method.uses_pairs else 0
    return pictures


def activation_bytes(backbone: nn.Module, head: nn.Module, crop: int) -> int:
    """Bytes that one picture's forward pass keeps for backward, counted on the meta device."""
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    image = torch.empty(1, 3, crop, crop, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = head(backbone(image))
    return sum(kept.values()) if output.requires_grad else 0
