"""Activation checkpointing: memory for time."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(backbone: nn.Module) -> None:
    """Let every block keep its input alone, and compute the rest again when its gradient is due.

    The backbone names its kinds of blocks in `block_kinds`. Weights, names, results stay as they are: noise is keyed,
    so a second pass drops the same channels. About a third more arithmetic.
    """
    for block in backbone.modules():
        if isinstance(block, backbone.block_kinds):
            # "none": ZeRO 3 takes weights away between the passes, which would look like another shape
            again = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
            block.forward = partial(checkpoint, block.forward, **again)
