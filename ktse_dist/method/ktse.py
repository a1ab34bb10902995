"""KTSE as one module: a batch in, one training step's losses out (docs/method.md 1.4, 1.5)."""

import torch
from torch import Tensor, nn

import kernels
from ktse_dist.config.method import Method
from ktse_dist.data.palette import IGNORE
from ktse_dist.method.batch import Batch
from ktse_dist.method.losses import (
    classification_loss,
    global_alignment_loss,
    share,
    sum_over_ranks,
    world_size,
)
from ktse_dist.method.pixels import denormalise, inside_mask, normalise
from ktse_dist.method.pseudo_label import pseudo_labels

IMAGE, PARTNER, ERASED, MIXED = range(4)  # roles: which of a sample's passes a noise mask belongs to
ROLE_STEP = 0x2545F4914F6CDD1D

Losses = dict[str, Tensor]


class KTSE(nn.Module):
    """backbone and head with the method's losses around them.

    `forward(batch, phase)` returns the unweighted losses by name and their weighted sum as `total`. Every value is this
    rank's share: the mean over ranks is the loss of the global batch. Every rank makes the same sub-module calls.
    Of a chunk it is the chunk's share, if `counts` are those of the global batch (training/accumulation.py).
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, config: Method, precision: str = "fp32"):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.config, self.precision = config, precision

    def forward(self, batch: Batch, phase: int, counts: Tensor | None = None, counting: bool = False) -> Losses:
        """phase 1 is classification; phase 2 adds the parts whose weight is not 0.

        counts: float [6], how many pixels SSR's terms average over; None: `batch` is all that the rank has, and the
        ranks sum them here. counting: only {"counts": those of `batch`} is wanted.
        """
        images, partners = (
            normalise(pixels, inside, self.backbone.mean, self.backbone.std)
            for pixels, inside in ((batch.images, batch.inside), (batch.partners, batch.partner_inside))
        )
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if counting:
                found = {"counts": self._count(images, partners, batch)}
            else:
                found = self.step(images, partners, batch, phase, counts)
        return {name: 0 * value for name, value in found.items()} if batch.idle else found

    def step(self, images: Tensor, partners: Tensor, batch: Batch, phase: int, counts: Tensor | None = None) -> Losses:
        """`forward` after normalisation: images [B,3,H,W], partners [P,3,H,W] as the network takes them."""
        if phase == 1 or self.config.is_classification:
            return self._classify(images, batch)
        return self._transfer(images, partners, batch, counts)

    def _classify(self, images: Tensor, batch: Batch) -> Losses:
        cam = self._cam_seg(images, role_keys(batch.keys, IMAGE))[:, 1:]
        loss = self._classification(cam, batch)
        return {"cls": loss, "total": loss}

    def _transfer(self, images: Tensor, partners: Tensor, batch: Batch, counts: Tensor | None) -> Losses:
        config = self.config
        count = len(images)
        pairs = len(partners) if config.uses_pairs else 0
        seg, mixed_seg = self._both_cam_segs(images, partners[:pairs], batch.keys), None
        cam, partner_cam = seg[:count, 1:], seg[count:, 1:]
        losses = {"cls": self._classification(cam, batch)}
        total = losses["cls"]
        if config.mga:
            losses |= (aligned := self._alignment(images, cam, batch))
            total = total + config.mga * (aligned["local"] + aligned["global"])
        if pairs:
            keys = role_keys(batch.keys[:pairs], MIXED)
            mixed_seg = self._cam_seg(torch.cat([images[:pairs], partners], dim=2), keys)
        if config.sie and pairs:
            losses["transfer"] = self._transfer_loss(cam[:pairs], partner_cam, mixed_seg[:, 1:], batch)
            total = total + config.sie * losses["transfer"]
        if config.ssr:
            pictures = torch.cat([images, partners])
            segmented, weighted = self._segmentation(pictures, seg, mixed_seg, batch, counts)
            losses |= segmented
            total = total + config.ssr * weighted
        return losses | {"total": total}

    def _cam_seg(self, images: Tensor, keys: Tensor) -> Tensor:
        """[B,C+1,h,w] in fp32: the background channel, then the CAMs."""
        return self.head(self.backbone(images, keys)).float()

    def _both_cam_segs(self, images: Tensor, partners: Tensor, keys: Tensor) -> Tensor:
        """[B+P,C+1,h,w]: pictures and partners in one pass."""
        roles = torch.cat([role_keys(keys, IMAGE), role_keys(keys[: len(partners)], PARTNER)])
        return self._cam_seg(torch.cat([images, partners]), roles)

    def _classification(self, cam: Tensor, batch: Batch) -> Tensor:
        _, scores = self.head.gates(cam)
        return share(classification_loss(scores, batch.labels), len(cam), batch.pictures)

    def _alignment(self, images: Tensor, cam: Tensor, batch: Batch) -> Losses:
        """MGA: a picture without its confident regions should activate as the whole (docs/method.md 1.5.1-4, 1.5.9)."""
        erasing, detach = self.config.erasing, self.config.detach
        erased_images = kernels.erase(images, cam.detach(), batch.labels, erasing.threshold)
        erased = self._cam_seg(erased_images, role_keys(batch.keys, ERASED))[:, 1:]
        keep = (kernels.foreground(cam.detach(), batch.labels) < erasing.threshold).to(cam.dtype)
        teacher = erased.detach() if detach.local else erased
        local = kernels.align_loss(cam, teacher, keep, batch.labels, erasing.margin)
        whole = cam.detach() if detach.global_ else cam
        losses = {"local": local, "global": global_alignment_loss(whole, erased, batch.labels)}
        return {name: share(loss, len(cam), batch.pictures) for name, loss in losses.items()}

    def _transfer_loss(self, cam: Tensor, partner_cam: Tensor, mixed_cam: Tensor, batch: Batch) -> Tensor:
        """SIE: what the mixed picture's CAM lost against its halves (docs/method.md 1.5.7)."""
        if self.config.detach.transfer:
            cam, partner_cam = cam.detach(), partner_cam.detach()
        union = torch.maximum(batch.labels[: len(cam)], batch.partner_labels)
        loss = kernels.transfer_loss(cam, partner_cam, mixed_cam, union, self.config.transfer.margin)
        return share(loss, batch.local_pairs, batch.pairs)

    def _segmentation(
        self, pictures: Tensor, seg: Tensor, mixed_seg: Tensor | None, batch: Batch, counts: Tensor | None
    ) -> tuple[Losses, Tensor]:
        """SSR: pixel losses of the picture and the mixed picture on pseudo-labels (docs/method.md 1.5.5, 1.5.6, 1.5.8).

        The two scores' denominators are the only thing that ranks exchange in a step. Returns the six terms (of a chunk
        without pairs three) and their weighted sum.
        """
        config, count = self.config.segmentation, len(batch.images)
        own, mixed, foreground = self._pixels(pictures, seg.detach(), batch)
        weights = (config.fg_weight, config.inter_weight, config.inter_threshold)
        if counts is None:
            counts = sum_over_ranks(self._counts(own, mixed, foreground, batch))
        total, terms = kernels.seg_loss(seg[:count], own, batch.labels, foreground, *weights, counts=counts[:3])
        names = {f"seg_{name}": term for name, term in terms.items()}
        if mixed_seg is not None:
            mixed_total, mixed_terms = kernels.seg_loss(mixed_seg, mixed, None, None, *weights, counts=counts[3:])
            names |= {f"mixed_{name}": term for name, term in mixed_terms.items() if name != "inter"}
            total = total + mixed_total
        world = world_size()
        return {name: world * term for name, term in names.items()}, world * total

    def _count(self, images: Tensor, partners: Tensor, batch: Batch) -> Tensor:
        """What `_segmentation` would count in this batch, from one pass: the mixed picture's labels are its halves'."""
        seg = self._both_cam_segs(images, partners, batch.keys)
        return self._counts(*self._pixels(torch.cat([images, partners]), seg.detach(), batch), batch)

    def _counts(self, own: Tensor, mixed: Tensor, foreground: Tensor, batch: Batch) -> Tensor:
        """float [6]: pixels of the pictures' three terms and of the mixed pictures'."""
        threshold = self.config.segmentation.inter_threshold
        counts = kernels.seg_counts(own, batch.labels, foreground, threshold)
        pairs = kernels.seg_counts(mixed, None, None, threshold) if len(mixed) else torch.zeros_like(counts)
        return torch.cat([counts, pairs])

    def _pixels(self, pictures: Tensor, seg: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The two targets, and the pictures' foreground [B,1,H,W]."""
        cam = seg[: len(batch.images), 1:]
        return *self._targets(pictures, seg, batch), kernels.foreground(cam, batch.labels, pictures.shape[2:])

    def _targets(self, pictures: Tensor, seg: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pseudo-labels of the pictures [B,H,W] and of the mixed pictures [P,2H,W]; padding and empty pairs ignored."""
        config, count, pairs = self.config.pseudo_label, len(batch.images), len(batch.partners)
        pixels = denormalise(pictures, self.backbone.mean, self.backbone.std, config.pixels == "truncated")
        labels = torch.cat([batch.labels, batch.partner_labels])
        targets = pseudo_labels(pixels, seg[:, 1:], labels, batch.most_tags, config)
        if config.padding == "ignored":
            seen = inside_mask(torch.cat([batch.inside, batch.partner_inside]), *targets.shape[1:])[:, 0]
            targets = targets.masked_fill(~seen, IGNORE)
        mixed = torch.cat([targets[:pairs], targets[count:]], dim=1)
        mixed[batch.local_pairs :].fill_(IGNORE)
        return targets[:count], mixed


def role_keys(keys: Tensor, role: int) -> Tensor:
    """Noise keys of one of a sample's passes: the four passes of a step drop different channels."""
    return keys + role * ROLE_STEP
