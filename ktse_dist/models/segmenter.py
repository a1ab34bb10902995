"""The file of a segmentation network, or of two whose mean answer counts: safetensors that describe themselves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from ktse_dist.config.method import Network
from ktse_dist.errors import UserError
from ktse_dist.files import replacing
from ktse_dist.models import build_deeplab
from ktse_dist.models.deeplab import DeepLab
from ktse_dist.models.weights import FORMAT as CAM_FORMAT
from ktse_dist.models.weights import check_fit, load_safetensors, save_tensors

FORMAT = "ktse_dist segmentation 1"
MAX_NETWORKS = 2
MEND = "give RUN/segment/model.safetensors, which ktse segment --run RUN trains, or ktse export's NAME.onnx"


class Segmenter(NamedTuple):
    """logits[:, c + 1] is classes[c], logits[:, 0] the background."""

    networks: list[DeepLab]
    classes: list[str]


def save_segmenter(
    path: Path, state: Mapping[str, Tensor], network: Network, classes: Sequence[str], source: Mapping[str, str]
) -> None:
    """Write `networks.N.*` entries of a state dict, with all that `load_segmenter` needs; atomic.

    source: more metadata, about how it was made.
    """
    count = 1 + max(int(name.split(".")[1]) for name in state)
    about = {"format": FORMAT, "backbone": network.backbone, "output_stride": str(network.output_stride)}
    about |= {"networks": str(count), "classes": json.dumps(list(classes)), **source}
    with replacing(path) as unfinished:
        save_tensors({name: tensor.contiguous() for name, tensor in state.items()}, unfinished, about)


def load_segmenter(path: Path) -> Segmenter:
    """What `save_segmenter` wrote, on the CPU, in evaluation mode. Raises UserError for every other file."""
    tensors, about = load_safetensors(path, MEND)
    if about.get("format") != FORMAT:
        mend = f"give --run {path.parent}, or {MEND[5:]}" if about.get("format") == CAM_FORMAT else MEND
        raise UserError(f"{path}: not a segmentation network of this program; {mend}")
    try:
        network = Network(backbone=about.get("backbone"), output_stride=int(about.get("output_stride", "")))
        classes = TypeAdapter(list[str]).validate_json(about.get("classes", ""))
        count = int(about.get("networks", ""))
    except ValueError as error:  # pydantic's errors are ValueErrors too
        raise UserError(f"{path}: its metadata cannot be read ({' '.join(str(error).split())})") from None
    if not 1 <= count <= MAX_NETWORKS:
        raise UserError(f"{path}: its metadata claim {count} networks; allowed are 1 to {MAX_NETWORKS}")
    with torch.device("meta"):
        networks = nn.ModuleList([build_deeplab(network, len(classes), load_weights=False) for _ in range(count)])
        whole = nn.ModuleDict({"networks": networks})
    check_fit(path, tensors, whole.state_dict())
    whole.load_state_dict(tensors, assign=True)
    return Segmenter(list(whole.eval()["networks"]), classes)
