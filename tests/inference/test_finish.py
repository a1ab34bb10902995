"""The last CRF, against the published test."""

import numpy as np
import pytest

from ktse_dist.data.decode import decode_mask
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.inference.crf import DEEPLAB_CRF, crf
from ktse_dist.inference.finish import Answer, finish, seen

PALETTE = np.zeros((21, 3), np.uint8)


def test_the_published_picture_wraps_around(golden):
    arrays = golden("beco_test_crf")
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    assert (seen(levels, "wrapped")[:, 0] == arrays["wrap_table"]).all()
    assert (seen(arrays["rgb_u8"], "wrapped") == arrays["crf_image_u8"]).all()


def test_the_crf_is_the_published_one(golden):
    arrays = golden("beco_test_crf")
    found = crf(seen(arrays["rgb_u8"], "wrapped"), arrays["prob"], DEEPLAB_CRF)
    np.testing.assert_allclose(found, arrays["crf_prob"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("picture", "name"), [("none", "label_nocrf"), ("wrapped", "crf_label"), ("plain", "crf_label_on_plain_rgb")]
)
def test_labels_and_scores_are_the_published_ones(golden, picture, name):
    arrays = golden("beco_test_crf")
    found = decode_mask(finish(Answer(arrays["rgb_u8"], arrays["prob"], picture, PALETTE, (50, 66))).files.mask)
    assert (found != arrays[name]).mean() < 1e-3
    confusion = Confusion(20)
    confusion.update(found, arrays["gt"])
    if picture != "plain":
        scores = arrays["scores_nocrf" if picture == "none" else "scores_crf"]
        present = confusion.counts.sum(1) > 0
        assert confusion.iou()[present].mean() / 100 == pytest.approx(scores[0], abs=2e-3)
