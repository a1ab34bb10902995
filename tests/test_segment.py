"""Stage 2: from the masks of a run to a segmentation network, its masks and its score."""

import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ktse_dist import evaluate, export, segment
from ktse_dist.config.method import Network
from ktse_dist.config_file import load_config
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.errors import UserError
from ktse_dist.models import new_backbone
from ktse_dist.models.segmenter import load_segmenter
from ktse_dist.models.weights import save_model
from ktse_dist.run_folder import RunFolder
from ktse_dist.training import checkpoint
from ktse_dist.training.job import check_same_run
from ktse_dist.training.loop import run

from .training.ranks import Rank

KEYS = ["data.crop=64", "train.batch=[[0,4]]", "train.epochs=3", "train.phase1_epochs=1", "train.log_steps=1"]
KEYS += ["segment.networks=2", "segment.sure=0.95", "segment.scales=[0.5]", "masks.processes=0"]
KEYS += ["model.weights=imagenet"]  # the run itself was never trained


def call(folder: RunFolder, *more: str) -> None:
    segment.main(["--run", str(folder.path), *KEYS, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, packed_masks) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("finished") / "run")
    shutil.copytree(packed_masks.path, folder.path)
    call(folder)
    return folder


@pytest.fixture
def tested_run(tmp_path, finished) -> RunFolder:
    """A run of this test's own that has been through the stage."""
    shutil.copytree(finished.path, tmp_path / "tested")
    return RunFolder(tmp_path / "tested")


