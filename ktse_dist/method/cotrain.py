"""Stage 2 as one module: two networks that learn from masks and from each other (docs/method.md 4)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ktse_dist.config.stages import Segment
from ktse_dist.data.palette import IGNORE
from ktse_dist.method import mixing
from ktse_dist.method.batch import MaskedBatch
from ktse_dist.method.colour import recolour
from ktse_dist.method.losses import share, world_size
from ktse_dist.method.mixing import Scene, confident
from ktse_dist.method.pixels import normalise_levels
from ktse_dist.models.deeplab import upsampled
from ktse_dist.models.noise import channel_hash

MIX, CLASSES, COLOUR = range(3)  # what a picture's key is drawn for

Losses = dict[str, Tensor]


class Mixed(NamedTuple):
    """What the networks are trained on; boundary bool [B,H,W] along what was pasted."""

    scene: Scene
    boundary: Tensor


class CoTraining(nn.Module):
    """DeepLabs with the losses around them; one alone learns from the masks and its own confident answers.

    `forward(batch, phase)`: phase 1 is the warm-up, phase 2 replaces masks of mixed pictures by what the networks
    themselves are sure of (unless config.sure is None). Every loss is this rank's share of the global batch's. Every
    rank makes the same calls.
    """

    def __init__(self, networks: Sequence[nn.Module], config: Segment, precision: str = "fp32"):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.config, self.precision = config, precision

    def forward(self, batch: MaskedBatch, phase: int) -> Losses:
        levels = batch.images.to(torch.float32, memory_format=torch.channels_last)
        mixed = self._mix(levels, batch, phase if self.config.sure else 1)
        images = recolour(mixed.scene.images, batch.keys, COLOUR) if self.config.colour else mixed.scene.images
        logits = self._logits(images)
        average_statistics(self)
        losses = step_losses(logits, mixed, self.config.boundary_weight)
        return {name: share(loss, len(levels), batch.pictures) for name, loss in losses.items()}

    def _logits(self, levels: Tensor) -> list[Tensor]:
        """Each network's answer to pictures [B,3,H,W], at their size and in fp32: [B,C+1,H,W]."""
        images = normalise_levels(levels, self.networks[0].mean, self.networks[0].std)
        with torch.autocast(levels.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = [network(images) for network in self.networks]
        return [upsampled(logits, levels.shape[2:]) for logits in found]

    def _mix(self, levels: Tensor, batch: MaskedBatch, phase: int) -> Mixed:
        offline = Scene(levels, batch.labels, batch.trusted)
        chance = channel_hash(batch.keys, MIX, 1).view(-1) < int(self.config.mix * 2**32)
        source = offline if phase == 1 else Scene(levels, *confident(self.predictions(levels), self.config.sure))
        # objects are cut out of masks as they are, and of answers where they are sure
        objects = source.labels if phase == 1 else source.labels * source.trusted
        # half of the partner's classes, drawn by the key of the item that they are pasted into
        present = mixing.partners(mixing.classes_in(objects, batch.classes))
        chosen = mixing.half_of(present, batch.keys, CLASSES)
        mixed = mix(offline, source, objects, chance, chosen)
        return mixed if phase == 2 else mixed._replace(boundary=torch.zeros_like(mixed.boundary))

    @torch.no_grad()
    def predictions(self, levels: Tensor) -> Tensor:
        """Mean logits of the networks in inference mode at the size of the pictures: [B,C+1,H,W]."""
        self.eval()
        logits = self._logits(levels)
        self.train()
        return torch.stack(logits).mean(dim=0)


def mix(offline: Scene, source: Scene, objects: Tensor, mixed: Tensor, chosen: Tensor) -> Mixed:
    """Items where `mixed` [B] get what their partner's `objects` [B,H,W] show of the classes `chosen` [B,C].

    Such an item has the labels and the trust of `source` everywhere; the others keep the offline ones.
    """
    where = mixing.region(mixing.partners(objects), chosen)
    pasted = mixing.paste(source, where)
    scene = Scene(*(torch.where(expand(mixed, new), new, old) for new, old in zip(pasted, offline, strict=True)))
    return Mixed(scene, mixing.boundary(where) & mixed[:, None, None])


def expand(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *(1,) * (like.dim() - 1))


def step_losses(logits: Sequence[Tensor], mixed: Mixed, boundary_weight: float) -> Losses:
    """The losses of one or two networks' logits [B,C+1,H,W], and their sum as `total`.

    ceN: cross-entropy on trusted pixels, more of it along pasted edges. cotN: on the other pixels, against what the
    other network says there, through which no gradient flows. Both are means over all pixels.
    """
    _, labels, trusted = mixed.scene
    weight = trusted * (1 + boundary_weight * mixed.boundary)
    losses = {
        f"ce{n}": (F.cross_entropy(one, labels.long(), ignore_index=IGNORE, reduction="none") * weight).mean()
        for n, one in enumerate(logits, 1)
    }
    if len(logits) == 2:
        for n, (one, other) in enumerate(zip(logits, reversed(logits), strict=True), 1):
            losses[f"cot{n}"] = (F.cross_entropy(one, other.detach().argmax(1), reduction="none") * ~trusted).mean()
    return losses | {"total": sum(losses.values())}


def average_statistics(module: nn.Module) -> None:
    """Running means and variances of trained batch norms, the same on every rank: a checkpoint holds them all.

    New tensors take their place, since the backward pass still reads those of the forward pass.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms or not dist.is_initialized():
        return
    flat = torch.cat([statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)])
    dist.all_reduce(flat)
    statistics = iter((flat / world_size()).split([norm.num_features for norm in norms for _ in range(2)]))
    for norm in norms:
        norm.running_mean, norm.running_var = (next(statistics).clone() for _ in range(2))
