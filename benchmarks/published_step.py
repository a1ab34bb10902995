"""The published training step of phase 2 around a backbone and a head of ours."""

import published_ops
import torch
from torch import Tensor, nn

from ktse_dist.method.batch import Batch
from ktse_dist.method.ktse import ERASED, IMAGE, MIXED, PARTNER, role_keys
from ktse_dist.method.losses import classification_loss
from ktse_dist.method.pixels import denormalise, normalise


class PublishedStep(nn.Module):
    """The published phase 2 (docs/method.md 1.5) around a backbone and a head of ours."""

    def __init__(self, backbone: nn.Module, head: nn.Module, precision: str):
        super().__init__()
        self.backbone, self.head, self.precision = backbone, head, precision

    def forward(self, batch: Batch) -> Tensor:
        mean, std = self.backbone.mean, self.backbone.std
        images = normalise(batch.images, batch.inside, mean, std)
        partners = normalise(batch.partners, batch.partner_inside, mean, std)
        pairs, labels = min(4, len(images)), batch.labels
        seg, scores = self.network(images, role_keys(batch.keys, IMAGE))
        partner_seg, _ = self.network(partners, role_keys(batch.keys, PARTNER))
        cam, partner_cam = seg[:, 1:], partner_seg[:, 1:]
        keep = published_ops.foreground(cam, labels) < 0.6
        strongest = published_ops.foreground(cam, labels, images.shape[2:])
        erased_seg, _ = self.network(images * (strongest < 0.6), role_keys(batch.keys, ERASED))
        erased_cam = erased_seg[:, 1:]
        own, other = (
            published_ops.pseudo_labels(denormalise(pictures, mean, std, truncated=True), cams, tags)
            for pictures, cams, tags in ((images, cam, labels), (partners, partner_cam, batch.partner_labels))
        )
        mixed = torch.cat([images[:pairs], partners[:pairs]], dim=2)
        mixed_seg, _ = self.network(mixed, role_keys(batch.keys[:pairs], MIXED))
        union = torch.maximum(labels, batch.partner_labels)[:pairs]
        mixed_target = torch.cat([own[:pairs], other[:pairs]], dim=1)
        return (
            classification_loss(scores, labels)
            + published_ops.align_loss(cam, erased_cam, keep, labels)
            + published_ops.global_align_loss(cam, erased_cam, labels)
            + published_ops.transfer_loss(cam[:pairs], partner_cam[:pairs], mixed_seg[:, 1:], union)
            + published_ops.seg_loss(seg, own, labels, strongest)[0]
            + published_ops.seg_loss(mixed_seg, mixed_target, None, None)[0]
        )

    def network(self, images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Background and CAMs, and the scores that every call of the published network makes."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            seg = self.head(self.backbone(images, keys)).float()
        gates = self.head.gates
        pairs = (gates.p1, gates.n1), (gates.p2, gates.n2), (gates.p3, gates.n3)
        return seg, published_ops.pyramid_gate(seg[:, 1:], pairs)[1]
