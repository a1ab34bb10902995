"""DeepLabV2, against the published network."""

import numpy as np
import pytest
import torch

from ktse_dist.models.deeplab import DeepLab, centre, upsampled
from ktse_dist.models.efficientnet_lite import EfficientNetLite0
from ktse_dist.models.resnet import ResNet


@pytest.fixture(scope="module")
def published_net():
    with torch.device("meta"):
        return DeepLab(ResNet(101, 8, trained=True), 20)


def published(name: str) -> str:
    stem = name.startswith(("backbone.conv1.", "backbone.bn1."))
    return name.replace("backbone.", "backbone.stem_layer.") if stem else name


def test_names_and_shapes_are_the_published_ones(published_net, golden_lines):
    expected = dict(line.split("\t") for line in golden_lines("state_dict_names_deeplab.txt") if line)
    assert {published(n): str(tuple(t.shape)) for n, t in published_net.state_dict().items()} == expected
    assert sum(p.numel() for p in published_net.parameters()) == 44_048_532
    assert all(p.requires_grad for p in published_net.parameters())


def test_logits_are_the_published_ones(published_net, golden, golden_fill):
    state = {n: golden_fill(published(n), tuple(t.shape)) for n, t in published_net.state_dict().items()}
    for name in state:
        if name.endswith("bn3.weight"):
            state[name] *= 0.2  # tests/golden/README.md, section 15
    published_net.load_state_dict(state, assign=True)
    published_net.eval()
    arrays = golden("deeplabv2_tiny")
    for case in "ab":
        images = torch.from_numpy(arrays[f"{case}_x"])
        with torch.inference_mode():
            logits = published_net(images)
        np.testing.assert_allclose(logits, arrays[f"{case}_pre_logits"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(upsampled(logits, images.shape[2:]), arrays[f"{case}_logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "rates"), [(8, [6, 12, 18, 24]), (16, [3, 6, 9, 12])])
def test_the_small_network_looks_as_far_at_every_stride(stride, rates):
    with torch.device("meta"):
        net = DeepLab(EfficientNetLite0(stride), 20)
    assert [net.aspp.get_submodule(name).dilation[0] for name in net.aspp.branches] == rates
    assert net(torch.empty(1, 3, 64, 96, device="meta")).shape == (1, 21, 64 // stride, 96 // stride)


def test_a_centred_head_does_not_see_what_all_features_have_in_common():
    features = torch.rand(2, 40, 5, 7)
    torch.testing.assert_close(centre(features), centre(3 * features + 2), rtol=1e-3, atol=1e-4)
    assert centre(features).std(dim=1).mean().item() == pytest.approx(0.1, rel=0.02)
