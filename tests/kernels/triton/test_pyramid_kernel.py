"""pyramid_gate as kernels, in Triton's interpreter: the published numbers, and the reference's for any shape."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels import tuning
from kernels.ops.pyramid import function, reference
from kernels.ops.pyramid.reference import LEVELS

NAMES = [[f"gconv{i}.att_{sign}.0.weight" for sign in "pn"] for i in (1, 2, 3)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def take_blocks(patch: pytest.MonkeyPatch, side: int, classes: int, pixels: int, span: int) -> None:
    """Other block sizes than the table's."""
    gate = {"CLASSES": classes, "BLOCK": pixels}
    weight = {"CLASSES": classes, "BLOCK": span // 2, "SPAN": span}
    rows = {"gate_forward": gate, "gate_backward": gate, "weight_backward": weight}
    for kernel, row in (rows | {"pool": {"BLOCK": side}, "pool_backward": {"BLOCK": side}}).items():
        patch.setitem(tuning.DEFAULT, kernel, tuning.DEFAULT[kernel] | row)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Larger blocks, for the interpreter's sake."""
    with pytest.MonkeyPatch.context() as patch:
        take_blocks(patch, 32, 32, 256, 256)
        yield


def random_gates(classes: int, dtype: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    return [[(torch.randn(2, 2 * classes, 3, 3) * 0.1).to(dtype) for _ in "pn"] for _ in NAMES]


def outputs_and_gradients(path, cam, gates, through: str = "both"):
    """Both outputs, then the gradients of cam and gates of an uneven mixture of what `through` names."""
    cam, gates = cam.detach().requires_grad_(), [[gate.detach().requires_grad_() for gate in pair] for pair in gates]
    gpp, scores = path.pyramid_gate(cam, gates)
    uneven = torch.linspace(-1, 1, gpp.numel()).view_as(gpp)
    parts = {"gpp": 3 * (uneven * gpp).sum(), "scores": 5 * (scores.sin() * scores).sum()}
    mixture = sum(parts.values()) if through == "both" else parts[through]
    leaves = [cam, *(gate for pair in gates for gate in pair)]
    return [gpp.detach(), scores.detach(), *torch.autograd.grad(mixture, leaves)]


def assert_equal_to_the_reference(cam, gates, through: str = "both", tolerance: float = 1e-5):
    """Each tensor to `tolerance` of its own largest entry: gradients are sums over thousands of terms of any sign."""
    ours, plain = (outputs_and_gradients(path, cam, gates, through) for path in (function, reference))
    for mine, expected in zip(ours, plain, strict=True):
        assert mine.dtype == expected.dtype
        largest = max(float(expected.abs().max()), 1e-6)
        torch.testing.assert_close(mine / largest, expected / largest, rtol=tolerance, atol=tolerance)


def test_head_and_gradients_match_the_published_numbers(golden, monkeypatch):
    take_blocks(monkeypatch, 64, 32, 2048, 1024)
    arrays = {name: torch.from_numpy(array) for name, array in golden("gpp_head").items()}
    cam = arrays["a_cam"].requires_grad_()
    gates = [[arrays[f"w_{name}"].requires_grad_() for name in pair] for pair in NAMES]
    gpp, scores = function.pyramid_gate(cam, gates)
    (scores * arrays["a_R"]).sum().backward()
    torch.testing.assert_close(gpp.detach(), arrays["a_gpp"], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(scores.detach(), arrays["a_outs"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cam.grad, arrays["a_grad_cam"], rtol=1e-4, atol=1e-6)
    for pair, names in zip(gates, NAMES, strict=True):
        for gate, name in zip(pair, names, strict=True):
            torch.testing.assert_close(gate.grad, arrays[f"a_grad_{name}"], rtol=1e-4, atol=1e-6)


def free_of_ties(cam: torch.Tensor) -> bool:
    """No level is 0 but for rounding, where either slope of a relu is right: halves of bf16 often cancel exactly."""
    levels = (F.interpolate(F.adaptive_avg_pool2d(cam.float(), k), cam.shape[2:], mode="bilinear") for k in LEVELS)
    return all(float(level.abs().min()) > 1e-6 for level in levels)


@settings(max_examples=5)
@given(
    st.sampled_from([(1, 1), (2, 3), (5, 1), (1, 7)]), st.integers(1, 19), st.integers(1, 19),
    st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_head_and_gradients_equal_the_reference(size, height, width, dtype, gate_dtype, channels_last, seed):
    (batch, classes), _ = size, torch.manual_seed(seed)
    cam_seg = torch.randn(batch, classes + 1, height, width).to(dtype)
    cam_seg = cam_seg.contiguous(memory_format=torch.channels_last) if channels_last else cam_seg
    assume(free_of_ties(cam_seg[:, 1:]))
    tolerance = max(TOLERANCE[dtype], TOLERANCE[gate_dtype])
    assert_equal_to_the_reference(cam_seg[:, 1:], random_gates(classes, gate_dtype), tolerance=tolerance)


def test_maps_that_are_zero_get_the_reference_gradients_among_90_classes():
    torch.manual_seed(0)
    cam = torch.randn(1, 90, 2, 5)
    cam[:, ::9] = 0
    assert_equal_to_the_reference(cam, random_gates(90))


def test_maps_and_classes_beyond_one_block_equal_the_reference(monkeypatch):
    take_blocks(monkeypatch, 16, 16, 16, 32)
    torch.manual_seed(0)
    assert_equal_to_the_reference(torch.randn(1, 17, 2, 18), random_gates(17))


@pytest.mark.parametrize("through", ["gpp", "scores"])
def test_either_output_alone_carries_its_gradient(through):
    torch.manual_seed(0)
    assert_equal_to_the_reference(torch.randn(1, 2, 17, 5), random_gates(2), through)


def test_a_zero_cam_has_zero_gradients():
    ours = outputs_and_gradients(function, torch.zeros(1, 2, 5, 5), random_gates(2))
    assert all(not result.any() for result in ours)


def test_gates_in_channels_last_order_are_read_as_they_lie():
    torch.manual_seed(0)
    gates = [[gate.contiguous(memory_format=torch.channels_last) for gate in pair] for pair in random_gates(3)]
    assert_equal_to_the_reference(torch.randn(1, 3, 6, 6), gates)


@pytest.mark.parametrize("wanted", [[0], [4], [1, 6]], ids=["cam", "one gate", "two gates"])
def test_gradients_come_only_for_what_needs_them(wanted):
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 5, 7), *(gate for pair in random_gates(2) for gate in pair)]
    grads = []
    for path in (function, reference):
        cam, *flat = (tensor.detach().requires_grad_(number in wanted) for number, tensor in enumerate(inputs))
        path.pyramid_gate(cam, list(zip(flat[::2], flat[1::2], strict=True)))[1].sum().backward()
        grads.append([tensor.grad for tensor in (cam, *flat)])
    assert [number for number, grad in enumerate(grads[0]) if grad is not None] == wanted
    for number in wanted:
        torch.testing.assert_close(grads[0][number], grads[1][number], rtol=1e-5, atol=1e-6)


def test_autocast_does_not_lower_the_precision_of_the_head():
    cam, gates = torch.randn(1, 2, 5, 5), random_gates(2)
    with torch.autocast("cpu", torch.bfloat16):
        gpp, scores = function.pyramid_gate(cam, gates)
    assert torch.equal(scores, function.pyramid_gate(cam, gates)[1])
    assert gpp.dtype == scores.dtype == torch.float32


def test_a_head_needs_six_launches_and_seven_for_its_gradients(monkeypatch):
    started = []
    monkeypatch.setattr(function, "launch", lambda kernel, *_, **__: started.append(kernel.fn.__name__))
    gates = [[gate.requires_grad_() for gate in pair] for pair in random_gates(2)]
    _, scores = function.pyramid_gate(torch.zeros(1, 2, 4, 4, requires_grad=True), gates)
    assert started == ["pool", *["gate_forward"] * 4]  # and torch's sum
    started.clear()
    scores.sum().backward()
    assert started == [*["gate_backward"] * 4, "pool_backward", "weight_backward"]  # and torch's sum
