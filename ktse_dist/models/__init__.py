"""The networks: a backbone that sees, a head that makes class activation maps of what it saw."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ktse_dist.config import Network
from ktse_dist.errors import UserError
from ktse_dist.models.cam_head import CamHead
from ktse_dist.models.efficientnet_lite import EfficientNetLite0, imagenet_state
from ktse_dist.models.resnet38d import ResNet38d


def build(network: Network, classes: int, load_weights: bool = True) -> tuple[nn.Module, CamHead]:
    """Backbone with the weights that `network.weights` asks for, and a new head for `classes` classes.

    The backbone maps (images [B,3,H,W], keys=None) to features and has `channels`, `stride`, `mean`, `std` (the last
    two in pixel units, 0 to 255). load_weights=False leaves it random: to describe it, or to load a checkpoint.
    The head is drawn from torch's global generator. Raises UserError for weights that cannot be had or do not fit.
    """
    if not load_weights or network.weights == "none":
        backbone = new_backbone(network)
    else:
        state = _pretrained(network)
        with torch.device("meta"):
            backbone = new_backbone(network)
        backbone.load_state_dict(state, assign=True)
    return backbone, CamHead(backbone.channels, classes)


def new_backbone(network: Network) -> nn.Module:
    """The backbone with random weights."""
    return ResNet38d() if network.backbone == "resnet38d" else EfficientNetLite0(network.output_stride)


def _pretrained(network: Network) -> dict[str, Tensor]:
    from ktse_dist.models.weights import load_backbone  # weights.py itself builds networks

    if isinstance(network.weights, Path):
        return load_backbone(network.weights, network)
    if network.backbone == "resnet38d":
        raise UserError(
            "model.weights: 'imagenet' comes with efficientnet_lite0 only; for resnet38d name a .safetensors file, "
            "or set model.weights=none to start from random weights"
        )
    return imagenet_state()
