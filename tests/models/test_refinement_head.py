"""IRN's branches: the published names, and sizes."""

import pytest
import torch
from torch import nn

from ktse_dist.config.method import Network
from ktse_dist.errors import UserError
from ktse_dist.models.efficientnet_lite import EfficientNetLite0
from ktse_dist.models.refinement import build_refinement, load_refinement, save_refinement
from ktse_dist.models.refinement_head import RefinementHead
from ktse_dist.models.resnet import ResNet
from ktse_dist.models.weights import save_tensors


def test_head_on_resnet50_has_the_published_names_shapes_and_counts(golden_lines):
    with torch.device("meta"):
        head = RefinementHead(ResNet.stage_channels, (4, 4, 8, 16, 16))
    lines = [line.split("\t") for line in golden_lines("state_dict_names_irn.txt")]
    expected = {name: shape for name, shape in lines if name.startswith(("edge_layers.", "dp_layers."))}
    assert {name: str(tuple(tensor.shape)) for name, tensor in head.state_dict().items()} == expected
    counts = [sum(p.numel() for p in part.parameters()) for part in (head.edge_layers, head.dp_layers)]
    assert counts == [125_409, 1_269_120]


@pytest.mark.parametrize("size", [(64, 96), (65, 47), (33, 18)])
@pytest.mark.parametrize("net", [lambda: ResNet(50, 16, dilate=False), lambda: EfficientNetLite0(16)])
def test_maps_are_the_picture_over_four_rounded_up(net, size):
    with torch.device("meta"):
        backbone = net()
        head = RefinementHead(backbone.stage_channels, backbone.stage_strides)
        stages = backbone.stages(torch.empty(1, 3, *size))
        edge, displacement = head(stages)
    assert [stage.shape[1] for stage in stages] == list(backbone.stage_channels)
    assert edge.shape == (1, 1, -(-size[0] // 4), -(-size[1] // 4))
    assert displacement.shape == (1, 2, *edge.shape[2:])


def test_the_last_stage_is_what_the_backbone_gives():
    net = ResNet(50, 16).eval()
    images = torch.rand(1, 3, 40, 33)
    torch.testing.assert_close(net.stages(images)[-1], net(images))


@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet_lite0"])
def test_a_saved_network_is_the_one_that_is_loaded(tmp_path, backbone):
    network = Network(backbone=backbone, weights="none")
    made = nn.ModuleDict(zip(("backbone", "head"), build_refinement(network), strict=True)).eval()
    save_refinement(tmp_path / "irn.safetensors", made.state_dict(), network, 96)
    loaded = load_refinement(tmp_path / "irn.safetensors")
    images = torch.rand(1, 3, 48, 40)
    with torch.no_grad():
        expected = made["head"].edge(made["backbone"].stages(images))
        torch.testing.assert_close(loaded.head.eval().edge(loaded.backbone.stages(images)), expected)
    assert loaded.least == 96


def test_another_file_is_no_refinement_network(tmp_path):
    save_tensors({"x": torch.zeros(1)}, tmp_path / "other.safetensors", {"format": "else"})
    with pytest.raises(UserError, match=r"other\.safetensors: not a refinement network"):
        load_refinement(tmp_path / "other.safetensors")
