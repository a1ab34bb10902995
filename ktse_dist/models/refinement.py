"""IRN's network as a whole: built, and as a file that says by itself what it holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ktse_dist.config.method import Network
from ktse_dist.errors import UserError
from ktse_dist.files import replacing
from ktse_dist.models import new_backbone, pretrained
from ktse_dist.models.refinement_head import RefinementHead
from ktse_dist.models.resnet import ResNet
from ktse_dist.models.weights import check_fit, load_safetensors, save_tensors

FORMAT = "ktse_dist refinement 1"


class Refinement(NamedTuple):
    """least: the side that pictures are padded to, that of a training crop."""

    backbone: nn.Module
    head: RefinementHead
    least: int


def build_refinement(network: Network) -> tuple[nn.Module, RefinementHead]:
    """Backbone with the weights that `network.weights` asks for, and a new head from torch's global generator.

    UserError for weights that cannot be had or do not fit.
    """
    backbone = irn_backbone(network)
    if network.weights != "none":
        backbone.load_state_dict(pretrained(network).backbone)
    return backbone, RefinementHead(backbone.stage_channels, backbone.stage_strides)


def irn_backbone(network: Network) -> nn.Module:
    """ResNet-50 without dilation, as published."""
    return ResNet(50, 16, dilate=False) if network.backbone == "resnet50" else new_backbone(network)


def save_refinement(path: Path, state: Mapping[str, Tensor], network: Network, least: int) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"format": FORMAT, "backbone": network.backbone, "least": str(least)}
    with replacing(path) as unfinished:
        save_tensors(tensors, unfinished, metadata)


def load_refinement(path: Path) -> Refinement:
    """The network that `save_refinement` wrote, on the CPU. UserError for every other file."""
    masks = path.parent.parent
    mend = f"delete it, if it is there, and one of {masks}/*.tar: the ktse masks command of the run makes both again"
    tensors, metadata = load_safetensors(path, mend)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a refinement network of this program; {mend}")
    model = empty(Network(backbone=metadata["backbone"]))
    check_fit(path, tensors, model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return Refinement(model["backbone"], model["head"], int(metadata["least"]))


def empty(network: Network) -> nn.ModuleDict:
    """The modules without numbers, under the names of IRN's state."""
    with torch.device("meta"):
        backbone = irn_backbone(network)
        head = RefinementHead(backbone.stage_channels, backbone.stage_strides)
    return nn.ModuleDict({"backbone": backbone, "head": head})
