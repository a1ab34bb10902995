"""The losses that need no kernel, and what makes any loss the same on one rank and on many."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def classification_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over [B,C] of the binary cross-entropy with logits (docs/method.md 1.4)."""
    return F.binary_cross_entropy_with_logits(scores.float(), labels)


def global_alignment_loss(cam: Tensor, cam_erased: Tensor, labels: Tensor) -> Tensor:
    """Mean over [B,C] of the difference in pooled activation of the present classes (docs/method.md 1.5.9).

    cam, cam_erased [B,C,h,w]; labels [B,C]. Gradients reach both.
    """
    whole, erased = (c.float().relu().mean(dim=(2, 3)) * labels for c in (cam, cam_erased))
    return (erased - whole).abs().mean()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(counts: Tensor) -> Tensor:
    """The one exchange of a step: every loss's denominator belongs to the whole global batch."""
    if dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def share(mean: Tensor, local: int, total: int) -> Tensor:
    """A mean over `local` pictures as this rank's share of the mean over the global batch's `total`.

    Engines average gradients over ranks, so the share carries the number of ranks.
    """
    return mean * (world_size() * local / total)


def zero(like: Tensor) -> Tensor:
    return torch.zeros((), device=like.device)
