"""Engines: one interface, the same numbers, states that fit each other. The trainings are in engine_runs.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import coverage
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ktse_dist.errors import UserError
from ktse_dist.training.engine import build_engine

SCRIPT = Path(__file__).with_name("engine_runs.py")
SETTINGS = Path(__file__).parents[2] / "pyproject.toml"
ENGINES = ["ddp", "zero1", "zero2", "zero3"]
LIMIT = 150  # seconds after which a run counts as hung


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with the states of all trainings: one process, then two, then four."""
    out = tmp_path_factory.mktemp("runs")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for workers, more in ((1, {}), (2, counted()), (4, {})):
        command = [sys.executable, SCRIPT, str(workers), out]
        subprocess.run(command, check=True, timeout=LIMIT, env=environment | more)
    return out


def counted() -> dict[str, str]:
    """Lets processes add to the coverage that this one measures, if it does; the pair of ranks runs every engine."""
    return {"COVERAGE_PROCESS_START": str(SETTINGS)} if coverage.Coverage.current() else {}


def state(runs: Path, name: str) -> dict[str, Tensor]:
    """Weights and momentum of a run, in one dict."""
    parts = {part: load_file(runs / f"{name}.{part}") for part in ("weights", "momentum")}
    return {f"{part}/{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}


def facts(runs: Path, workers: int) -> dict:
    return json.loads((runs / f"facts-{workers}.json").read_text())


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest |difference| / |expected| (norms) over tensors."""
    assert found.keys() == expected.keys()
    pairs = [(found[k].double(), expected[k].double()) for k in expected]
    return max(((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in pairs)


def identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("kind", ENGINES)
def test_two_workers_train_as_one_does(runs, kind):
    assert distance(state(runs, kind), state(runs, "torch")) <= 1e-5
    assert distance(state(runs, "torch"), state(runs, "torch-half")) > 0.1, "the training moved something"


@pytest.mark.parametrize("kind", ["zero1", "zero3"])
def test_four_workers_with_unequal_shares_train_as_one_does(runs, kind):
    assert distance(state(runs, f"{kind}-of-4"), state(runs, "torch")) <= 1e-5


@pytest.mark.parametrize("kind", ["torch", *ENGINES])
def test_a_stop_and_resume_changes_no_bit(runs, kind):
    assert identical(state(runs, f"{kind}-resumed"), state(runs, kind))


@pytest.mark.parametrize("kind", ENGINES)
def test_a_state_of_one_process_goes_on_in_any_engine(runs, kind):
    assert distance(state(runs, f"{kind}-from-torch"), state(runs, "torch")) <= 1e-5


def test_a_state_of_two_workers_goes_on_in_four(runs):
    assert distance(state(runs, "zero3-of-4-from-2"), state(runs, "torch")) <= 1e-5


@pytest.mark.parametrize("kind", ["torch", *ENGINES])
def test_weights_without_momentum_start_a_fresh_optimiser(runs, kind):
    forked, half = state(runs, f"{kind}-forked"), state(runs, "torch-half")
    momentum = [key for key in half if key.startswith("momentum/")]
    assert all(half[key].any() and not forked[key].any() for key in momentum)
    assert all(torch.equal(forked[key], half[key]) for key in half if key not in momentum)


def test_momentum_is_kept_for_exactly_the_trainable_parameters(runs):
    assert sorted(load_file(runs / "zero3.momentum")) == [
        "backbone.wide.bias",
        "backbone.wide.weight",
        "head.fc8.weight",
        "head.fc9.bias",
        "head.fc9.weight",
        "head.gate",
    ]


def test_the_modules_own_autocast_holds_under_deepspeed(runs):
    assert facts(runs, 2)["half precision"] == {"ddp": "torch.bfloat16", "zero3": "torch.bfloat16"}
    assert distance(state(runs, "zero3-bf16"), state(runs, "ddp-bf16")) <= 1e-4
    assert all(t.dtype == torch.float32 for k, t in state(runs, "zero3-bf16").items() if "num_batches" not in k)


def test_the_torch_engine_needs_neither_deepspeed_nor_ray_nor_a_process_group(runs):
    assert facts(runs, 1) == {"imported": [], "process group": False}


def test_deepspeed_compiles_nothing(runs):
    assert facts(runs, 2)["compiled helper"] is False


def test_a_step_that_deepspeed_skips_is_an_error(runs):
    assert facts(runs, 2)["not finite"].startswith("FloatingPointError: gradients are not finite")


def test_the_torch_engine_refuses_several_processes(runs):
    assert "use ddp or deepspeed" in facts(runs, 2)["torch engine"]


@pytest.mark.parametrize("name", ["ddp", "deepspeed"])
def test_engines_for_many_processes_say_when_there_are_none(name):
    with pytest.raises(UserError, match=r"engine.name: .* needs Ray workers"):
        build_engine(SimpleNamespace(name=name, zero=1), nn.Linear(2, 2), [], torch.device("cpu"))


FITTING = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("weights", "momentum", "message"),
    [
        (FITTING | {"extra": torch.ones(1)}, {}, "it has 'extra'"),
        ({"weight": FITTING["weight"]}, {}, "it lacks 'bias'"),
        (FITTING | {"weight": torch.ones(2, 4)}, {}, r"'weight' has shape \[2, 4\], this network's has \[2, 3\]"),
        (FITTING, {"bias": torch.ones(2)}, "momentum for 'bias', which is not trainable"),
    ],
)
def test_a_state_of_another_network_is_refused_and_changes_nothing(weights, momentum, message):
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    groups = [{"params": [module.weight], "weight_decay": 0.0}]
    engine = build_engine(SimpleNamespace(name="torch", zero=1), module, groups, torch.device("cpu"))
    before = module.weight.clone()
    with pytest.raises(UserError, match=message):
        engine.load(weights, momentum)
    assert torch.equal(module.weight, before)
