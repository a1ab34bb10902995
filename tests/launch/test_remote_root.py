"""A run under Ray whose folder is an S3 address, from the command to its next one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.run_folder import RunFolder

LIMIT = 300  # seconds


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Iterator[dict[str, str]]:
    """Of processes that know the S3 server of this test, and have a cache of their own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    known = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}", "AWS_ACCESS_KEY_ID": "test"}
    known |= {"AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "XDG_CACHE_HOME": f"{tmp_path}/cache"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield os.environ | known
    server.stop()


@pytest.mark.slow
def test_two_workers_leave_a_run_and_its_fork_at_an_address(tmp_path, environment):
    pack_stickers(tmp_path / "data", train=24, val=4, workers=1)
    keys = ["run.root=s3://bucket/runs", f"data.path={tmp_path}/data", "engine.name=ddp", "ray.workers=2"]
    keys += ["data.crop=64", "data.long_side=[64,96]", "train.epochs=2", "train.phase1_epochs=1"]
    keys += ["train.batch=[[0,8]]", "train.checkpoint_steps=1", "masks.scales=[0.5]"]
    command = [sys.executable, "-m", "ktse_dist.train", *keys]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained: s3://bucket/runs/demo" in done.stdout
    found = boto3.client("s3").list_objects_v2(Bucket="bucket")["Contents"]
    names = {file["Key"].removeprefix("runs/demo/") for file in found}
    assert {"model.safetensors", "model.md", "baseline/model.safetensors", "checkpoints/phase1/state.json"} <= names
    folder = RunFolder(Path(done.stdout.strip().rpartition(" ")[2]))
    assert folder.path.is_relative_to(tmp_path / "cache") and folder.baseline.model.is_file()
    for stage, keys in (("masks", ["masks.pictures.train=2"]), ("evaluate", [])):
        command = [sys.executable, "-m", f"ktse_dist.{stage}", "--run", folder.path, *keys]
        subprocess.run(command, env=environment, check=True, timeout=LIMIT)
    assert folder.phase1_scores.is_dir()
    card = boto3.client("s3").get_object(Bucket="bucket", Key="runs/demo/model.md")["Body"].read().decode()
    assert "mIoU of the masks on val" in card
