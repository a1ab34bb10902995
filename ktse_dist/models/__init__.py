"""The networks: a backbone that sees, a head that makes class activation maps of what it saw."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ktse_dist.config.method import Network
from ktse_dist.errors import UserError
from ktse_dist.models.cam_head import CamHead
from ktse_dist.models.deeplab import DeepLab
from ktse_dist.models.efficientnet_lite import EfficientNetLite0, imagenet_state
from ktse_dist.models.resnet import ResNet
from ktse_dist.models.resnet38d import ResNet38d

if TYPE_CHECKING:
    from ktse_dist.models.weights import Start

IMAGENET_FILES = {  # what people convert for model.weights
    "resnet38d": "the A1 .params file (ilsvrc-cls_rna-a1_cls1000_ep-0001.params)",
    "resnet50": "torchvision's resnet50-*.pth",
    "resnet101": "torchvision's resnet101-*.pth",
}


def build(
    network: Network, classes: int, load_weights: bool = True, names: Sequence[str] = ()
) -> tuple[nn.Module, CamHead]:
    """Backbone with the weights that `network.weights` asks for, and a head for `classes` classes.

    The backbone maps (images [B,3,H,W], keys=None) to features and has `channels`, `stride`, `mean`, `std` (the last
    two in pixel units, 0 to 255). load_weights=False leaves it random: to describe it, or to load a checkpoint.
    The head is drawn from torch's global generator; a file whose head is for exactly the classes `names` keeps it.
    Raises UserError for weights that cannot be had or do not fit.
    """
    if not load_weights or network.weights == "none":
        backbone = new_backbone(network)
        return backbone, CamHead(backbone.channels, classes)
    start = pretrained(network, names)
    with torch.device("meta"):
        backbone = new_backbone(network)
    backbone.load_state_dict(start.backbone, assign=True)
    head = CamHead(backbone.channels, classes)
    if start.head:
        head.load_state_dict(start.head)
    return backbone, head


def build_deeplab(network: Network, classes: int, load_weights: bool = True) -> DeepLab:
    """DeepLabV2 with the backbone that `network.weights` asks for and a head drawn from torch's global generator.

    Of a file with a CAM head the backbone alone is taken. Raises UserError as `build` does.
    """
    centred = network.backbone == "efficientnet_lite0"
    if not load_weights or network.weights == "none":
        return DeepLab(new_backbone(network, trained=True), classes, centred)
    start = pretrained(network)
    with torch.device("meta"):
        backbone = new_backbone(network, trained=True)
    backbone.load_state_dict(start.backbone, assign=True)
    return DeepLab(backbone, classes, centred)


def new_backbone(network: Network, trained: bool = False) -> nn.Module:
    """The backbone with random weights. trained: a ResNet's batch norms and first layers, too."""
    match network.backbone:
        case "resnet38d":
            return ResNet38d()
        case "resnet50" | "resnet101" as name:
            return ResNet(int(name.removeprefix("resnet")), network.output_stride, trained=trained)
        case _:
            return EfficientNetLite0(network.output_stride)


def starting_point(network: Network, names: Sequence[str]) -> str:
    """What `network.weights` means for a run of the classes `names`, for people. UserError if it cannot be had."""
    return "random, and a new head" if network.weights == "none" else pretrained(network, names).why


def pretrained(network: Network, names: Sequence[str] = ()) -> "Start":
    """What `network.weights`, a file or `imagenet`, gives to a run of the classes `names`. Raises UserError."""
    from ktse_dist.models.weights import CONVERT, Start, load_start  # weights.py itself builds networks

    if isinstance(network.weights, Path):
        return load_start(network.weights, network, names)
    if network.backbone in IMAGENET_FILES:
        raise UserError(
            f"model.weights: 'imagenet' comes with efficientnet_lite0 only; for {network.backbone} convert "
            f"{IMAGENET_FILES[network.backbone]} with `{CONVERT}` and set model.weights=OUT.safetensors, "
            "or set model.weights=none to start from random weights"
        )
    return Start(imagenet_state(), None, "ImageNet's, and a new head")
