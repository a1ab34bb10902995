"""The published formulation of the method's operations, written from docs/method.md: what the benchmarks compare with.

Plain and complete, as research code does it: whole [B,C,H,W] tensors for every class, neighbours by convolutions with
one-hot kernels, one picture and one background plane at a time in PAR, a cross-entropy for each group of pixels, and
autograd recording wherever the published run leaves it on (docs/method.md 1.5; section 5, number 10). No step is slower
than the text asks for. Functions that ours have too take the same arguments.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
IGNORED = 255


def max_norm(maps: Tensor) -> Tensor:
    activation = F.relu(maps)
    highest = activation.flatten(2).max(dim=2).values[:, :, None, None]
    lowest = activation.flatten(2).min(dim=2).values[:, :, None, None]
    return F.relu(activation - lowest - 1e-5) / (highest - lowest + 1e-5)


def foreground(cam: Tensor, labels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """1.5.1; with `size` the map that 1.5.2 erases by. Every class is upsampled and stretched."""
    maps = F.relu(cam) if size is None else upsample(F.relu(cam), size)
    return (max_norm(maps) * labels[:, :, None, None]).max(dim=1, keepdim=True).values


def erase(images: Tensor, cam: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """1.5.2."""
    return images * (foreground(cam, labels, images.shape[2:]) < threshold)


def transfer_loss(cam_a: Tensor, cam_b: Tensor, cam_mix: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """1.5.7."""
    return (F.relu(torch.cat([cam_a, cam_b], dim=2) - cam_mix - margin) * labels[:, :, None, None]).mean()


def align_loss(cam: Tensor, cam_erased: Tensor, keep: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """1.5.4."""
    return (F.relu(cam_erased * keep - cam * keep - margin) * labels[:, :, None, None]).mean()


def global_align_loss(cam: Tensor, cam_erased: Tensor, labels: Tensor) -> Tensor:
    """1.5.9."""
    whole, erased = (F.relu(maps).mean(dim=(2, 3)) * labels for maps in (cam, cam_erased))
    return (erased - whole).abs().mean()


def seg_loss(
    logits: Tensor, target: Tensor, image_labels: Tensor | None, foreground: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """1.5.6; without `image_labels` 1.5.8. Only a term without pixels is mended: 0 where the published one is NaN."""
    pred = upsample(F.relu(logits), target.shape[1:])
    target = target.long()
    background = entropy(pred, torch.where(target == 0, target, IGNORED))
    classes = torch.where(target == 0, IGNORED, target)
    if image_labels is None:
        terms = {"bg": background, "fg": entropy(pred, classes), "inter": pred.new_zeros(())}
    else:
        tags = image_labels.sum(dim=1)
        inter = inter_loss(pred[tags > 1, 1:], foreground[tags > 1, 0])
        terms = {"bg": background, "fg": entropy(pred[tags == 1], classes[tags == 1]), "inter": inter}
    return terms["bg"] + 0.0125 * terms["fg"] + 0.005 * terms["inter"], terms


def entropy(pred: Tensor, target: Tensor) -> Tensor:
    if not (target != IGNORED).any():
        return pred.new_zeros(())
    return F.cross_entropy(pred, target, ignore_index=IGNORED)


def inter_loss(pred: Tensor, foreground: Tensor) -> Tensor:
    if len(pred) == 0:
        return pred.new_zeros(())
    best = pred.detach().max(dim=1, keepdim=True).values
    second = (pred * (pred != best)).max(dim=1).values
    confident = (foreground > 0.2).float()
    return ((second - best[:, 0]) * confident).sum() / (confident.sum() + 1e-5)


def par(images: Tensor, masks: Tensor, dilations: Sequence[int] = DILATIONS, iterations: int = 10) -> Tensor:
    """1.6: the refinement of some pictures' masks."""
    masks = F.interpolate(masks, size=images.shape[2:], mode="bilinear", align_corners=True)
    around, distances = neighbours(images, dilations), neighbour_distances(dilations, images)
    difference = (around - images.unsqueeze(2).repeat(1, 1, around.shape[2], 1, 1)).abs()
    colour = -((difference / (around.std(dim=2, keepdim=True) + 1e-8) / 0.3) ** 2)
    position = -((distances / (distances.std(dim=2, keepdim=True) + 1e-8) / 0.3) ** 2)
    weights = F.softmax(colour.mean(dim=1, keepdim=True), dim=2) + 0.01 * F.softmax(position, dim=2)
    for _ in range(iterations):
        masks = (neighbours(masks, dilations) * weights).sum(dim=2)
    return masks


