"""Pictures in tiles: all cells once, the same maps as of the whole, memory of a tile."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ktse_dist import models
from ktse_dist.config.method import Network
from ktse_dist.inference.multiscale import CamNetwork, look, network_of
from ktse_dist.inference.tiles import ALIGN, OVERLAP, largest, spans, tiled


@given(st.integers(1, 6000), st.integers(500, 1500), st.sampled_from([8, 16]))
def test_tiles_keep_every_cell_once_with_context_around_it(length, most, stride):
    found = spans(length, most, stride)
    kept = [cell for one in found for cell in range(one.first, one.last)]
    assert kept == list(range(-(-length // stride)))
    for one in found:
        assert 0 <= one.start < one.end <= length and one.end - one.start <= most
        assert one.start % ALIGN == 0 and (length - one.end) % ALIGN == 0
        assert one.start == 0 or one.first * stride - one.start >= OVERLAP
        assert one.end == length or one.end - one.last * stride >= OVERLAP


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(250_000, 2_000_000))
def test_no_tile_has_more_pixels_than_allowed(height, width, most):
    tall, wide = largest(height, width, most)
    assert min(tall, height) * min(wide, width) <= most
    tiles = [(y, x) for y in spans(height, tall, 16) for x in spans(width, wide, 16)]
    assert max((y.end - y.start) * (x.end - x.start) for y, x in tiles) <= most


@settings(max_examples=10)
@given(st.integers(400, 900), st.integers(400, 900), st.sampled_from([8, 16]))
def test_a_network_that_sees_less_far_than_the_overlap_gives_the_map_of_the_whole(height, width, stride):
    torch.manual_seed(0)
    weights = [torch.randn(2, 3 if n == 0 else 2, 3, 3) for n in range({8: 3, 16: 4}[stride])]

    def see(rgb: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255
        for weight in weights:
            x = F.conv2d(x, weight, stride=2, padding=1).relu()
        return x[0]

    rgb = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    whole = see(rgb)
    assert torch.allclose(tiled(see, rgb, stride, 250_000), whole, rtol=1e-4, atol=1e-4 * whole.max().item())


@pytest.fixture(scope="module")
def lite0() -> CamNetwork:
    torch.manual_seed(0)
    return network_of(*models.build(Network(weights="none"), 3))


@torch.no_grad()
@pytest.mark.parametrize("size", [(510, 611), (511, 610)])
def test_our_small_network_pads_even_and_odd_sizes_of_tiles_as_of_the_whole(size):
    """Its first blocks, which see less far than the overlap."""
    torch.manual_seed(0)
    backbone, _ = models.build(Network(weights="none"), 3)
    backbone.blocks = nn.Sequential(*backbone.blocks)

    def see(rgb: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255
        return backbone.blocks[:5](F.relu6(backbone.stem(pixels)))[0]

    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    whole = see(rgb)
    assert torch.allclose(tiled(see, rgb, 8, 250_000), whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


def test_the_network_never_sees_more_than_a_tile(lite0):
    seen = []
    # at 0.6 a picture is smaller than a tile, and with its mirror image larger
    look(spied(lite0, seen), np.zeros((1, 700, 900, 3), np.uint8), (0.6, 1.0), "opencv", 250_000)
    assert len(seen) > 8 and max(seen) <= 250_000


def test_a_batch_of_small_pictures_is_seen_at_once_whatever_they_come_to(lite0):
    seen = []
    look(spied(lite0, seen), np.zeros((12, 100, 120, 3), np.uint8), (1.0,), "opencv", 250_000)
    assert seen == [2 * 12 * 100 * 120]


def spied(network, seen: list[int]):
    """A network that writes down how many pixels it is shown at once."""

    def cam(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape[0] * images.shape[2] * images.shape[3])
        return F.avg_pool2d(images, 16, ceil_mode=True)

    return replace(network, cam=cam, scores=lambda cam: cam.mean((2, 3)))


def test_a_picture_within_the_bound_is_seen_as_without_one(lite0):
    picture = np.random.default_rng(0).integers(0, 256, (1, 100, 120, 3), np.uint8)
    free, bound = (look(lite0, picture, (1.0, 1.5), "opencv", most) for most in (None, 250_000))
    assert all(torch.equal(one, other) for one, other in zip(free.views, bound.views, strict=True))


def test_many_cams_are_enlarged_in_parts_with_the_same_numbers(lite0, monkeypatch):
    looks = look(lite0, np.random.default_rng(0).integers(0, 256, (1, 60, 80, 3), np.uint8), (1.0,), "opencv")
    whole = looks.cams(np.ones((1, 3)))[0].cams
    monkeypatch.setattr("ktse_dist.inference.multiscale.AT_ONCE", 60 * 80)
    parts = looks.cams(np.ones((1, 3)))[0].cams
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6)  # torch chooses how to enlarge by the number of maps
