import numpy as np
import pytest
import torch

from ktse_dist.models.cam_head import CamHead, PyramidGates


def test_gates_score_a_cam_as_published(golden):
    arrays = golden("gpp_head")
    gates = PyramidGates(20)
    names = {f"{part}{i}": f"w_gconv{i}.att_{part}.0.weight" for i in (1, 2, 3) for part in "pn"}
    gates.load_state_dict({ours: torch.from_numpy(arrays[theirs]) for ours, theirs in names.items()})
    gpp, scores = gates(torch.from_numpy(arrays["a_cam"]))
    np.testing.assert_allclose(gpp.detach().numpy(), arrays["a_gpp"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.detach().numpy(), arrays["a_outs"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 7, 80])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (14, 14)])
def test_any_number_of_classes_and_any_size(classes, size):
    head = CamHead(12, classes, hidden=8)
    cam_seg = head(torch.randn(2, 12, *size))
    gpp, scores = head.gates(cam_seg[:, 1:])
    assert cam_seg.shape == (2, classes + 1, *size)
    assert gpp.shape == (2, classes, *size) and scores.shape == (2, classes)


def test_the_tag_loss_reaches_every_weight_of_the_head():
    torch.manual_seed(0)
    head = CamHead(12, 3, hidden=8)
    _, scores = head.gates(head(torch.randn(2, 12, 9, 9))[:, 1:])
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_head_weights_are_xavier_uniform():
    torch.manual_seed(0)
    weight = CamHead(300, 20, hidden=100).fc8.weight
    bound = (6 / 400) ** 0.5
    assert weight.abs().max() <= bound and abs(weight.std().item() - bound / 3**0.5) < 0.01 * bound


def test_gates_are_parameters_of_their_own_module():
    """ZeRO-3 gathers a module's own parameters when it is called, and no others."""
    gates = PyramidGates(4)
    assert [name for name, _ in gates.named_parameters(recurse=False)] == ["p1", "n1", "p2", "n2", "p3", "n3"]
