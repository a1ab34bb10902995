"""What is absent costs nothing: how the fast paths touch only tagged classes, their masks and confident pixels.

How many there are is known on the host only for CPU tensors. On a GPU asking would stall the step, so there every
class and pixel is taken and the 0s of the labels or weights do the masking.
"""

import torch
from torch import Tensor


def present_pairs(labels: Tensor) -> Tensor | None:
    """Numbers b * C + c of the tagged (image, class) pairs of labels [B,C]; on a GPU None: all of them."""
    return None if labels.is_cuda else labels.flatten().nonzero()[:, 0]


def most_tags(labels: Tensor) -> int:
    """The largest number of tags that an image of labels [B,C] has, at least 1; on a GPU C, its bound."""
    return labels.shape[1] if labels.is_cuda else max(1, int(labels.count_nonzero(dim=1).amax()))


def weighted_pixels(weights: Tensor) -> tuple[Tensor, ...]:
    """Numbers (b, y, x) that select from [B,H,W,...] the pixels whose weight [B,H,W] is not 0; on a GPU all pixels."""
    return all_pixels(weights) if weights.is_cuda else weights.nonzero(as_tuple=True)


def all_pixels(weights: Tensor) -> tuple[Tensor, ...]:
    """Numbers (b, y, x) that select every pixel from [B,H,W,...]."""
    return torch.meshgrid(*(torch.arange(length, device=weights.device) for length in weights.shape), indexing="ij")


def filled_masks(masks: Tensor) -> Tensor | None:
    """Which masks [B,M,h,w] are not 0 everywhere, [B,M]; on a GPU None: any of them may have a value."""
    return None if masks.is_cuda else masks.flatten(2).any(dim=2)
