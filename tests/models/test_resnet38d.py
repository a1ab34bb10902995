import numpy as np
import pytest
import torch

from ktse_dist.models.cam_head import CamHead
from ktse_dist.models.resnet38d import BasicBlock, Bottleneck, ResNet38d

LAYERS = ("conv1a", "b2_2", "b3_2", "b4_5", "b5_2", "b7", "bn7", "fc8")


@pytest.fixture(scope="module")
def meta_net():
    with torch.device("meta"):
        return ResNet38d(), CamHead(4096, 20)


def outputs_and_activations(backbone, head, images):
    kept, hooks = {}, []
    for name in LAYERS:
        layer = getattr(head if name == "fc8" else backbone, name)
        hooks.append(layer.register_forward_hook(lambda _, __, y, name=name: kept.update({f"act_{name}": y.clone()})))
    with torch.no_grad():
        cam_seg = head(backbone(images))
        gpp, scores = head.gates(cam_seg[:, 1:])
    for hook in hooks:
        hook.remove()
    return kept | {"cam_seg": cam_seg, "cam": cam_seg[:, 1:], "gpp": gpp, "outs": scores}


def passes_of(filled_net, golden, dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    """Per golden case: the outputs, and the layers' activations."""
    images = {case: torch.from_numpy(golden("net_gpp_tiny")[f"{case}_x"]).to(dtype) for case in "ab"}
    found = {case: outputs_and_activations(*(part.to(dtype) for part in filled_net), images[case]) for case in "ab"}
    for part in filled_net:
        part.float()
    return found


@pytest.fixture(scope="module")
def passes(filled_net, golden):
    return passes_of(filled_net, golden, torch.float32)


@pytest.fixture(scope="module")
def exact_passes(filled_net, golden):
    """Of fp32's rounding, which differs between processors, the published run's share alone is left."""
    return passes_of(filled_net, golden, torch.float64)


@pytest.mark.parametrize("case", "ab")
@pytest.mark.parametrize("output", ["cam_seg", "cam", "gpp", "outs"])
def test_network_gives_the_published_outputs(passes, exact_passes, golden, case, output):
    expected = golden("net_gpp_tiny")[f"{case}_{output}"]
    np.testing.assert_allclose(exact_passes[case][output].numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(passes[case][output].numpy(), expected, rtol=1e-4, atol=1e-5 * expected.std())


@pytest.mark.parametrize("case", "ab")
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_give_the_published_activations(passes, golden, case, layer):
    arrays, found = golden("net_gpp_tiny"), passes[case][f"act_{layer}"].contiguous()
    assert list(found.shape) == list(arrays[f"{case}_act_{layer}_shape"])
    scale = float(arrays[f"{case}_act_{layer}_std"])
    first = arrays[f"{case}_act_{layer}_first"]
    np.testing.assert_allclose(found.flatten()[:64].numpy(), first, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(found.std().item(), scale, rtol=1e-4)


def test_parameters_with_the_unused_norm_are_the_published_106_million(meta_net):
    entries = {name: t for module in meta_net for name, t in module.state_dict().items()}
    learned = [t for name, t in entries.items() if "running_" not in name and "num_batches" not in name]
    assert sum(t.numel() for t in learned) + 2 * 256 == 106_129_696


def test_43_of_51_weights_train(meta_net):
    weights = [p for module in meta_net for p in module.parameters()]
    assert (sum(p.requires_grad for p in weights), len(weights)) == (43, 51)
    assert sum(p.numel() for p in weights if p.requires_grad) == 105_260_512


def test_frozen_weights_are_the_published_ones(meta_net, golden_lines):
    frozen = {name for name, p in meta_net[0].named_parameters() if not p.requires_grad}
    line = next(line for line in golden_lines("net_gpp_info.txt") if line.startswith("frozen conv: "))
    assert frozen == set(line.removeprefix("frozen conv: ").split(", "))


def test_keys_switch_dropout_on():
    torch.manual_seed(0)
    block, x = Bottleneck(8, 16, dilation=1, first_use=0), torch.randn(2, 8, 5, 5)
    assert not torch.equal(block(x, torch.tensor([1, 2])), block(x, None))


def test_dropout_is_keyed_by_sample_not_by_place_in_the_batch():
    torch.manual_seed(0)
    block, x, keys = Bottleneck(8, 16, dilation=4, first_use=0), torch.randn(3, 8, 5, 5), torch.tensor([5, 6, 7])
    alone = block(x[2:], keys[2:])
    torch.testing.assert_close(block(x, keys)[2:], alone)


def test_training_mode_changes_nothing_without_keys():
    torch.manual_seed(0)
    block, x = BasicBlock(4, 6, 6, stride=2), torch.randn(2, 4, 9, 7)
    assert torch.equal(block.train()(x), block.eval()(x))


def test_the_backward_pass_ends_at_b3(meta_net):
    differentiable = {}
    hooks = [
        block.register_forward_hook(lambda _, __, y, name=name: differentiable.update({name: y.requires_grad}))
        for name, block in meta_net[0].named_children()
    ]
    meta_net[0](torch.empty(1, 3, 64, 64, device="meta"))
    for hook in hooks:
        hook.remove()
    assert [name for name, grad in differentiable.items() if not grad] == ["conv1a", "b2", "b2_1", "b2_2"]


@pytest.mark.parametrize("size", [(33, 47), (64, 8), (1, 1)])
def test_odd_sizes_round_up(meta_net, size):
    features = meta_net[0](torch.empty(1, 3, *size, device="meta"))
    assert features.shape == (1, 4096, -(-size[0] // 8), -(-size[1] // 8))
