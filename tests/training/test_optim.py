"""Groups, schedule and SGD against the published optimiser."""

import numpy as np
import pytest
import torch
from torch import nn

from ktse_dist.training.engine.replicated import TorchEngine
from ktse_dist.training.optim import parameter_groups, poly


class Tiny(nn.Module):
    """The golden tiny network's parameters: conv1a and bn7 frozen, one bias, a head of eight weights."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "conv1a": nn.Conv2d(3, 12, 3, bias=False).requires_grad_(False),
                "b2": nn.Conv2d(12, 16, 3, bias=False),
                "b3": nn.Conv2d(16, 24, 3),
                "b7": nn.Conv2d(24, 32, 1, bias=False),
                "bn7": nn.BatchNorm2d(32).requires_grad_(False),
            }
        )
        self.head = nn.ParameterDict({name: nn.Parameter(torch.ones(2)) for name in "abcdefgh"})


def test_groups_are_the_published_ones_without_the_frozen_parameter(golden):
    groups = parameter_groups(Tiny())
    weights = sum(len(g["params"]) for g in groups if g["rate"] == 1)
    biases = sum(len(g["params"]) for g in groups if g["rate"] == 2)
    assert [weights + 1, biases, 0, 0] == golden("step")["group_sizes"].tolist()  # + 1: conv1a, frozen
    assert [g["names"][0] for g in groups] == ["backbone.b2.weight", "backbone.b3.bias", "head.a"]


def test_rates_and_decays_are_the_published_ones(golden):
    step, (weights, biases, head) = golden("step"), parameter_groups(Tiny())
    np.testing.assert_allclose([0.01 * weights["rate"], 0.01 * biases["rate"]], step["group_lr"][:2], rtol=1e-6)
    np.testing.assert_allclose([weights["weight_decay"], biases["weight_decay"]], step["group_wd"][:2], rtol=1e-6)
    assert (head["rate"], head["weight_decay"]) == (weights["rate"], weights["weight_decay"])


def test_only_the_heads_groups_are_marked_as_head():
    assert {name: g["head"] for g in parameter_groups(Tiny()) for name in g["names"]} == {
        "backbone.b2.weight": False,
        "backbone.b3.weight": False,
        "backbone.b3.bias": False,
        "backbone.b7.weight": False,
        **{f"head.{name}": True for name in "abcdefgh"},
    }


def test_poly_is_the_published_schedule_and_stays_put_past_the_horizon(golden):
    multiples = golden("poly_lr")["lr_mult"]
    np.testing.assert_allclose([poly(step, 100) for step in range(len(multiples))], multiples, rtol=1e-12)
    assert poly(100, 100) == poly(99, 100) == poly(10**6, 100) > 0


@pytest.mark.parametrize("name", ["w", "b"])
def test_twelve_updates_are_those_of_the_published_sgd(golden, name):
    trajectory = golden("poly_sgd")
    module = nn.Module()
    module.w = nn.Parameter(torch.from_numpy(trajectory["w0"].copy()))
    module.bias = nn.Parameter(torch.from_numpy(trajectory["b0"].copy()))
    engine = TorchEngine(module, parameter_groups(module), torch.device("cpu"))
    parameter = {"w": module.w, "b": module.bias}
    for step in range(12):
        for group in engine.groups:
            group["lr"] = 0.01 * group["rate"] * poly(step, 10)
            group["momentum"] = float(trajectory["momentum"])
        gradient = {key: torch.from_numpy(trajectory[f"g{key}{step}"]) for key in "wb"}
        engine.update(sum((parameter[key] * gradient[key]).sum() for key in "wb"))
        np.testing.assert_allclose(parameter[name].detach(), trajectory[f"{name}{step + 1}"], rtol=2e-6, atol=1e-7)
