"""Multi-scale flipped inference against the published numbers, driven by the published code's tiny network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ktse_dist.inference.multiscale import CamNetwork, PictureCams, look, network_of, normalise
from ktse_dist.models.cam_head import CamHead

PUBLISHED = (0.5, 1.0, 1.5, 2.0)


def cams_of(network, rgb, labels, scales=PUBLISHED, resize="pillow") -> PictureCams:
    """Of one picture."""
    return look(network, rgb[None], scales, resize).cams(labels[None])[0]


@pytest.fixture(scope="module")
def case(golden):
    return golden("msf_infer")


@pytest.fixture(scope="module")
def network(case, tiny_network) -> CamNetwork:
    return tiny_network(case)


def test_cams_match_the_published_inference(case, network):
    result = cams_of(network, case["i0_rgb_u8"], case["i0_label"])
    np.testing.assert_array_equal(result.keys, case["i0_keys"])
    np.testing.assert_allclose(result.cams, case["i0_norm_cam"], rtol=1e-4, atol=2e-6)


def test_normalised_picture_matches_the_published_input(case, network):
    images = normalise(case["i0_rgb_u8"][None], network)
    np.testing.assert_allclose(images[0].numpy(), case["i0_scaled2"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("resize", ["pillow", "opencv"])
def test_a_batch_of_pictures_gives_each_what_it_gets_alone(case, network, resize):
    rgb = np.stack([case["i0_rgb_u8"], case["i0_rgb_u8"][::-1], case["i0_rgb_u8"][:, ::-1]])
    labels = np.zeros((3, 20), np.float32)
    labels[0, [3, 7, 11]] = labels[2, [0]] = 1  # the middle picture has no tag
    together = look(network, rgb, PUBLISHED, resize).cams(labels)
    for picture, tags, result in zip(rgb, labels, together, strict=True):
        alone = cams_of(network, picture, tags, resize=resize)
        np.testing.assert_array_equal(result.keys, np.flatnonzero(tags))
        np.testing.assert_allclose(result.cams, alone.cams, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(result.scores, alone.scores, rtol=1e-4, atol=1e-6)


def test_scores_are_the_mean_logits_over_scales_and_flips(case, network):
    rgb = case["i0_rgb_u8"]
    result = cams_of(network, rgb, case["i0_label"], scales=(0.5, 1))
    views = [torch.from_numpy(case[f"i0_scaled{index}"])[None] for index in range(4)]
    expected = torch.stack([network.scores(network.cam(view))[0] for view in views]).mean(0)
    np.testing.assert_allclose(result.scores, expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("resize", ["pillow", "opencv"])
def test_a_line_of_pixels_is_a_picture_at_every_scale(network, resize):
    line = np.zeros((300, 1, 3), np.uint8)
    assert cams_of(network, line, np.eye(20)[3], (0.25, 1.0), resize).cams.shape[1:] == (300, 1)


def test_mirrored_pictures_get_mirrored_cams(case, network):
    rgb, labels = case["i0_rgb_u8"], case["i0_label"]
    straight = cams_of(network, rgb, labels, scales=(1,))
    mirrored = cams_of(network, rgb[:, ::-1], labels, scales=(1,))
    np.testing.assert_allclose(mirrored.cams[:, :, ::-1], straight.cams, rtol=1e-4, atol=1e-6)


def test_bf16_stays_close_to_fp32(case, network):
    half = replace(network, bf16=True)
    exact = cams_of(network, case["i0_rgb_u8"], case["i0_label"])
    rough = cams_of(half, case["i0_rgb_u8"], case["i0_label"])
    assert 0 < np.abs(rough.cams - exact.cams).max() < 0.1


def test_our_models_background_channel_is_no_class():
    head = CamHead(channels=1, classes=2, hidden=1)
    with torch.no_grad():
        head.fc8.weight.fill_(1)
        head.fc9.weight.copy_(torch.tensor([7.0, 1.0, 2.0]).reshape(3, 1, 1, 1))
    network = network_of(backbone(), head)
    cam = network.cam(torch.full((1, 1, 4, 5), 3.0))
    scores = network.scores(cam)
    assert [plane.unique().item() for plane in cam[0]] == [3.0, 6.0]
    assert scores.shape == (1, 2)


def test_pictures_are_normalised_as_our_backbone_says():
    images = normalise(np.full((1, 1, 1, 3), 9, np.uint8), network_of(backbone(), CamHead(1, 2)))
    assert images.flatten().tolist() == pytest.approx([2, 7 / 5, 1])


def backbone() -> torch.nn.Module:
    """Features are the images themselves."""
    module = torch.nn.Identity()
    module.stride, module.mean, module.std = 1, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    return module
