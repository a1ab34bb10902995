"""Online pseudo-labels: CAMs refined by pixel-adaptive propagation (docs/method.md 1.6)."""

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from ktse_dist.config.method import PseudoLabel
from ktse_dist.data.palette import IGNORE

ITERATIONS = 10  # of PAR
REFINED_ONE = 1.01**ITERATIONS  # what it makes of a plane of ones: a pixel's weights sum to 1.01


@torch.no_grad()
def pseudo_labels(images: Tensor, cams: Tensor, labels: Tensor, most_tags: int, config: PseudoLabel) -> Tensor:
    """uint8 [B,H,W]: class + 1, 0 background, 255 where the two background planes disagree.

    images [B,3,H,W] in [0,1]; cams [B,C,h,w] signed; labels [B,C] 0 or 1; most_tags: at least 1 and the largest number
    of tags that one picture has (known on the host, so that no step waits for the device).
    """
    size = images.shape[2:]
    half = (size[0] // 2, size[1] // 2)
    classes, present = present_classes(labels, most_tags)
    planes = at_half_size(normalised(gather(cams.float(), classes), config.division), size, half)
    seeds = torch.cat([seed_probabilities(planes, present, level) for level in (config.high, config.low)], dim=1)
    refined = resize(kernels.par(resize(images, half), seeds, iterations=ITERATIONS), size).unflatten(1, (2, -1))
    high, low = strongest(refined, classes + 1).unbind(1)
    return torch.where(high > 0, high, torch.where(low > 0, IGNORE, 0)).to(torch.uint8)


def present_classes(labels: Tensor, most_tags: int) -> tuple[Tensor, Tensor]:
    """(classes int64 [B,K], present bool [B,K]): each picture's tags in ascending order, padded with absent ones."""
    classes = labels.argsort(dim=1, descending=True, stable=True)[:, :most_tags]
    return classes, torch.gather(labels, 1, classes) > 0


def gather(cams: Tensor, classes: Tensor) -> Tensor:
    return torch.gather(cams, 1, classes[:, :, None, None].expand(-1, -1, *cams.shape[2:]))


def normalised(cams: Tensor, division: str) -> Tensor:
    """Divided by the spatial peak. `raw` keeps the sign: a CAM that is negative everywhere ends above 1 (quirk 5)."""
    cams = cams.relu() if division == "relu" else cams
    return cams / (cams.amax(dim=(2, 3), keepdim=True) + 1e-5)


def at_half_size(cams: Tensor, size: tuple[int, int], half: tuple[int, int]) -> Tensor:
    """Upsampled to `size`, then halved; in one step where that is exactly the same: both are whole multiples."""
    whole = all(full % (2 * small) == 0 for full, small in zip(size, cams.shape[2:], strict=True))
    return resize(cams, half) if whole else resize(resize(cams, size), half)


def seed_probabilities(planes: Tensor, present: Tensor, background: float) -> Tensor:
    """[B,K,h,w]: softmax over a constant background plane, left out, and the present classes; absent ones get 0."""
    planes = planes.masked_fill(~present[:, :, None, None], -torch.inf)
    return F.pad(planes, (0, 0, 0, 0, 1, 0), value=background).softmax(dim=1)[:, 1:]


def strongest(refined: Tensor, values: Tensor) -> Tensor:
    """The value of the strongest class in each pixel, 0 where the background is at least as strong: int64 [B,L,H,W].

    refined [B,L,K,H,W]: what PAR made of L backgrounds' class planes; values [B,K]. PAR is linear, so the background's
    plane is what they leave of a refined plane of ones, and needs no refinement of its own.
    """
    best, where = refined.max(dim=2)
    chosen = torch.gather(values, 1, where.flatten(1)).view_as(where)
    return chosen * (best > REFINED_ONE - refined.sum(dim=2))


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
