"""Files of segmentation networks describe themselves, and nothing else is taken for one."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ktse_dist.config.method import Network
from ktse_dist.errors import UserError
from ktse_dist.models import build_deeplab
from ktse_dist.models.segmenter import load_segmenter, save_segmenter

SMALL = Network(weights="none")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    networks = nn.ModuleList([build_deeplab(SMALL, 3) for _ in range(2)])
    state = nn.ModuleDict({"networks": networks}).state_dict()
    save_segmenter(path, state, SMALL, ["a", "b", "c"], {"git": "1"})
    return path


def test_a_file_gives_back_its_networks(file):
    model, tensors = load_segmenter(file), load_file(file)
    assert model.classes == ["a", "b", "c"]
    for number, network in enumerate(model.networks):
        assert not network.training
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, tensors[f"networks.{number}.{name}"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": "another"}, "not a segmentation network"),
        ({"networks": "1000000"}, "claim 1000000 networks"),
        ({"networks": "1"}, "names differ"),
        ({"networks": "two"}, "metadata cannot be read"),
        ({"classes": '["a"]'}, "has shape"),
        ({"backbone": "vgg"}, "metadata cannot be read"),
    ],
)
def test_other_files_are_refused(file, tmp_path, changed, said):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        about = dict(opened.metadata())
    save_file(load_file(file), tmp_path / "other.safetensors", about | changed)
    with pytest.raises(UserError, match=said):
        load_segmenter(tmp_path / "other.safetensors")
