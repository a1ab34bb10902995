"""A run under Ray whose folder is an S3 address, from the command to its next one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.run_folder import RunFolder

LIMIT = 300  # seconds


@pytest.fixture
def environment(tmp_path, s3, monkeypatch) -> dict[str, str]:
    """Of processes that know the S3 server of the tests, and have a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/cache")
    s3.client.create_bucket(Bucket="bucket")
    return dict(os.environ)


@pytest.mark.slow
def test_two_workers_leave_a_run_and_its_fork_at_an_address(tmp_path, s3, environment):
    pack_stickers(tmp_path / "data", train=24, val=4, workers=1)
    keys = ["run.root=s3://bucket/runs", f"data.path={tmp_path}/data", "engine.name=ddp", "ray.workers=2"]
    keys += ["data.crop=64", "data.long_side=[64,96]", "train.epochs=2", "train.phase1_epochs=1"]
    keys += ["train.batch=[[0,8]]", "train.checkpoint_steps=1", "masks.scales=[0.5]"]
    command = [sys.executable, "-m", "ktse_dist.train", *keys]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained: s3://bucket/runs/demo" in done.stdout
    found = s3.client.list_objects_v2(Bucket="bucket")["Contents"]
    names = {file["Key"].removeprefix("runs/demo/") for file in found}
    assert {"model.safetensors", "model.md", "baseline/model.safetensors", "checkpoints/phase1/state.json"} <= names
    folder = RunFolder(Path(done.stdout.strip().rpartition(" ")[2]))
    assert folder.path.is_relative_to(tmp_path / "cache") and folder.baseline.model.is_file()
    for stage, keys in (("masks", ["masks.pictures.train=2"]), ("evaluate", [])):
        command = [sys.executable, "-m", f"ktse_dist.{stage}", "--run", folder.path, *keys]
        subprocess.run(command, env=environment, check=True, timeout=LIMIT)
    assert folder.phase1_scores.is_dir()
    card = s3.client.get_object(Bucket="bucket", Key="runs/demo/model.md")["Body"].read().decode()
    assert "mIoU of the masks on val" in card
