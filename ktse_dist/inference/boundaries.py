"""Where a refinement network sees class boundaries (docs/method.md 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ktse_dist.inference.multiscale import COARSE


@dataclass(frozen=True)
class BoundaryNetwork:
    """forward: normalised images [B,3,H,W] -> boundary logits [B,1,h,w], h = H/4 rounded up.

    least: pictures are padded to this side, which the network was trained at. mean, std, device, bf16 as in CamNetwork.
    """

    forward: Callable[[Tensor], Tensor]
    mean: Sequence[float]
    std: Sequence[float]
    least: int
    device: torch.device | str = "cpu"
    bf16: bool = False


def boundary_network_of(
    backbone: nn.Module, head: nn.Module, least: int, device: torch.device, bf16: bool
) -> BoundaryNetwork:
    """Our backbone and refinement head as one BoundaryNetwork; puts both in evaluation mode."""
    backbone.eval()
    head.eval()
    return BoundaryNetwork(
        lambda images: head.edge(backbone.stages(images)), backbone.mean, backbone.std, least, device, bf16
    )


@torch.inference_mode()
def boundaries(network: BoundaryNetwork, rgb: np.ndarray) -> np.ndarray:
    """Probability of a boundary in a picture and its mirror image: rgb uint8 [H,W,3] -> float32 [h,w]."""
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).to(network.device).permute(2, 0, 1).float()
    mean, std = (pixels.new_tensor(list(values))[:, None, None] for values in (network.mean, network.std))
    image = (pixels - mean) / std
    images = torch.stack([image, image.flip(2)])
    height, width = rgb.shape[:2]
    images = F.pad(images, (0, max(0, network.least - width), 0, max(0, network.least - height)))
    with torch.autocast(images.device.type, torch.bfloat16, enabled=network.bf16):
        logits = network.forward(images).float()
    straight, mirrored = logits[:, 0, : -(-height // COARSE), : -(-width // COARSE)]
    return torch.sigmoid((straight + mirrored.flip(-1)) / 2).cpu().numpy()
