"""A training that has left the numbers: found before a checkpoint holds it."""

import math
from pathlib import Path

from torch import Tensor

from ktse_dist.errors import UserError

FRESH = "give a new run.name"  # how a run is trained anew with other settings


class Diverged(UserError):
    """The settings are at fault, and a new start from them would end alike."""


def check_loss(total: float, step: int, rate_key: str, last: Path | None, fresh: str) -> None:
    """total: a mean over ranks, so every rank answers alike; last: the newest checkpoint; fresh: as in Job."""
    if not math.isfinite(total):
        raise Diverged(
            f"{rate_key}: the loss is {total} at step {step}; {fresh} and lower it, or use train.precision=fp32. "
            f"The last checkpoint is {last or 'none'}"
        )


def check_weights(name: str, weights: dict[str, Tensor], fresh: str) -> None:
    """Of a checkpoint that is to be written. The logged loss may tell of them only later."""
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise Diverged(
            f"optimiser: weights of {name} are no finite numbers any more, so it was not written; {fresh} and lower "
            "the learning rates (optimiser.phase1.lr, optimiser.phase2.lr) or use train.precision=fp32"
        )
