"""Masks of a segmentation network: over scales, a shard at a time, scored as they stand in the files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ktse_dist.config.stages import Segment
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex, write_mask_index
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.data.reader import Reader
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.evaluation.network import Scores
from ktse_dist.inference.answers import Answers
from ktse_dist.inference.generate import Part
from ktse_dist.inference.segmentation import SegmentationNetwork, segmented
from ktse_dist.models.deeplab import upsampled

CLASSES = 20


class Bright(nn.Module):
    """Class 1 where it is bright, at a stride of 8."""

    mean, std = (127.0,) * 3, (128.0,) * 3

    def forward(self, images):
        grey = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8, ceil_mode=True)
        return torch.cat([-3 * grey, 3 * grey, torch.full_like(grey, -9.0).expand(-1, CLASSES - 1, -1, -1)], dim=1)


NETWORK = SegmentationNetwork([Bright()], torch.device("cpu"))


@pytest.fixture
def val(tmp_path) -> Index:
    pack_stickers(tmp_path / "data", train=2, val=3)
    return Index.open(tmp_path / "data", "val")


def answers(val: Index, folder, **keys) -> Answers:
    return Answers(NETWORK, val, Segment(scales=(0.5,), crf="none", **keys), 0, folder)


def test_two_networks_answer_with_the_mean_of_their_logits():
    images = torch.randn(1, 3, 32, 40)
    negative = Bright()
    negative.forward = lambda images: -3 * Bright.forward(negative, images)
    both = SegmentationNetwork([Bright(), negative], torch.device("cpu")).logits(images)
    torch.testing.assert_close(both, -Bright()(images))


def test_every_pixel_takes_the_highest_logit_of_each_class_over_scales():
    rgb = np.random.default_rng(2).integers(0, 256, (48, 64, 3), np.uint8)
    images = NETWORK.normalised(rgb)
    first, half = Bright()(images), Bright()(nn.functional.interpolate(images, scale_factor=0.5, mode="bilinear"))
    highest = torch.maximum(first, upsampled(half, first.shape[2:]))
    found = segmented(NETWORK, rgb, (0.5,))
    expected = upsampled(highest, (48, 64)).softmax(1)[0]
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4, atol=1e-6)
    assert (found.first == upsampled(first, (48, 64)).argmax(1)[0].numpy()).all()


def test_scores_are_those_of_the_files_and_a_finished_shard_stays(val, tmp_path):
    part, ticks = Part("val-00000", [0, 1, 2]), []
    made = answers(val, tmp_path / "masks")
    made.make(part, lambda: ticks.append(1))
    write_mask_index(tmp_path / "masks", val)
    masks, reader, expected = MaskIndex(tmp_path / "masks", val), Reader(val), Confusion(CLASSES)
    for row in part.rows:
        expected.update(decode_mask(masks.read(row, "mask")), reader.truth(row))
    scores = Scores(CLASSES)
    scores.add(made.scores_file(part))
    assert (scores.final.confusion.counts == expected.counts).all() and scores.final.pictures == 3
    assert (scores.multi.counts == expected.counts).all()  # without a CRF
    before = (tmp_path / "masks" / "val-00000.tar").stat().st_mtime_ns
    made.make(part, lambda: ticks.append(1))
    assert (tmp_path / "masks" / "val-00000.tar").stat().st_mtime_ns == before
    assert len(ticks) == 6


def test_pictures_shrunk_for_the_test_have_masks_of_their_own_size(val, tmp_path):
    made = answers(val, tmp_path / "masks", long_side=64)
    made.make(Part("val-00000", [0]), lambda: None)
    write_mask_index(tmp_path / "masks", val)
    mask = decode_mask(MaskIndex(tmp_path / "masks", val).read(0, "mask"))
    assert mask.shape == Reader(val).picture(0).shape[:2]


def test_a_picture_that_cannot_be_read_has_a_mask_that_says_nothing(val, tmp_path):
    record = val.samples[1]["image"]
    shard = val.path / val.shards[0].name
    content = bytearray(shard.read_bytes())
    content[int(record["offset"]) + 200] ^= 255
    shard.write_bytes(content)
    made = answers(val, tmp_path / "masks")
    part = Part("val-00000", [0, 1, 2])
    made.make(part, lambda: None)
    write_mask_index(tmp_path / "masks", val)
    masks = MaskIndex(tmp_path / "masks", val)
    assert (decode_mask(masks.read(1, "mask")) == 255).all()
    scores = Scores(CLASSES)
    scores.add(made.scores_file(part))
    assert scores.final.pictures == 2


def test_a_large_picture_is_looked_at_with_so_many_pixels_and_its_mask_is_whole(val, tmp_path):
    looked_at = []

    class Watched(Bright):
        def forward(self, images):
            looked_at.append(images.shape[2] * images.shape[3])
            return super().forward(images)

    made = answers(val, tmp_path / "masks")
    small = made.config.model_copy(update={"max_pixels": 10_000, "scales": ()})  # fewer than a config may ask for
    network = SegmentationNetwork([Watched()], torch.device("cpu"))
    replace(made, network=network, config=small).make(Part("val-00000", [0, 1, 2]), lambda: None)
    write_mask_index(tmp_path / "masks", val)
    masks, reader = MaskIndex(tmp_path / "masks", val), Reader(val)
    assert all(9_000 < pixels <= 10_000 for pixels in looked_at) and len(looked_at) == 3
    assert all(decode_mask(masks.read(row, "mask")).shape == reader.size(row) for row in range(3))
