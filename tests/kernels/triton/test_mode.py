"""Mode `triton` runs kernels and nothing else: with every torch version broken, each public function still answers."""

import inspect
from importlib import import_module

import pytest
import torch

import kernels

OPS = ("affinity", "erasing", "pyramid", "segmentation", "transfer")
LABELS = torch.tensor([[1.0, 0, 1], [0, 1, 0]])


@pytest.fixture(autouse=True)
def launched(monkeypatch) -> list[str]:
    """The kernels that were started. References and torch paths raise."""
    names: list[str] = []
    kinds = {(op, kind): import_module(f"kernels.ops.{op}.{kind}")  # all, before one could import what is broken below
             for op in OPS for kind in ("reference", "eager", "function")}  # fmt: skip
    for (_, kind), module in kinds.items():
        if kind == "function":
            monkeypatch.setattr(module, "launch", recording(module.launch, names))
            continue
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__:
                monkeypatch.setattr(module, name, broken)
    monkeypatch.setenv("KTSE_KERNELS", "triton")
    return names


def recording(launch, names: list[str]):
    def record(kernel, *arguments, **constants):
        names.append(kernel.fn.__name__)
        launch(kernel, *arguments, **constants)

    return record


def broken(*_, **__):
    raise AssertionError("a torch version ran in mode triton")


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def counts_and_loss() -> list[torch.Tensor]:
    logits, target, foreground = maps(2, 4, 3, 3), torch.randint(0, 4, (2, 12, 12)), torch.rand(2, 1, 12, 12)
    counts = kernels.seg_counts(target, LABELS, foreground)
    total, terms = kernels.seg_loss(logits, target, LABELS, foreground, counts=counts)
    return [*torch.autograd.grad(total, [logits]), total, *terms.values(), counts]


def transfer_and_alignment() -> list[torch.Tensor]:
    a, b, mix = maps(2, 3, 3, 3), maps(2, 3, 3, 3), maps(2, 3, 6, 3)
    total = kernels.transfer_loss(a, b, mix, LABELS) + kernels.align_loss(a, b, torch.ones(2, 1, 3, 3), LABELS)
    return [*torch.autograd.grad(total, [a, b, mix]), total]


def gates() -> list[torch.Tensor]:
    cam, weights = maps(2, 3, 5, 5), [(maps(2, 6, 3, 3), maps(2, 6, 3, 3)) for _ in range(3)]
    gpp, scores = kernels.pyramid_gate(cam, weights)
    wanted = [cam, *(weight for pair in weights for weight in pair)]
    return [*torch.autograd.grad(gpp.sum() + scores.sum(), wanted), gpp, scores]


CALLS = {
    "foreground": lambda: [kernels.foreground(maps(2, 3, 3, 3), LABELS, (12, 12))],
    "erase": lambda: [kernels.erase(torch.randn(2, 3, 12, 12), maps(2, 3, 3, 3), LABELS, 0.6)],
    "par": lambda: [kernels.par(torch.rand(2, 3, 12, 12), torch.rand(2, 4, 12, 12), (1, 2), 2)],
    "seg_counts and seg_loss": counts_and_loss,
    "transfer_loss and align_loss": transfer_and_alignment,
    "pyramid_gate": gates,
}
LAUNCHES = {
    "foreground": ["extrema", "strongest"],
    "erase": ["extrema", "strongest"],
    "par": ["affinity", "propagate", "propagate"],
    "seg_counts and seg_loss": ["group_sizes", "tile_losses", "total_loss", "logit_grad"],
    "transfer_loss and align_loss": ["hinge_value", "hinge_value", "hinge_slope", "hinge_slope"],
    "pyramid_gate": [
        "pool", *["gate_forward"] * 4, *["gate_backward"] * 4, "pool_backward", "weight_backward",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_each_function_and_its_gradients_come_from_kernels(name, launched):
    assert all(torch.isfinite(result).all() for result in CALLS[name]())
    assert launched == LAUNCHES[name]


def test_the_calls_cover_every_public_function():
    called = {name for names in CALLS for name in names.split(" and ")}
    assert called == set(kernels.__all__) - {"mode", "set_mode"}


@pytest.mark.parametrize("op", OPS)
def test_the_launching_code_borrows_no_function_from_the_torch_versions(op):
    borrowed = inspect.getmembers(import_module(f"kernels.ops.{op}.function"), inspect.isfunction)
    assert not [name for name, function in borrowed if function.__module__.endswith(("reference", "eager"))]
