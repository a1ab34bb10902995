"""The kernels on a GPU: the reference's values and gradients, NaN that stays NaN, graphs that read their own call."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import kernels
from kernels import graphs
from kernels.ops.affinity import function, reference

SHAPES = {"voc": (20, 16, 320), "coco": (80, 16, 320), "odd": (7, 3, 200), "many classes": (90, 2, 104)}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # of the largest value
OPS = ("foreground", "erase", "transfer", "transfer16", "align", "seg_loss", "par", "pyramid_gate")


@pytest.fixture(scope="module")
def ops():
    """The benchmark's operations, whose inputs have no ties."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
        return import_module("op_cases")


@pytest.fixture(scope="module", params=SHAPES)
def shapes(request) -> tuple[int, int, int]:
    return SHAPES[request.param]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("op", OPS)
def test_values_and_gradients_are_the_references(ops, shapes, op, dtype):
    classes, pictures, size = shapes
    inputs = ops.Inputs(classes, torch.device("cuda"), getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[dtype]),
                        pictures, size)  # fmt: skip
    case = ops.cases(inputs)[op]
    expected = ops.run(case, ops.reference_of(case))
    found = ops.in_mode("triton", lambda: ops.run(case, kernels))
    assert ops.disagreement(case, found, expected) <= TOLERANCE[dtype]


def test_the_same_inputs_give_the_same_bits(ops):
    case_of = ops.cases(ops.Inputs(20, torch.device("cuda"), torch.float32, 4, 160))
    for case in case_of.values():
        first, second = (ops.in_mode("triton", lambda case=case: ops.run(case, kernels)) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_nan_in_the_cam_reaches_every_loss_and_score():
    cam, labels = torch.rand(2, 3, 16, 16, device="cuda"), torch.ones(2, 3, device="cuda")
    cam[:, 1, 4, 5] = torch.nan
    other, mixed = torch.rand_like(cam), torch.rand(2, 3, 32, 16, device="cuda")
    target = torch.ones(2, 64, 64, dtype=torch.uint8, device="cuda")
    gates = [tuple(torch.rand(2, 6, 3, 3, device="cuda") for _ in range(2)) for _ in range(3)]
    losses = [
        kernels.transfer_loss(cam, other, mixed, labels),
        kernels.align_loss(other, cam, torch.ones_like(cam[:, :1]), labels),
        kernels.seg_loss(torch.cat([cam, cam[:, :1]], dim=1), target, None, None)[0],
        kernels.pyramid_gate(cam, gates)[1].sum(),
    ]
    assert all(torch.isnan(loss) for loss in losses)
    assert kernels.foreground(cam, labels, (64, 64)).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replayed_graph_reads_the_inputs_of_its_own_call(dtype):
    for _ in range(4):
        images, masks = torch.rand(2, 3, 40, 50, device="cuda"), torch.rand(2, 6, 40, 50, device="cuda", dtype=dtype)
        assert_refined(images, masks, rtol=1e-4 if dtype == torch.float32 else 2e-2)


def test_results_outlive_later_calls_and_graphs_are_bounded():
    images = torch.rand(1, 3, 24, 24, device="cuda")
    masks = [torch.rand(1, 8 * n, 24, 24, device="cuda") for n in range(1, graphs.KEPT + 3) for _ in range(3)]
    refined = [function.par(images, mask) for mask in masks]
    for mask, result in zip(masks, refined, strict=True):
        torch.testing.assert_close(result, reference.par(images, mask), rtol=1e-4, atol=1e-5)
    assert len(graphs._own.kept) <= graphs.KEPT


def test_graphs_that_share_memory_do_not_disturb_each_other():
    images, small, large = (torch.rand(1, n, 24, 24, device="cuda") for n in (3, 4, 16))
    for _ in range(4):
        assert_refined(images, small)
        assert_refined(images, large)


def test_a_graph_recorded_in_inference_mode_serves_later_calls():
    images, masks = torch.rand(1, 3, 20, 28, device="cuda"), torch.rand(1, 4, 20, 28, device="cuda")
    with torch.inference_mode():
        for _ in range(3):
            function.par(images, masks)
    assert_refined(images, masks)
    assert_refined(torch.rand_like(images), masks)


def test_par_can_be_part_of_a_larger_graph():
    images, masks = torch.rand(1, 3, 24, 24, device="cuda"), torch.rand(1, 4, 24, 24, device="cuda")
    expected = function.par(images, masks)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        refined = function.par(images, masks)
    graph.replay()
    assert torch.equal(refined, expected)


def assert_refined(images: torch.Tensor, masks: torch.Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(function.par(images, masks), reference.par(images, masks), rtol=rtol, atol=1e-5)