def neighbours(maps: Tensor, dilations: Sequence[int]) -> Tensor:
    """[B,C,48,H,W]: for each dilation a convolution whose eight kernels have a single 1."""
    batch, channels, height, width = maps.shape
    kernels = torch.eye(9, device=maps.device).view(9, 1, 3, 3)[[0, 1, 2, 3, 5, 6, 7, 8]]
    found = []
    for d in dilations:
        padded = F.pad(maps, (d, d, d, d), mode="replicate").reshape(-1, 1, height + 2 * d, width + 2 * d)
        found.append(F.conv2d(padded, kernels, dilation=d).view(batch, channels, 8, height, width))
    return torch.cat(found, dim=2)


def neighbour_distances(dilations: Sequence[int], images: Tensor) -> Tensor:
    """[B,1,48,H,W]."""
    ring = torch.tensor([2**0.5, 1, 2**0.5, 1, 1, 2**0.5, 1, 2**0.5], device=images.device)
    distances = torch.cat([d * ring for d in dilations])[None, None, :, None, None]
    return distances.repeat(len(images), 1, 1, *images.shape[2:])


def par_each(images: Tensor, masks: list[list[Tensor]]) -> list[list[Tensor]]:
    """PAR of every picture's masks ([1,K,h,w], one for each background plane), one at a time as in 1.6."""
    return [[par(images[i : i + 1], mask) for mask in planes] for i, planes in enumerate(masks)]


def pseudo_labels(images: Tensor, cams: Tensor, labels: Tensor, high: float = 0.3, low: float = 0.15) -> Tensor:
    """1.6: int64 [B,H,W] from pictures in [0,1] and signed CAMs."""
    size = images.shape[2:]
    half = (size[0] // 2, size[1] // 2)
    images = upsample(images, half)
    cams = upsample(cams / (cams.flatten(2).max(dim=2).values[:, :, None, None] + 1e-5), size)
    planes = [upsample(torch.cat([torch.full_like(cams[:, :1], b), cams], dim=1), half) for b in (high, low)]
    refined = [torch.zeros(len(images), *size, dtype=torch.long, device=cams.device) for _ in planes]
    for i in range(len(images)):
        values = torch.cat([labels.new_ones(1), labels[i]]).nonzero()[:, 0]
        for seeds, out in zip(planes, refined, strict=True):
            mask = par(images[i : i + 1], F.softmax(seeds[i : i + 1, values], dim=1))
            out[i] = values[upsample(mask, size).argmax(dim=1)[0]]
    label = refined[0].clone()
    label[(refined[0] == 0) & (refined[1] > 0)] = IGNORED
    return label


def pyramid_gate(cam: Tensor, gates: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """1.2: the global pyramid head."""
    size = cam.shape[2:]
    levels = [upsample(F.adaptive_avg_pool2d(cam, k), size) for k in (2, 4, 8, 16)]
    gpp = levels[0]
    for finer, (positive, negative) in zip(levels[1:], gates, strict=True):
        gpp = gate(gpp, finer, positive, negative)
    agreed, denied = F.relu(cam) * F.relu(gpp), F.relu(-cam) * F.relu(-gpp)
    return gpp, agreed.mean(dim=(2, 3)) - denied.mean(dim=(2, 3))


def gate(coarse: Tensor, fine: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    allow = F.conv2d(torch.cat([F.relu(coarse), F.relu(fine)], dim=1), positive, padding=1).sigmoid()
    deny = F.conv2d(torch.cat([F.relu(-coarse), F.relu(-fine)], dim=1), negative, padding=1).sigmoid()
    allowed = F.relu(coarse) * allow[:, :1] + F.relu(fine) * allow[:, 1:]
    denied = F.relu(-coarse) * deny[:, :1] + F.relu(-fine) * deny[:, 1:]
    return allowed / 2 - denied / 2


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
