"""The segmentation losses as published (docs/method.md 1.5.6 and 1.5.8): two cross-entropies and a runner-up term."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255
INTER_EPSILON = 1e-5


def seg_loss(
    logits: Tensor,
    target: Tensor,
    image_labels: Tensor | None,
    foreground: Tensor | None,
    fg_weight: float = 0.0125,
    inter_weight: float = 0.005,
    inter_threshold: float = 0.2,
    counts: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Plain version of `kernels.seg_loss`."""
    background, classes, confident = pixel_groups(target, image_labels, foreground, inter_threshold)
    scores = F.interpolate(logits.float().relu(), size=target.shape[-2:], mode="bilinear", align_corners=False)
    sums = torch.stack([_entropy(scores, target, background), _entropy(scores, target, classes),
                        _runner_up(scores[:, 1:], confident)])  # fmt: skip
    if counts is None:
        counts = seg_counts(target, image_labels, foreground, inter_threshold)
    terms = sums / denominators(counts)
    total = terms[0] + fg_weight * terms[1] + inter_weight * terms[2]
    return total, named(terms)


def seg_counts(
    target: Tensor, image_labels: Tensor | None, foreground: Tensor | None, inter_threshold: float = 0.2
) -> Tensor:
    """The only version of `kernels.seg_counts`: there is nothing to speed up."""
    groups = pixel_groups(target, image_labels, foreground, inter_threshold)
    return torch.stack([group.sum() for group in groups]).float()


def pixel_groups(
    target: Tensor, image_labels: Tensor | None, foreground: Tensor | None, inter_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixels each term averages over: three boolean [B,H,W] (background, foreground, inter)."""
    background = target == 0
    classes = ~background & (target != IGNORED)
    if image_labels is None:
        return background, classes, torch.zeros_like(background)
    tags = image_labels.count_nonzero(dim=1)[:, None, None]
    return background, classes & (tags == 1), (foreground[:, 0] > inter_threshold) & (tags > 1)


def denominators(counts: Tensor) -> Tensor:
    """What the three sums are divided by; never 0, so that a term without pixels is 0."""
    return torch.cat([counts[:2].clamp(min=1), counts[2:] + INTER_EPSILON])


def named(terms: Tensor) -> dict[str, Tensor]:
    """The three terms for a log: unweighted, without gradient."""
    return dict(zip(("bg", "fg", "inter"), terms.detach().unbind(), strict=True))


def _entropy(scores: Tensor, target: Tensor, group: Tensor) -> Tensor:
    """Sum of the cross-entropies over the pixels of `group`."""
    chosen = target.long().masked_fill(~group, IGNORED)
    return F.cross_entropy(scores, chosen, ignore_index=IGNORED, reduction="sum")


def _runner_up(scores: Tensor, confident: Tensor) -> Tensor:
    """Sum over confident pixels of second best minus best; every class that ties with the best counts as 0."""
    best = scores.detach().amax(dim=1, keepdim=True)
    second = (scores * (scores != best)).max(dim=1).values
    return ((second - best[:, 0]) * confident).sum()
