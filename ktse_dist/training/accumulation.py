"""One training step, whole or in chunks that fit the memory (gradient accumulation)."""

import torch
from torch import Tensor

from ktse_dist.config import Config
from ktse_dist.method.batch import Batch
from ktse_dist.method.losses import sum_over_ranks
from ktse_dist.training.engine import Engine


def train_step(engine: Engine, batch: Batch, phase: int, config: Config, world: int) -> dict[str, Tensor]:
    """Forward, backward, update. Returns the losses without gradient, the same ones however the batch is cut.

    A chunk's losses are shares of the global batch's. What they are shares of is known beforehand, except how many
    pixels the pseudo-labels of all chunks have: for that one pass without gradient goes ahead, with the same noise.
    """
    chunks = batch.chunks(config.train.micro_batch, world)
    known = {}
    if len(chunks) > 1 and phase == 2 and config.method.ssr:
        known = {"counts": count_pixels(engine, chunks, phase)}
    found: dict[str, Tensor] = {}
    for chunk in chunks[:-1]:
        with engine.accumulating():
            losses = engine(chunk, phase=phase, **known)
            engine.backward(losses["total"])
        found = added(found, losses)
    losses = engine(chunks[-1], phase=phase, **known)
    engine.update(losses["total"])
    return added(found, losses)


@torch.no_grad()
def count_pixels(engine: Engine, chunks: list[Batch], phase: int) -> Tensor:
    """float [6]: what the pixel losses of the global batch average over (method/ktse.py)."""
    found = [engine(chunk, phase=phase, counting=True)["counts"] for chunk in chunks]
    return sum_over_ranks(torch.stack(found).sum(dim=0))


def added(found: dict[str, Tensor], losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums by name; a chunk without pairs lacks the losses that look at them."""
    return found | {name: found.get(name, 0) + loss.detach() for name, loss in losses.items()}
