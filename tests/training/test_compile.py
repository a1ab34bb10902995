"""train.compile: the backbone is compiled whole, in all shapes of a run, and computes the same."""

import pytest
import torch
from torch._dynamo.utils import counters

from ktse_dist import models
from ktse_dist.config.method import Network


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stride"), [("efficientnet_lite0", 16), ("resnet38d", 8)])
def test_a_compiled_backbone_gives_the_same_gradients_without_a_break(name, stride):
    backbone, _ = models.build(Network(backbone=name, output_stride=stride, weights="none"), 3)
    plain = [gradients(backbone, pictures) for pictures in (2, 1)]
    counters.clear()
    backbone.compile(dynamic=False)
    compiled = [gradients(backbone, pictures) for pictures in (2, 1)]
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]
    for found, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def gradients(backbone, pictures: int) -> dict[str, torch.Tensor]:
    images = torch.linspace(-2, 2, pictures * 3 * 48 * 48).view(pictures, 3, 48, 48)
    backbone.zero_grad()
    backbone(images, torch.arange(pictures)).square().mean().backward()
    return {name: weight.grad.clone() for name, weight in backbone.named_parameters() if weight.grad is not None}