def test_masks_become_a_network_its_masks_of_val_and_a_score(finished):
    model = load_segmenter(finished.segment.model)
    assert len(model.networks) == 2 and len(model.classes) == 20
    lines = [json.loads(line) for line in finished.segment.metrics_file.read_text().splitlines()]
    assert [line["phase"] for line in lines] == [1, 1, 2, 2, 2, 2]
    assert lines[-1].keys() >= {"ce1", "ce2", "cot1", "cot2", "total"}
    assert finished.segment.attribution.is_file()
    val = Index.open(finished.read_config().data.path, "val")
    masks = MaskIndex(finished.segment.masks, val)
    assert all(masks.has(row) for row in range(len(val)))
    summary = finished.read_summary()
    assert all(0 <= summary[f"network_miou_{look}"] <= 100 for look in ("single", "multi", "final"))
    files = [finished.segment.model, *finished.segment.masks.glob("*.tar"), *finished.segment.masks.glob("*.npz")]
    before = [file.stat().st_mtime_ns for file in files]
    call(finished)
    assert [file.stat().st_mtime_ns for file in files] == before  # nothing is made twice
    assert finished.read_summary()["network_miou_final"] == summary["network_miou_final"]


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_stopped_stage_goes_on_to_the_same_weights(masked_run, count):
    config = segment.stage2(masked_run, [*KEYS, f"segment.networks={count}", "segment.sure=0.2"])
    whole = segment.job_of(masked_run, config)
    parts = replace(whole, folder=RunFolder(masked_run.path / "parts"))
    run(whole, Rank())
    for _ in range(3):
        run(parts, Rank(steps=2))
    expected, found = (load_file(job.folder.model) for job in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert checkpoint.latest(parts.folder.checkpoints).name == "step-00000006"


def full_gpu(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")


def test_a_gpu_that_is_full_in_a_step_is_one_line_with_keys_of_this_stage(masked_run, monkeypatch):
    monkeypatch.setattr("ktse_dist.training.loop.run_on", full_gpu)
    with pytest.raises(UserError, match=r"no room for a step .*CUDA out of memory\); lower train\.batch or data\.crop"):
        call(masked_run)


def test_a_gpu_that_is_full_in_the_test_is_one_line(masked_run, monkeypatch):
    monkeypatch.setattr("ktse_dist.inference.answers.Answers.make", full_gpu)
    with pytest.raises(UserError, match=r"CUDA out of memory\); delete .*/segment/masks .*segment\.max_pixels"):
        call(masked_run)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["run.name=other"], "may be set here"),
        (["segment.mixx=1"], "Did you mean 'segment.mix'"),
        (["train.batch=[[0,5]]"], "multiples of 2"),
        (["engine.name=ddp", "ray.workers=[1,3]", "train.batch=[[0,4]]"], "multiples of 12"),
        (["train.micro_batch=2"], "train.micro_batch"),
        (["segment.area=[0.8,0.5]"], "segment.area"),
        (["model.backbone=resnet101", "model.output_stride=8"], "model.weights"),
    ],
)
def test_a_mistake_is_one_line(masked_run, keys, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        call(masked_run, *keys)


def test_the_small_network_starts_from_what_the_run_has_learnt(masked_run):
    learnt = new_backbone(Network()).state_dict()
    save_model(masked_run.model, {f"backbone.{name}": tensor for name, tensor in learnt.items()}, Network(), [])
    job = segment.job_of(masked_run, segment.stage2(masked_run, ["segment.networks=2"]))
    networks = job.task.module(job.config, Index.open(job.config.data.path, "train")).networks
    for network in networks:
        assert all(torch.equal(tensor, learnt[name]) for name, tensor in network.backbone.state_dict().items())
    assert not torch.equal(networks[0].aspp.c0.weight, networks[1].aspp.c0.weight)


def test_workers_agree_on_precision_and_on_where_weights_lie(masked_run):
    config = segment.stage2(masked_run, ["train.precision=auto", "model.weights=w/x.safetensors"])
    assert config.train.precision in ("bf16", "fp32")
    assert config.model.weights == Path("w/x.safetensors").absolute()


def test_the_export_of_a_network_of_other_masks_says_so(tested_run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(export, "save_onnx", lambda path, segmenter: path.write_bytes(b""))  # tracing takes long
    for name, said in (("first.onnx", False), ("second.onnx", True)):
        with caplog.at_level(logging.WARNING, "ktse"):
            export.main(["--run", str(tested_run.path), "--format", "onnx", "--out", str(tmp_path / name)])
        assert ("other masks than those" in caplog.text) == said
        tested_run.segment.learnt_masks_file.write_text("of other masks")


def test_a_full_cache_may_be_enlarged(masked_run):
    assert segment.stage2(masked_run, ["data.cache.gigabytes=3"]).data.cache.gigabytes == 3


def test_a_test_of_other_val_pictures_does_not_go_on(tested_run):
    settings = json.loads((tested_run.masks / "settings.json").read_text())
    settings["pictures"]["val"] = 2
    (tested_run.masks / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"^masks\.pictures\.val: 2, but the masks in .*segment/masks .* with None"):
        call(tested_run)


def test_the_score_of_a_network_that_is_gone_or_of_other_masks_is_forgotten(masked_run, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", lambda folder: "scored anew")
    masked_run.segment.path.mkdir()
    masked_run.segment.model.write_bytes(b"")
    segment.keep_masks(masked_run)
    known = {"masks_sha256": evaluate.mask_digest(masked_run), "mask_boundary_miou": 1.0, "network_miou_final": 2.0}
    masked_run.update_summary(**known)
    assert evaluate.evaluated(masked_run)["network_miou_final"] == 2.0
    masked_run.segment.learnt_masks_file.write_text("of other masks")
    assert evaluate.evaluated(masked_run) == "scored anew"
    monkeypatch.setattr(evaluate, "score_lines", lambda summary: "the score")
    assert "not scored: " in evaluate.lines({}, masked_run) and "give ktse segment" in evaluate.lines({}, masked_run)
    masked_run.segment.learnt_masks_file.unlink()
    assert evaluate.lines({}, masked_run) == "the score"
    masked_run.segment.model.unlink()
    assert evaluate.evaluated(masked_run) == "scored anew"
    assert "network_miou_final" not in masked_run.forget(evaluate.NETWORK)


def test_a_damaged_network_is_not_tested(tested_run):
    content = tested_run.segment.model.read_bytes()
    tested_run.segment.model.write_bytes(content[:-4000] + bytes(64) + content[-3936:])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged, or another network than summary\.json"):
        call(tested_run)


def test_the_run_s_own_network_is_asked_for_while_there_is_training_to_do(tested_run):
    of_the_run = ["--run", str(tested_run.path), *KEYS[:-1]]
    tested_run.model.unlink(missing_ok=True)
    segment.main(of_the_run)  # all is there
    tested_run.segment.model.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: not there; .*the same ktse train command"):
        segment.main(of_the_run)


def test_missing_masks_are_named(masked_run):
    (masked_run.masks / "settings.json").write_text(json.dumps({"pictures": {"train": 10}}))
    with pytest.raises(UserError, match="no mask of"):
        call(masked_run)


def test_a_network_does_not_go_on_with_other_masks(masked_run):
    segment.make_folder(masked_run.segment)
    segment.keep_masks(masked_run)
    segment.keep_masks(masked_run)
    (masked_run.masks / "train.masks.json").write_text("{}")
    with pytest.raises(UserError, match="other masks than those"):
        segment.keep_masks(masked_run)


@pytest.mark.slow
def test_a_stage_killed_at_random_ends_as_if_it_never_was(masked_run, tmp_path):
    twin = RunFolder(tmp_path / "twin")
    shutil.copytree(masked_run.path, twin.path)
    # all in processes of their own: sums round otherwise where an earlier test has set the number of threads
    subprocess.run([*stage(twin), "train.checkpoint_steps=1"], check=True, timeout=600)
    command = stage(masked_run)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    steps = sorted(random.Random(seed).sample(range(1, 6), 2))
    for step in steps:
        with subprocess.Popen([*command, "train.checkpoint_steps=1"], start_new_session=True) as process:
            while process.poll() is None and reached(masked_run) < step:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
    subprocess.run([*command, "train.checkpoint_steps=1"], check=True, timeout=600)
    expected, found = (load_file(folder.segment.model) for folder in (twin, masked_run))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def stage(folder: RunFolder) -> list[str]:
    return [sys.executable, "-m", "ktse_dist.segment", "--run", str(folder.path), *KEYS]


def reached(folder: RunFolder) -> int:
    path = checkpoint.latest(folder.segment.checkpoints)
    return int(path.name.removeprefix("step-")) if path else 0


@pytest.mark.slow
def test_it_trains_on_ray_workers_with_loading_processes(masked_run):
    call(masked_run, "engine.name=ddp", "ray.workers=2", "data.workers=1")
    assert load_segmenter(masked_run.segment.model).classes


def test_a_moved_run_goes_on_though_its_start_weights_have_another_path():
    config = load_config(None, ["model.weights=none"])
    then = config.model_dump(mode="json", by_alias=True)
    then["model"]["weights"] = "/elsewhere/model.safetensors"
    saved = SimpleNamespace(state={"config": then})
    check_same_run(saved, config, Path("runs/a/segment/checkpoints/step-1"), segment.FREE)
    then["segment"]["trusted"] = 0.123
    anew = "delete runs/a/segment"
    with pytest.raises(UserError, match=rf"segment\.trusted: .*set it back to go on, or {anew} to train anew"):
        check_same_run(saved, config, Path("runs/a/segment/checkpoints/step-1"), segment.FREE, anew)
    then["segment"]["networks"] = 7
    with pytest.raises(UserError, match=r"^segment\.networks: .*; set it and segment\.trusted back to go on"):
        check_same_run(saved, config, Path("runs/a/segment/checkpoints/step-1"), segment.FREE, anew)
