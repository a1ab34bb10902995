"""Normalisation and its published inverse."""

import numpy as np
import torch

from ktse_dist.method.pixels import denormalise, inside_mask, normalise

MEAN = tuple(255 * m for m in (0.485, 0.456, 0.406))
STD = tuple(255 * s for s in (0.229, 0.224, 0.225))


def test_every_grey_level_comes_back_truncated_as_published(golden):
    arrays = golden("denorm_roundtrip")
    levels = denormalise(torch.from_numpy(arrays["normalised"]), MEAN, STD, truncated=True) * 255
    published_rgb = arrays["denorm_u8"][:, ::-1]  # the published code swaps to BGR; PAR averages over channels
    np.testing.assert_array_equal(levels.round().numpy().astype(np.uint8), published_rgb)


def test_the_exact_inverse_loses_nothing(golden):
    arrays = golden("denorm_roundtrip")
    levels = denormalise(torch.from_numpy(arrays["normalised"]), MEAN, STD, truncated=False) * 255
    np.testing.assert_allclose(levels.numpy(), arrays["rgb_u8"], atol=1e-3)


def test_normalisation_matches_the_published_one(golden):
    arrays = golden("denorm_roundtrip")
    whole = torch.tensor([[0, 0, 1, 256]])
    image = normalise(torch.from_numpy(arrays["rgb_u8"]), whole, MEAN, STD)
    np.testing.assert_allclose(image.numpy(), arrays["normalised"], rtol=1e-4, atol=1e-6)


def test_the_empty_canvas_becomes_the_mean_colour():
    inside = torch.tensor([[1, 2, 3, 4]])
    image = normalise(torch.full((1, 3, 5, 6), 255, dtype=torch.uint8), inside, MEAN, STD)
    assert (image != 0).sum() == 3 * 2 * 2
    assert inside_mask(inside, 5, 6).nonzero().tolist() == [[0, 0, y, x] for y in (1, 2) for x in (2, 3)]
