"""CAMs of a picture over scales and flips (docs/method.md 2; tests/golden/README.md section 11)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktse_dist.data.augment import Resize, resize_picture

SCALES = (0.5, 1.0, 1.5, 2.0)
PRESENT = 1e-5  # a label above this is a tag
COARSE, ROUNDED = 4, 16  # pixels


@dataclass(frozen=True)
class CamNetwork:
    """What inference needs to know of a network.

    forward: normalised images [B,3,H,W] (fp32, on `device`) -> (signed CAM [B,C,h,w], class logits [B,C]).
    mean, std: 3 floats each, in pixel units 0..255.    bf16: run `forward` under bf16 autocast.
    """

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device | str = "cpu"
    bf16: bool = False


class PictureCams(NamedTuple):
    """One picture's result: tagged classes (ascending), their CAMs (peak just under 1), mean logits of all classes."""

    keys: np.ndarray  # int64 [n]
    cams: np.ndarray  # float32 [n,H,W]
    scores: np.ndarray  # float32 [C]


def network_of(
    backbone: nn.Module, head: nn.Module, device: torch.device | str = "cpu", bf16: bool = False
) -> CamNetwork:
    """Our backbone and CAM head as one CamNetwork; puts both in evaluation mode."""
    backbone.eval()
    head.eval()

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        cam = head(backbone(images))[:, 1:]
        return cam, head.gates(cam)[1]

    return CamNetwork(forward, backbone.mean, backbone.std, device, bf16)


def multiscale_cam(
    network: CamNetwork,
    rgb: np.ndarray,
    labels: np.ndarray,
    scales: Sequence[float] = SCALES,
    resize: Resize = "pillow",
) -> PictureCams:
    """CAMs of one picture: rgb uint8 [H,W,3], labels [C] (image-level tags, 0 or 1)."""
    return multiscale_cams(network, rgb[None], labels[None], scales, resize)[0]


def multiscale_cams(
    network: CamNetwork,
    rgb: np.ndarray,
    labels: np.ndarray,
    scales: Sequence[float] = SCALES,
    resize: Resize = "pillow",
) -> list[PictureCams]:
    """CAMs of B pictures of one size: rgb uint8 [B,H,W,3], labels [B,C].

    Each scale is one pass over the B pictures and their B mirror images. Only tagged classes are upsampled, to HxW,
    before the relu and the sum over views. resize: `pillow` is the published bicubic; `opencv` is faster, other pixels.
    """
    return look(network, rgb, scales, resize).cams(labels)


@dataclass(frozen=True)
class Looks:
    """What a network saw in B pictures of one size, before anybody said which classes are wanted.

    views: for each scale the signed CAMs [2B,C,h,w] of the pictures and then of their mirror images.
    scores: mean logits over scales and flips, float32 [B,C].    size: (height, width) of the pictures.
    """

    views: list[Tensor]
    scores: np.ndarray
    size: tuple[int, int]

    @torch.inference_mode()
    def cams(self, labels: np.ndarray) -> list[PictureCams]:
        """The CAMs of the tagged classes: labels [B,C], above PRESENT for a tag."""
        picture, tag = np.nonzero(labels > PRESENT)
        total = torch.zeros(len(tag), *self.size, device=self.views[0].device)
        for view in self.views:
            total += _both_ways(view, picture, tag, self.size)
        return self._pictures(total, picture, tag)


    def coarse_cams(self, labels: np.ndarray) -> list[PictureCams]:
        """As IRN's random walk takes them (`_summed`): one pixel for COARSE of the picture, rounded up."""
        return self._summed(labels, [-(-side // COARSE) for side in self.size])

    def label_cams(self, labels: np.ndarray) -> list[PictureCams]:
        """As IRN's labels are made of (`_summed`): at the picture's size, with the sides rounded up in between."""
        return self._summed(labels, [-(-side // ROUNDED) * ROUNDED for side in self.size])

    @torch.inference_mode()
    def _summed(self, labels: np.ndarray, size: Sequence[int]) -> list[PictureCams]:
        """Views are added to their mirror images before the relu, and only then enlarged; cut to the picture."""
        picture, tag = np.nonzero(labels > PRESENT)
        total = torch.zeros(len(tag), *size, device=self.views[0].device)
        for view in self.views if len(tag) else ():
            straight, mirrored = view.unflatten(0, (2, -1))[:, picture, tag]
            joined = (straight + mirrored.flip(-1)).relu()
            total += F.interpolate(joined[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
        return self._pictures(total[:, : self.size[0], : self.size[1]], picture, tag)

    def _pictures(self, total: Tensor, picture: np.ndarray, tag: np.ndarray) -> list[PictureCams]:
        """Each of the (picture, tag) planes over its peak, by picture."""
        cams = (total / (total.amax((1, 2), keepdim=True) + 1e-5)).cpu().numpy()
        return [PictureCams(tag[picture == b], cams[picture == b], self.scores[b]) for b in range(len(self.scores))]


@torch.inference_mode()
def look(network: CamNetwork, rgb: np.ndarray, scales: Sequence[float], resize: Resize) -> Looks:
    """One network pass a scale over B pictures of one size and their mirror images: rgb uint8 [B,H,W,3]."""
    views, logits = [], []
    for scale in scales:
        images = normalise(_resized(rgb, scale, resize), network)
        cam, scores = _forward(network, torch.cat([images, images.flip(3)]))
        views.append(cam)
        logits.append(scores.unflatten(0, (2, -1)).sum(0))
    return Looks(views, (sum(logits) / (2 * len(scales))).cpu().numpy(), rgb.shape[1:3])


def normalise(rgb: np.ndarray, network: CamNetwork) -> Tensor:
    """rgb uint8 [B,H,W,3] -> float32 [B,3,H,W] on the network's device, channels-last in memory."""
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).to(network.device).permute(0, 3, 1, 2).float()
    mean, std = (pixels.new_tensor(list(values))[:, None, None] for values in (network.mean, network.std))
    return (pixels - mean) / std


def _forward(network: CamNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=network.bf16):
        cam, logits = network.forward(images)
    return cam.float(), logits.float()


def _both_ways(cam: Tensor, picture: np.ndarray, tag: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Sum over view and mirrored view of relu(up(CAM)) for each (picture, tag): cam [2B,C,h,w] -> [pairs,H,W]."""
    if len(tag) == 0:
        return cam.new_zeros(0, *size)
    both = cam.unflatten(0, (2, -1))[:, picture, tag]
    straight, mirrored = F.interpolate(both, size=size, mode="bilinear", align_corners=False).relu()
    return straight + mirrored.flip(-1)


def _resized(rgb: np.ndarray, scale: float, resize: Resize) -> np.ndarray:
    height, width = (round(side * scale) for side in rgb.shape[1:3])
    if (height, width) == rgb.shape[1:3]:
        return rgb
    return np.stack([resize_picture(picture, height, width, resize) for picture in rgb])
