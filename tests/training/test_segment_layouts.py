"""Stage 2 gives the same network on one process, on two, and with its state cut to pieces."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ktse_dist.run_folder import RunFolder

SCRIPT = Path(__file__).with_name("segment_runs.py")
DDP, ZERO2, ZERO3 = "engine.name=ddp", "engine.name=deepspeed,engine.zero=2", "engine.name=deepspeed,engine.zero=3"
ORDINARY = "model.backbone=resnet50,model.weights=none,train.epochs=2,train.phase1_epochs=1,optimiser.phase1.lr=0.001"
pytestmark = pytest.mark.slow


@pytest.fixture
def start(masked_run, tmp_path):
    def run(world: int, *jobs: str) -> list[dict[str, torch.Tensor]]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, SCRIPT, str(world), masked_run.path, tmp_path, *jobs]
        subprocess.run(command, check=True, timeout=900, env=environment)
        return [load_file(RunFolder(tmp_path / job.partition(":")[0]).model) for job in jobs]

    return run


def test_every_layout_trains_the_same_network(start):
    (expected,) = start(1, "one:engine.name=torch")
    for found in start(2, f"ddp:{DDP}", f"zero2:{ZERO2}", f"zero3:{ZERO3}"):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name] - tensor).norm() <= 1e-4 * max(tensor.norm(), 1e-6), name


def test_ordinary_batch_norms_have_the_same_statistics_on_every_rank(start):
    """Statistics of a whole rank, then their mean: another network than one process trains, but the same each time."""
    first, again = start(2, f"first:{DDP},{ORDINARY}", f"again:{DDP},{ORDINARY}")
    assert all(torch.equal(first[name], again[name]) for name in first)
    moved = first["networks.0.backbone.bn1.running_mean"]
    assert not torch.equal(moved, torch.zeros_like(moved))
