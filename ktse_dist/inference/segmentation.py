"""Class probabilities of a picture from segmentation networks, over scales (docs/method.md 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktse_dist.models.deeplab import upsampled


class LogitNetwork(Protocol):
    """What `segmented` asks."""

    device: torch.device

    def normalised(self, rgb: np.ndarray) -> Tensor:
        """rgb uint8 [H,W,3] -> float32 [1,3,H,W], as `logits` takes it."""

    def logits(self, images: Tensor) -> Tensor:
        """[B,3,H,W] -> fp32 [B,K,h,w] at the network's stride."""


@dataclass(frozen=True)
class SegmentationNetwork:
    """Networks whose mean logits count, all on `device` and in evaluation mode."""

    networks: Sequence[nn.Module]
    device: torch.device
    bf16: bool = False

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Mean logits at the networks' stride: normalised images [B,3,H,W] -> fp32 [B,K,h,w]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return torch.stack([network(images).float() for network in self.networks]).mean(dim=0)

    def normalised(self, rgb: np.ndarray) -> Tensor:
        """rgb uint8 [H,W,3] -> float32 [1,3,H,W]."""
        pixels = torch.from_numpy(np.ascontiguousarray(rgb)).to(self.device).permute(2, 0, 1)[None].float()
        first = self.networks[0]
        mean, std = (pixels.new_tensor(list(values))[:, None, None] for values in (first.mean, first.std))
        return (pixels - mean) / std


class Seen(NamedTuple):
    """first uint8 [H,W]: labels at the picture's own scale; probabilities float32 [K,H,W] over all scales."""

    first: np.ndarray
    probabilities: np.ndarray


@torch.inference_mode()
def segmented(network: LogitNetwork, rgb: np.ndarray, scales: Sequence[float]) -> Seen:
    """What the networks say about rgb uint8 [H,W,3], as it is and at `scales`.

    Each look gives logits; every pixel of the small grid takes the highest of each class, as published.
    """
    images = network.normalised(rgb)
    best = network.logits(images)
    first = upsampled(best, rgb.shape[:2]).argmax(dim=1)[0]
    for scale in scales:
        size = [max(1, round(side * scale)) for side in rgb.shape[:2]]
        scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        best = torch.maximum(best, upsampled(network.logits(scaled), best.shape[2:]))
    probabilities = upsampled(best, rgb.shape[:2]).softmax(dim=1)[0]
    return Seen(first.to(torch.uint8).cpu().numpy(), probabilities.cpu().numpy())
