"""The method's heavy operations. Each has a plain reference, a fast path in torch and Triton kernels, all with the
same signature; `set_mode` says which of them runs.

Tensors are NCHW, contiguous or channels-last, fp32 or bf16; sums are taken in fp32. Labels are {0,1} [B,C]. Losses
are 0-d fp32 tensors. Nothing here waits for a GPU.
"""

from collections.abc import Sequence

from torch import Tensor

from kernels.dispatch import choose, mode, set_mode

__all__ = [
    "align_loss",
    "erase",
    "foreground",
    "mode",
    "par",
    "pyramid_gate",
    "seg_counts",
    "seg_loss",
    "set_mode",
    "transfer_loss",
]


def foreground(cam: Tensor, labels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """How clearly some present class is active at each pixel (docs/method.md 1.5.1, and 1.5.2 with `size`).

    cam [B,C,h,w], any sign. labels [B,C]. size (H,W): upsample the relu'd CAM (bilinear, half-pixel centres) first.
    Returns fp32 [B,1,H,W] ([B,1,h,w] without `size`) in [0,1): the maximum over present classes of the
    max-normalised maps; 0 for an image without labels. No gradient.
    """
    return choose("erasing", cam).foreground(cam, labels, size)


def erase(images: Tensor, cam: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Pictures without the confident pixels of their present classes (docs/method.md 1.5.2).

    images [B,3,H,W], normalised, so that 0 is the mean colour. cam [B,C,h,w]. labels [B,C].
    threshold: share of a class's peak, in (0,1), from which on a pixel is set to 0.
    Returns images' shape and dtype. No gradient.
    """
    return choose("erasing", cam).erase(images, cam, labels, threshold)


def transfer_loss(cam_a: Tensor, cam_b: Tensor, cam_mix: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """How much activation the mixed picture lost against its two halves (SIE; docs/method.md 1.5.7).

    cam_a, cam_b [P,C,h,w]: CAMs of the two pictures, stacked along height in the mixed one.
    cam_mix [P,C,2h,w]: CAM of the mixed picture. labels [P,C]: union of both pictures' tags.
    Returns the mean over all elements, absent classes counting as 0. Gradients reach all three CAMs: detach what
    should stay.
    """
    return choose("transfer", cam_mix).transfer_loss(cam_a, cam_b, cam_mix, labels, margin)


def align_loss(cam: Tensor, cam_erased: Tensor, keep: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """How much the erased picture's CAM exceeds the first one where nothing was erased (docs/method.md 1.5.4).

    cam, cam_erased [B,C,h,w]. keep [B,1,h,w], bool or float: 1 outside the confident region, 0 inside. labels [B,C].
    Returns the mean over all elements, absent classes counting as 0. Gradients reach both CAMs, never `keep`.
    """
    return choose("transfer", cam).align_loss(cam, cam_erased, keep, labels, margin)


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
    """Segmentation loss on pseudo-labels (docs/method.md 1.5.6; with `image_labels=None` 1.5.8).

    logits [B,C+1,h,w]: raw; relu and upsampling to the target's size happen inside. Channel 0 is the background.
    target [B,H,W] uint8 or int64: 0 background, class + 1, 255 ignored. image_labels [B,C].
    foreground [B,1,H,W] as `foreground` gives; may be None when `image_labels` is None.
    counts: float [3] from `seg_counts`, summed over ranks; the terms are then this rank's sums over these counts.

    bg: mean cross-entropy of background pixels. fg: that of foreground pixels in images with one label (without
    `image_labels`: in all images). inter: mean gap, never positive, between second best and best class at pixels with
    foreground > inter_threshold in images with several labels; its gradient lowers the second best alone.
    Returns (bg + fg_weight fg + inter_weight inter, {"bg", "fg", "inter"}): the terms are unweighted and carry no
    gradient. A term without pixels is 0 with zero gradient.
    """
    implementation = choose("segmentation", logits)
    return implementation.seg_loss(
        logits, target, image_labels, foreground, fg_weight, inter_weight, inter_threshold, counts
    )


def seg_counts(
    target: Tensor, image_labels: Tensor | None, foreground: Tensor | None, inter_threshold: float = 0.2
) -> Tensor:
    """How many pixels each term of `seg_loss` averages over, in the order bg, fg, inter.

    Arguments as for `seg_loss`. Returns float [3], to be summed over ranks and handed to `seg_loss` as `counts`;
    the 1e-5 in the denominator of inter is added there.
    """
    return choose("segmentation", target).seg_counts(target, image_labels, foreground, inter_threshold)


def par(
    images: Tensor, masks: Tensor, dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24), iterations: int = 10
) -> Tensor:
    """Masks drawn towards the edges of their pictures: pixel-adaptive refinement (docs/method.md 1.6).

    images [B,3,H,W] in [0,1]. masks [B,M,h,w]: any number of soft masks, resized to (H,W) with align_corners first.
    dilations: distances in pixels of the 8 neighbours that a pixel looks at; the edge is repeated outside.
    Returns [B,M,H,W] in masks' dtype. Weights sum to 1.01, so masks grow by 1 % an iteration. No gradient.
    Linear in the masks: stack the seeds of several thresholds as channels and refine them at once.
    """
    return choose("affinity", images).par(images, masks, dilations, iterations)


def pyramid_gate(cam: Tensor, gates: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Class scores from the agreement of a CAM with its gated pooling pyramid (GPP head; docs/method.md 1.2).

    cam [B,C,h,w], any size. gates: three pairs (w_p, w_n), each [2,2C,3,3], in the order of the published gconv1..3;
    they join levels 2 and 4, then 8, then 16.
    Returns (gpp [B,C,h,w], scores [B,C]), fp32 also under autocast. Gradients reach the CAM and the gates.
    """
    return choose("pyramid", cam).pyramid_gate(cam, gates)
