"""IRN as one module: pictures with coarse labels in, the losses of boundary and displacement out (docs/method.md 3)."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ktse_dist.data.palette import IGNORE
from ktse_dist.method.batch import LabelledBatch
from ktse_dist.method.ktse import Losses
from ktse_dist.method.losses import sum_over_ranks, world_size
from ktse_dist.method.paths import Offset, Path, margin, paths
from ktse_dist.method.pixels import normalise

RADIUS = 10
TINY = 1e-5


class IRN(nn.Module):
    """A frozen backbone and the refinement head with the losses around them.

    `forward(batch, phase)` returns the losses by name and their sum as `total`: this rank's shares, whose mean over
    ranks is the loss of the global batch. The phase is always the first one.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, precision: str):
        super().__init__()
        self.backbone, self.head, self.precision = backbone.requires_grad_(False), head, precision

    def forward(self, batch: LabelledBatch, phase: int) -> Losses:
        images = normalise(batch.images, batch.inside, self.backbone.mean, self.backbone.std)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            edge, displacement = self.head(self.backbone.stages(images))
        return irn_losses(edge.float(), displacement.float(), batch.labels)


def irn_losses(edge: Tensor, displacement: Tensor, labels: Tensor) -> Losses:
    """Affinity and displacement losses of all pairs of pixels nearer than RADIUS.

    edge [B,1,h,w]: logits of class boundaries; displacement [B,2,h,w]: y, x to the centre of the object;
    labels uint8 [B,h,w]: class + 1, 0 background, 255 unknown. Pairs of which one is unknown count nowhere.
    """
    bg, fg, other = (sum_over_ranks(count_pairs(labels)) + TINY).unbind()
    sums = torch.zeros(5, device=edge.device)
    for way in paths(RADIUS):
        # recomputed in the backward pass: what all ways keep would take gigabytes
        sums = sums + checkpoint(way_losses, edge, displacement, labels, way, use_reentrant=False)
    scale = torch.stack([2 * bg, 2 * fg, other, 2 * fg - TINY, 2 * bg - TINY])
    same_bg, same_fg, different, moved, still = (world_size() * sums / scale).unbind()
    losses = {"same": same_bg + same_fg, "different": different, "displacement": moved + still}
    total = (losses["same"] + losses["different"]) / 2 + losses["displacement"] / 2
    return losses | {"total": total}


def way_losses(edge: Tensor, displacement: Tensor, labels: Tensor, way: Path) -> Tensor:
    """Sums over the pairs of one offset, [5]: affinity of background, foreground and different pairs; displacement of
    foreground and background pairs."""
    bg, fg, other = pair_kinds(labels, way.end)
    probability = torch.sigmoid(edge[:, 0])
    on_the_way = torch.stack([shifted(probability, offset) for offset in way.pixels])
    affinity = 1 - on_the_way.amax(0)
    joined, parted = -torch.log(affinity + TINY), -torch.log(1 + TINY - affinity)
    difference = shifted(displacement, (0, 0)) - shifted(displacement, way.end)
    moved = (difference[:, 0] - way.end[0]).abs() + (difference[:, 1] - way.end[1]).abs()
    still = difference.abs().sum(1)
    pairs = ((bg, joined), (fg, joined), (other, parted), (fg, moved), (bg, still))
    return torch.stack([(kind * loss).sum() for kind, loss in pairs])


def pair_kinds(labels: Tensor, end: Offset) -> tuple[Tensor, Tensor, Tensor]:
    """bool [B,h',w'] each: both background, both the same class, two different labels."""
    here, there = shifted(labels, (0, 0)), shifted(labels, end)
    known, equal = (here != IGNORE) & (there != IGNORE), here == there
    return known & equal & (here == 0), known & equal & (here > 0), known & ~equal


def count_pairs(labels: Tensor) -> Tensor:
    """How many pairs of each kind there are, over all offsets: float [3]."""
    counts = [torch.stack([kind.sum() for kind in pair_kinds(labels, way.end)]) for way in paths(RADIUS)]
    return torch.stack(counts).sum(0).float()


def shifted(plane: Tensor, offset: Offset) -> Tensor:
    """What the first pixels of all pairs see at `offset`: [...,h,w] -> [...,h - m,w - 2 m], m their margin."""
    keep = margin(RADIUS)
    height, width = plane.shape[-2] - keep, plane.shape[-1] - 2 * keep
    return plane[..., offset[0] : offset[0] + height, keep + offset[1] : keep + offset[1] + width]
