"""pyramid_gate: the published numbers with all gradients, and one answer from both paths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ops.pyramid import eager, reference

PATHS = pytest.mark.parametrize("path", [reference, eager], ids=["reference", "eager"])
NAMES = [[f"gconv{i}.att_{sign}.0.weight" for sign in "pn"] for i in (1, 2, 3)]


def published(golden):
    """The arrays of the published head, and its gates as leaves."""
    arrays = {name: torch.from_numpy(array) for name, array in golden("gpp_head").items()}
    return arrays, [[arrays[f"w_{name}"].requires_grad_() for name in pair] for pair in NAMES]


@PATHS
def test_head_matches_the_published_numbers(golden, path):
    arrays, gates = published(golden)
    gpp, scores = path.pyramid_gate(arrays["a_cam"], gates)
    torch.testing.assert_close(gpp.detach(), arrays["a_gpp"], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(scores.detach(), arrays["a_outs"], rtol=1e-4, atol=1e-6)


@PATHS
def test_gradients_match_the_published_numbers(golden, path):
    arrays, gates = published(golden)
    cam = arrays["a_cam"].requires_grad_()
    (path.pyramid_gate(cam, gates)[1] * arrays["a_R"]).sum().backward()
    torch.testing.assert_close(cam.grad, arrays["a_grad_cam"], rtol=1e-4, atol=1e-6)
    for pair, names in zip(gates, NAMES, strict=True):
        for gate, name in zip(pair, names, strict=True):
            torch.testing.assert_close(gate.grad, arrays[f"a_grad_{name}"], rtol=1e-4, atol=1e-6)


def outputs_and_grads(path, cam, gates):
    """Both outputs, and the gradients of a mixture of them."""
    cam, gates = cam.clone().requires_grad_(), [[gate.clone().requires_grad_() for gate in pair] for pair in gates]
    gpp, scores = path.pyramid_gate(cam, gates)
    mixture = scores.square().sum() + gpp.square().mean()
    return [
        gpp.detach(),
        scores.detach(),
        *torch.autograd.grad(mixture, [cam, *(gate for pair in gates for gate in pair)]),
    ]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([1, 2, 20, 90]), st.integers(1, 23), st.integers(1, 23), st.integers(0, 2**31)
)
def test_fast_head_and_gradients_equal_the_reference(batch, classes, height, width, seed):
    torch.manual_seed(seed)
    cam = torch.randn(batch, classes, height, width).contiguous(memory_format=torch.channels_last)
    cam[:, :1] = 0
    gates = [[torch.randn(2, 2 * classes, 3, 3) * 0.1 for _ in "pn"] for _ in NAMES]
    fast, plain = (outputs_and_grads(path, cam, gates) for path in (eager, reference))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@PATHS
def test_autocast_does_not_lower_the_precision_of_the_head(path):
    cam, gates = torch.randn(1, 4, 9, 9), [[torch.randn(2, 8, 3, 3) for _ in "pn"] for _ in NAMES]
    with torch.autocast("cpu", torch.bfloat16):
        _, scores = path.pyramid_gate(cam, gates)
    torch.testing.assert_close(scores, path.pyramid_gate(cam, gates)[1], rtol=0, atol=0)


def test_a_head_first_used_for_inference_can_be_trained_later():
    cam, gates = torch.randn(1, 2, 19, 29), [[torch.randn(2, 4, 3, 3) for _ in "pn"] for _ in NAMES]
    with torch.inference_mode():
        eager.pyramid_gate(cam, gates)
    cam.requires_grad_()
    eager.pyramid_gate(cam, gates)[1].sum().backward()
    assert cam.grad.abs().sum() > 0
