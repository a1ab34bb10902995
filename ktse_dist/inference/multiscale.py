"""CAMs of a picture over scales and flips (docs/method.md 2; tests/golden/README.md section 11)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktse_dist.data.augment import Resize, resize_picture
from ktse_dist.inference.tiles import tiled
from ktse_dist.memory import trim

PRESENT = 1e-5  # a label above this is a tag
COARSE, ROUNDED = 4, 16  # pixels
AT_ONCE = 8_000_000  # pixels of CAMs that are enlarged together


@dataclass(frozen=True)
class CamNetwork:
    """What inference needs to know of a network.

    cam: normalised images [B,3,H,W] (fp32, on `device`) -> signed CAM [B,C,h,w].    scores: of that, logits [B,C].
    stride: pixels of a cell of the CAM.    mean, std: 3 floats each, in pixel units 0..255.
    bf16: run both under bf16 autocast.
    """

    cam: Callable[[Tensor], Tensor]
    scores: Callable[[Tensor], Tensor]
    stride: int
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

    def cam(images: Tensor) -> Tensor:
        return head(backbone(images))[:, 1:]

    def scores(cam: Tensor) -> Tensor:
        return head.gates(cam)[1]

    return CamNetwork(cam, scores, backbone.stride, backbone.mean, backbone.std, device, bf16)


@dataclass(frozen=True)
class Looks:
    """What a network saw in B pictures of one size, before anybody said which classes are wanted.

    views: for each scale the signed CAMs [2B,C,h,w] of the pictures and then of their mirror images.
    scores: mean logits over scales and flips, float32 [B,C].
    size: (height, width) that CAMs are made at, that of the pictures unless somebody wants less.
    """

    views: list[Tensor]
    scores: np.ndarray
    size: tuple[int, int]

    @torch.inference_mode()
    def cams(self, labels: np.ndarray) -> list[PictureCams]:
        """The CAMs of the tagged classes: labels [B,C], above PRESENT for a tag. They alone are upsampled, before the
        relu and the sum over views."""
        picture, tag = np.nonzero(labels > PRESENT)
        total = torch.zeros(len(tag), *self.size, device=self.views[0].device)
        few = max(1, AT_ONCE // (self.size[0] * self.size[1]))
        for view in self.views:
            for some in (slice(start, start + few) for start in range(0, len(tag), few)):
                total[some] += _both_ways(view, picture[some], tag[some], self.size)
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
        cams = total.div_(total.amax((1, 2), keepdim=True) + 1e-5).cpu().numpy()
        return [PictureCams(tag[picture == b], cams[picture == b], self.scores[b]) for b in range(len(self.scores))]


@torch.inference_mode()
def look(
    network: CamNetwork, rgb: np.ndarray, scales: Sequence[float], resize: Resize, max_pixels: int | None = None
) -> Looks:
    """One network pass a scale over B pictures of one size and their mirror images: rgb uint8 [B,H,W,3].

    resize: `pillow` is the published bicubic; `opencv` is faster, other pixels. Where a picture has more than
    max_pixels at a scale, it is seen in tiles (tiles.py).
    """
    views, logits = [], []
    for scale in scales:
        pixels = _resized(rgb, scale, resize)
        large = max_pixels and pixels.shape[1] * pixels.shape[2] > max_pixels
        cam, scores = _tiled(network, pixels, max_pixels) if large else _whole(network, pixels, max_pixels)
        views.append(cam)
        logits.append(scores.unflatten(0, (2, -1)).sum(0))
    return Looks(views, (sum(logits) / (2 * len(scales))).cpu().numpy(), rgb.shape[1:3])


def normalise(rgb: np.ndarray, network: CamNetwork) -> Tensor:
    """rgb uint8 [B,H,W,3] -> float32 [B,3,H,W] on the network's device, channels-last in memory."""
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).to(network.device).permute(0, 3, 1, 2).float()
    mean, std = (pixels.new_tensor(list(values))[:, None, None] for values in (network.mean, network.std))
    return (pixels - mean) / std


def _whole(network: CamNetwork, rgb: np.ndarray, max_pixels: int | None) -> tuple[Tensor, Tensor]:
    """Signed CAMs [2B,C,h,w] and logits [2B,C] of the pictures and of their mirror images: in one pass, or one after
    the other where a picture and its mirror image have more than max_pixels."""
    images = normalise(rgb, network)
    both = torch.cat([images, images.flip(3)])
    together = max_pixels is None or 2 * rgb.shape[1] * rgb.shape[2] <= max_pixels
    at_once = len(both) if together else len(images)  # how many pictures there are is for the caller to bound
    return _scored(network, torch.cat([_cam(network, some) for some in both.split(at_once)]))


def _tiled(network: CamNetwork, rgb: np.ndarray, max_pixels: int) -> tuple[Tensor, Tensor]:
    def see(tile: np.ndarray) -> Tensor:
        cam = _cam(network, normalise(tile[None], network))[0]
        trim()  # what malloc keeps of tiles of many sizes adds up to gigabytes
        return cam

    views = (tiled(see, picture, network.stride, max_pixels) for picture in (*rgb, *rgb[:, :, ::-1]))
    return _scored(network, torch.stack([*views]))


def _cam(network: CamNetwork, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=network.bf16):
        return network.cam(images)


def _scored(network: CamNetwork, cam: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(cam.device.type, torch.bfloat16, enabled=network.bf16):
        logits = network.scores(cam)
    return cam.float(), logits.float()


def _both_ways(cam: Tensor, picture: np.ndarray, tag: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Sum over view and mirrored view of relu(up(CAM)) for each (picture, tag): cam [2B,C,h,w] -> [pairs,H,W]."""
    if len(tag) == 0:
        return cam.new_zeros(0, *size)
    both = cam.unflatten(0, (2, -1))[:, picture, tag]
    straight, mirrored = F.interpolate(both, size=size, mode="bilinear", align_corners=False).relu()
    return straight + mirrored.flip(-1)


def _resized(rgb: np.ndarray, scale: float, resize: Resize) -> np.ndarray:
    height, width = (max(1, round(side * scale)) for side in rgb.shape[1:3])
    if (height, width) == rgb.shape[1:3]:
        return rgb
    return np.stack([resize_picture(picture, height, width, resize) for picture in rgb])
