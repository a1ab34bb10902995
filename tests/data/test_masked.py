"""Pictures with masks as stage 2 learns from them: what its keys change."""

import torch

from ktse_dist.config.stages import Segment
from ktse_dist.data.index import Index
from ktse_dist.data.masked import masked
from ktse_dist.data.stream import Plan, stream
from ktse_dist.method.batch import MaskedBatch


def batch_of(run, **keys) -> MaskedBatch:
    """The first batch of 8 pictures, all of which have masks that are sure everywhere."""
    data = run.read_config().data
    index, plan = Index.open(data.path, "train").first(8), Plan(0, 8, 0, 0, 0, 1)
    return next(stream(index, data, 7, plan, masked(index, data, Segment(**keys), 7, plan, run.masks)))


def test_the_share_that_is_trusted_is_the_one_asked_for(packed_masks):
    whole, half = (batch_of(packed_masks, trusted=share, area=(1, 1)) for share in (1, 0.5))
    assert torch.equal(whole.trusted, whole.labels != 255)
    assert 0.4 < half.trusted.float().mean() < 0.6


def test_a_crop_covers_the_area_asked_for(packed_masks):
    """Neighbouring pixels of a small area that is enlarged differ less."""
    whole, part = (batch_of(packed_masks, area=(area, area)).images.float() for area in (1, 0.02))
    assert part.diff(dim=3).abs().mean() < 0.6 * whole.diff(dim=3).abs().mean()
    assert part.shape == whole.shape


def test_labels_lie_where_their_pictures_do(packed_masks):
    one, other = (batch_of(packed_masks, area=(area, area)) for area in (1, 0.5))
    assert torch.equal(one.keys, other.keys) and not torch.equal(one.labels, other.labels)
