"""Activation checkpointing: the same gradients from less memory."""

import pytest
import torch

from ktse_dist.config.method import Network
from ktse_dist.models import build
from ktse_dist.models.recompute import recompute_blocks

BACKBONES = [("efficientnet_lite0", 16), ("resnet50", 16), ("resnet38d", 8)]


@pytest.mark.parametrize(("name", "stride"), BACKBONES)
def test_recomputed_blocks_give_the_same_gradients_noise_included(name, stride):
    backbone, _ = build(Network(backbone=name, output_stride=stride, weights="none"), 3)
    images, keys = torch.randn(2, 3, 40, 40), torch.tensor([5, 77])
    kept = gradients(backbone, images, keys)
    recompute_blocks(backbone)
    recomputed = gradients(backbone, images, keys)
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_recomputed_blocks_keep_less_for_the_backward_pass():
    backbone, _ = build(Network(weights="none"), 3)
    kept = saved_bytes(backbone)
    recompute_blocks(backbone)
    assert saved_bytes(backbone) < kept / 3


def test_names_of_weights_stay_as_they_are():
    backbone, _ = build(Network(weights="none"), 3)
    names = list(backbone.state_dict())
    recompute_blocks(backbone)
    assert list(backbone.state_dict()) == names


def gradients(backbone, images, keys) -> dict[str, torch.Tensor]:
    backbone.zero_grad()
    backbone(images, keys).square().mean().backward()
    return {name: weight.grad.clone() for name, weight in backbone.named_parameters() if weight.grad is not None}


def saved_bytes(backbone) -> int:
    """Bytes of the tensors that autograd keeps after a forward pass, each storage once, weights left out."""
    weights = {weight.data_ptr() for weight in backbone.state_dict().values()}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        backbone(torch.randn(2, 3, 64, 64))
    return sum(kept.values())
