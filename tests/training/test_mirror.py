"""Runs whose folder is an address: another machine goes on with them, and nothing half-sent is taken for whole."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ktse_dist.config import Config
from ktse_dist.config_file import load_config
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.errors import UserError
from ktse_dist.run_folder import RunFolder, run_folder
from ktse_dist.run_lock import alone
from ktse_dist.train import main
from ktse_dist.training import checkpoint
from ktse_dist.training.job import Job, prepare
from ktse_dist.training.loop import run
from ktse_dist.training.mirror import Mirror
from ktse_dist.training.storage import Storage
from ktse_dist.training.writer import Snapshot, Writer

from .ranks import Rank

WEIGHTS = {"w": torch.arange(6.0).view(2, 3)}
RUN_FILES = ["ATTRIBUTION.md", "config.yaml", "metrics.jsonl", "model.md", "model.safetensors", "summary.json"]


def write(folder: RunFolder, *steps: int, deadline: float = 20, name: str | None = None, keep: int = 2) -> None:
    with Writer(folder, keep, Mirror(folder, deadline)) as writer:
        for step in steps:
            writer.wait()
            writer.begin([name or f"step-{step:08}"], Snapshot(WEIGHTS, {}, {"step": step}))


def bring(folder: RunFolder, phase1: bool = False) -> RunFolder:
    Mirror(folder, 20).bring(phase1)
    return folder


@pytest.fixture
def here(bucket, tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "here" / "run", bucket.url)


@pytest.fixture
def elsewhere(bucket, tmp_path) -> RunFolder:
    """The same run on another machine."""
    return RunFolder(tmp_path / "elsewhere" / "run", bucket.url)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "set"
    pack_stickers(path, train=12, val=2, workers=1)
    return path


def config_of(dataset: Path, root: Path | str) -> Config:
    """Three steps of phase 1, three of phase 2."""
    return load_config(None, [
        "engine.name=torch", f"run.root={root}", f"data.path={dataset}", "data.crop=64", "data.long_side=[64,96]",
        "train.epochs=2", "train.phase1_epochs=1", "train.batch=[[0,4]]", "train.baseline=false",
        "train.precision=fp32", "train.checkpoint_steps=2", "run.deadline=20",
    ])  # fmt: skip


def test_a_run_that_goes_on_on_another_machine_ends_in_the_same_bits(bucket, dataset, tmp_path, monkeypatch):
    whole = config_of(dataset, tmp_path / "whole")
    run(Job(whole, run_folder(whole)), Rank())
    for machine, steps in (("a", 3), ("b", 2), ("c", None)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        moved = config_of(dataset, bucket.url)
        run(Job(moved, run_folder(moved)), Rank(steps=steps))
    expected, found = (load_file(run_folder(config).model) for config in (whole, moved))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    names = [name.removeprefix("demo/") for name in bucket.names]
    assert [name for name in names if "/" not in name] == RUN_FILES
    assert {name.split("/")[1] for name in names if "/" in name} == {"phase1", "step-00000005", "step-00000006"}


def test_a_fork_starts_from_an_address(bucket, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    config = config_of(dataset, bucket.url)
    folder = run_folder(config)
    run(Job(config, folder), Rank(steps=3))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    fork = Job(config, run_folder(config).baseline, f"{bucket.url}/demo/checkpoints/phase1")
    assert prepare(fork)[2].state["step"] == 3
    missing = Job(config, run_folder(config).baseline, f"{bucket.url}/demo/checkpoints/phase2")
    assert prepare(missing)[2] is None


def test_what_is_at_the_address_counts_and_not_what_a_machine_still_has(here, elsewhere):
    write(here, 1, 2)
    write(elsewhere, 3)
    (elsewhere.path / "summary.json").write_text("{}")
    checkpoint.save(elsewhere.checkpoints, "step-00000009", WEIGHTS, {}, {"step": 9}, 9)  # was never sent
    bring(elsewhere)
    assert checkpoint.latest(elsewhere.checkpoints).name == "step-00000003"
    assert not elsewhere.summary_file.exists()
    bring(here)
    assert checkpoint.load(checkpoint.latest(here.checkpoints)).state == {"step": 3}


def test_looking_at_a_run_leaves_the_checkpoint_that_another_process_writes(here):
    write(here, 1)
    with checkpoint.new_directory(here.checkpoints, "step-00000002") as unfinished:
        (unfinished / "weights.safetensors").touch()
        bring(here)
        assert (unfinished / "weights.safetensors").exists()


def test_the_last_k_steps_and_phase1_stay_at_the_address(bucket, here):
    write(here, 1, name="phase1")
    write(here, 1, 2, 3, 4)
    assert {name.split("/")[1] for name in bucket.names} == {"phase1", "step-00000003", "step-00000004"}


def test_a_checkpoint_without_its_state_is_none_and_goes_away(bucket, here, elsewhere):
    write(here, 1, 2)
    bucket.client.delete_object(Bucket="runs", Key=f"{bucket.folder}/checkpoints/step-00000002/state.json")
    assert checkpoint.latest(bring(elsewhere).checkpoints).name == "step-00000001"
    write(elsewhere, 3)
    assert {name.split("/")[1] for name in bucket.names} == {"step-00000001", "step-00000003"}


def test_a_checkpoint_damaged_at_the_address_is_refused_by_name(bucket, here, elsewhere):
    write(here, 1)
    file = f"{bucket.folder}/checkpoints/step-00000001/weights.safetensors"
    content = bytearray(bucket.client.get_object(Bucket="runs", Key=file)["Body"].read())
    content[-1] ^= 1
    bucket.client.put_object(Bucket="runs", Key=file, Body=bytes(content))
    with pytest.raises(UserError, match=rf"s3://runs/{file}: missing or damaged .*; delete s3://.*step-00000001 and"):
        bring(elsewhere)


def test_a_run_goes_on_after_its_storage_was_away(bucket, here, elsewhere):
    write(here, 1)
    bucket.stop()
    back = threading.Timer(2, bucket.start)
    back.start()
    write(here, 2)
    back.join()
    assert checkpoint.load(checkpoint.latest(bring(elsewhere).checkpoints)).state == {"step": 2}


def test_storage_that_stays_away_ends_the_run_in_one_line_and_the_last_checkpoint_stays(bucket, here, elsewhere):
    write(here, 1)
    bucket.stop()
    try:
        with pytest.raises(UserError, match=r"no answer for 1 s .*run the same command again, or raise run\.deadline"):
            write(here, 2, deadline=1)
    finally:
        bucket.start()
    assert checkpoint.load(checkpoint.latest(bring(elsewhere).checkpoints)).state == {"step": 1}


def test_a_bucket_that_is_not_there_is_named_before_training(bucket, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = config_of(dataset, "s3://nobodys/runs")
    with pytest.raises(UserError, match=r"s3://nobodys/runs/demo"):
        prepare(Job(config, run_folder(config)))


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_second_command_leaves_the_working_folder_of_a_run_at_work_alone(
    bucket, dataset, tmp_path, monkeypatch, more
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = run_folder(config_of(dataset, bucket.url))
    not_sent_yet = folder.checkpoints / "step-00000002" / "state.json"
    not_sent_yet.parent.mkdir(parents=True)
    not_sent_yet.write_text("{}")
    keys = ["engine.name=torch", f"run.root={bucket.url}", f"data.path={dataset}", "data.crop=64"]
    with alone(folder.path, "ktse train"), pytest.raises(UserError, match="another ktse train is at work"):
        main([*keys, *more])
    assert not_sent_yet.is_file()


def test_large_files_travel_in_parts(bucket, tmp_path):
    content = os.urandom(40 << 20)
    (tmp_path / "large").write_bytes(content)
    storage = Storage(bucket.url, 60)
    storage.put(tmp_path / "large", "large")
    assert bucket.client.head_object(Bucket="runs", Key=f"{bucket.folder}/large")["ETag"].endswith('-3"')
    storage.get("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["back", "large"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from training.test_mirror import RunFolder, Storage, write
count = 0
def killed(before):
    def call(*arguments, **names):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **names)
    return call
Storage.put, Storage.delete = killed(Storage.put), killed(Storage.delete)
for at in map(int, sys.argv[4:]):
    child = os.fork()
    if child == 0:
        write(RunFolder(Path(sys.argv[1]) / str(at), f"{sys.argv[3]}/{at}"), 2, 3)
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


def check_kills(bucket, path: Path, points: range) -> int:
    """How many of the points a save was killed at: each request that changes what is at the address."""
    for at in points:
        write(RunFolder(path / "before" / str(at), f"{bucket.url}/{at}"), 1)
    command = [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parents[1]), bucket.url, *map(str, points)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ends = [int(line) for line in done.stdout.split()]
    kills = ends.count(signal.SIGKILL)
    assert ends == [signal.SIGKILL] * kills + [0] * (len(points) - kills)
    last = 1
    for number, at in enumerate(points):
        folder = RunFolder(path / "after" / str(at), f"{bucket.url}/{at}")
        step = checkpoint.load(checkpoint.latest(bring(folder).checkpoints)).state["step"]
        assert last <= step <= 3 and (number < kills or step == 3)
        last = step
        shutil.rmtree(folder.path)
    return kills


def test_a_process_killed_while_it_sends_leaves_a_whole_checkpoint(bucket, tmp_path):
    assert check_kills(bucket, tmp_path, range(2, 14, 4)) >= 2


@pytest.mark.slow
def test_a_process_killed_at_each_of_its_requests_leaves_a_whole_checkpoint(bucket, tmp_path):
    assert check_kills(bucket, tmp_path, range(1, 14)) >= 8


@pytest.mark.parametrize("root", ["https://host/runs", "ftp://host/runs", "s3://user:key@host/runs", "a::s3://b/c"])
def test_a_root_that_cannot_be_written_to_is_refused_in_one_line(root, monkeypatch):
    with pytest.raises(UserError, match=r"^run\.root is .*; allowed are a folder, and s3://"):
        load_config(None, [f"run.root={root}"])
    monkeypatch.setenv("KTSE_RUNS", root)
    with pytest.raises(UserError, match=r"^KTSE_RUNS is .*; allowed are a folder, and s3://"):
        run_folder(load_config(None))


def test_each_address_has_a_working_folder_of_its_own_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("KTSE_RUNS", "s3://bucket/runs/")
    a = run_folder(load_config(None))
    b = run_folder(load_config(None, ["run.root=gs://bucket/runs"]))
    assert a.address == "s3://bucket/runs/demo" and b.address == "gs://bucket/runs/demo"
    assert a.path != b.path and a.path.is_relative_to(tmp_path) and b.path.is_relative_to(tmp_path)
    assert a.baseline.address == "s3://bucket/runs/demo/baseline"
