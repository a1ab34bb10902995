"""Absent classes cost nothing: what the fast paths use to touch only the CAMs of tagged classes.

How many tags a batch has is known on the host only for CPU tensors. On a GPU asking would stall the step, so there
every class counts as present and the 0s of `labels` do the masking.
"""

from torch import Tensor


def present_pairs(labels: Tensor) -> tuple:
    """Index for the two leading axes of [B,C,...] that selects the tagged (image, class) pairs; on a GPU all of them.

    labels [B,C]. Selecting with it gives [n,...] on a CPU and a view [B,C,...] on a GPU.
    """
    return (slice(None), slice(None)) if labels.is_cuda else labels.nonzero(as_tuple=True)


def most_tags(labels: Tensor) -> int:
    """The largest number of tags that an image of labels [B,C] has; on a GPU C, its bound."""
    return labels.shape[1] if labels.is_cuda else int(labels.count_nonzero(dim=1).amax())
