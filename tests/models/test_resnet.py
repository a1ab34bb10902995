"""ResNet as a backbone, against the features of the published DeepLab and torchvision's names."""

import numpy as np
import pytest
import torch

from ktse_dist.models.resnet import Bottleneck, ResNet


@pytest.fixture(scope="module")
def meta_nets():
    with torch.device("meta"):
        return {(depth, stride): ResNet(depth, stride) for depth in (50, 101) for stride in (8, 16, 32)}


@pytest.fixture(scope="module")
def features(golden, golden_fill):
    """Layer4 of ResNet-101 at stride 8 on the golden pictures, with the golden weights."""
    with torch.device("meta"):
        net = ResNet(101, 8)
    state = {name: golden_fill(published(name), tuple(tensor.shape)) for name, tensor in net.state_dict().items()}
    for name in state:
        if name.endswith("bn3.weight"):
            state[name] *= 0.2  # tests/golden/README.md, section 15
    net.load_state_dict(state, assign=True)
    arrays = golden("deeplabv2_tiny")
    with torch.no_grad():
        return {case: net(torch.from_numpy(arrays[f"{case}_x"])) for case in "ab"}


def published(name):
    return f"backbone.stem_layer.{name}" if name.startswith(("conv1.", "bn1.")) else f"backbone.{name}"


@pytest.mark.parametrize("case", "ab")
def test_resnet101_gives_the_published_features(features, golden, case):
    arrays, found = golden("deeplabv2_tiny"), features[case].contiguous()
    np.testing.assert_allclose(found.flatten()[:64].numpy(), arrays[f"{case}_feat_first"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.std().item(), arrays[f"{case}_feat_std"], rtol=1e-5)


def test_resnet50_has_the_names_and_shapes_of_the_published_irn(meta_nets, golden_lines):
    lines = [line.split("\t") for line in golden_lines("state_dict_names_irn.txt") if line.startswith("resnet50.")]
    expected = {line[0].removeprefix("resnet50."): line[1] for line in lines if "num_batches" not in line[0]}
    assert {n: str(tuple(t.shape)) for n, t in meta_nets[50, 16].state_dict().items()} == expected


@pytest.mark.parametrize(("depth", "expected"), [(50, 25_557_032), (101, 44_549_160)])
def test_parameters_are_torchvision_s_without_the_classifier(meta_nets, depth, expected):
    learned = [t for name, t in meta_nets[depth, 16].state_dict().items() if "running_" not in name]
    assert sum(t.numel() for t in learned) == expected - 2048 * 1000 - 1000


@pytest.mark.parametrize("size", [(64, 96), (65, 47), (33, 8)])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_features_are_the_picture_over_the_stride_rounded_up(meta_nets, stride, size):
    found = meta_nets[50, stride](torch.empty(2, 3, *size, device="meta"))
    assert found.shape == (2, 2048, -(-size[0] // stride), -(-size[1] // stride))


def test_strides_change_no_weight_s_name_or_shape(meta_nets):
    shapes = [{n: t.shape for n, t in meta_nets[50, stride].state_dict().items()} for stride in (8, 16, 32)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_the_backward_pass_ends_at_layer2(meta_nets):
    net = meta_nets[50, 16]
    net(torch.empty(1, 3, 64, 64, device="meta")).sum().backward()
    without = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is None}
    assert without == {"conv1", "layer1"}
    assert all(p.requires_grad == (p.grad is not None) for p in net.parameters())


def test_dilation_is_a_stride_seen_at_every_position():
    """A block that dilates instead of striding gives, shifted pictures interleaved, what dilation 1 gives each."""
    torch.manual_seed(0)
    plain, dilated = Bottleneck(16, 4), Bottleneck(16, 4, dilation=2)
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 16, 12, 10)
    found = dilated(x)
    for row in range(2):
        for column in range(2):
            torch.testing.assert_close(found[:, :, row::2, column::2], plain(x[:, :, row::2, column::2]))


def test_channels_last_survives_a_block():
    x = torch.randn(2, 16, 12, 10).contiguous(memory_format=torch.channels_last)
    assert Bottleneck(16, 8, stride=2)(x).is_contiguous(memory_format=torch.channels_last)
