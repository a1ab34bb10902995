"""The whole chain: tagged pictures in, masks, score and report out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ktse_dist import evaluate, masks, report, train
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.errors import UserError
from ktse_dist.run_folder import RunFolder

KTSE = Path(sys.executable).with_name("ktse")
SMALL = ["engine.name=torch", "data.crop=64", "data.long_side=[64,96]", "train.epochs=2", "train.phase1_epochs=1"]
SMALL += ["train.batch=[[0,8]]", "masks.scales=[0.5]", "masks.pictures.train=6"]
SCORES = {"seed_miou", "baseline_seed_miou", "mask_miou"}
FIELDS = SCORES | {f"{name}_train" for name in SCORES} | {"mask_fwiou", "mask_boundary_miou", "scored"}
FIELDS |= {"best_threshold", "images_per_second", "seconds", "per_class", "versions", "git", "index_sha256", "tag_map"}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> RunFolder:
    """Every stage in this process, small."""
    root = tmp_path_factory.mktemp("demo")
    pack_stickers(root / "data", train=24, val=4)
    train_small(root)
    for stage in (masks, evaluate, report):
        stage.main(["--run", str(root / "demo")])
    return RunFolder(root / "demo")


def train_small(root: Path, *more: str) -> None:
    train.main([f"run.root={root}", f"data.path={root}/data", *SMALL, *more])


def test_a_run_leaves_behind_what_it_should(small_run):
    for path in (small_run.model, small_run.baseline.model, small_run.phase1, small_run.report, small_run.tensorboard):
        assert path.exists()
    assert json.loads(small_run.metrics_file.read_text().splitlines()[-1])["step"] == 6


def test_the_summary_has_every_field_and_a_true_total(small_run):
    summary = small_run.read_summary()
    assert summary.keys() >= FIELDS
    assert all(0 <= summary[name] <= 100 for name in SCORES)
    assert set(summary["per_class"]["aeroplane"]) == {"seed", "baseline", "mask", "mask_boundary"}
    parts = [seconds for stage, seconds in summary["seconds"].items() if stage != "total"]
    assert summary["seconds"]["total"] == pytest.approx(sum(parts), abs=0.2)


def test_the_model_card_tells_data_config_score_and_revision_and_no_path(small_run):
    card, summary = small_run.card.read_text(), small_run.read_summary()
    for known in (summary["seed_miou"], summary["index_sha256"]["train"], summary["git"], summary["model_sha256"]):
        assert str(known) in card
    assert '"aeroplane"' in card and "threshold: 0.6" in card and "ATTRIBUTION.md" in card
    assert small_run.attribution.is_file() and str(small_run.path.parent) not in card


def test_both_forks_saw_the_same_pictures(small_run):
    last = [json.loads(f.metrics_file.read_text().splitlines()[-1]) for f in (small_run, small_run.baseline)]
    assert last[0]["step"] == last[1]["step"]
    assert "transfer" in last[0] and "transfer" not in last[1]


def test_running_every_stage_again_changes_no_score(small_run):
    before = small_run.read_summary()
    train_small(small_run.path.parent)
    for stage in (masks, evaluate):
        stage.main(["--run", str(small_run.path)])
    after = small_run.read_summary()
    assert {k: v for k, v in after.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}
    assert after["seconds"]["train"] == before["seconds"]["train"]


def test_another_setting_under_the_same_name_is_refused(small_run):
    with pytest.raises(UserError, match=r"method\.sie: 0\.5"):
        train_small(small_run.path.parent, "method.sie=0.5")


def test_a_dry_run_says_what_would_be_and_trains_nothing(small_run, tmp_path, capsys):
    data = small_run.path.parent / "data"
    train.main(["--dry-run", f"run.root={tmp_path}/runs", f"data.path={data}", *SMALL, "model.output_stride=8"])
    said = capsys.readouterr().out
    assert "output_stride: 8" in said
    assert "24 training pictures, 20 classes" in said
    assert "parameters: 3,666,368" in said
    assert "3 of classification, 3 of KTSE, 48 pictures in all" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_ray_run_with_one_line_and_it_goes_on_from_its_checkpoint(small_run, tmp_path):
    settings = [f"run.root={tmp_path}", f"data.path={small_run.path.parent}/data", *SMALL, "engine.name=ddp"]
    settings += ["train.epochs=40", "train.phase1_epochs=30", "train.checkpoint_steps=5", "train.baseline=false"]
    first = subprocess.Popen([KTSE, "train", *settings], stderr=subprocess.PIPE, text=True)
    checkpoints, deadline = tmp_path / "demo" / "checkpoints", time.monotonic() + 200
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    _, error = first.communicate(timeout=100)
    assert first.returncode == 130
    assert [line for line in error.splitlines() if line.startswith("ktse: ")] == [
        "ktse: interrupted; the same command goes on from what is finished"
    ]
    subprocess.run([KTSE, "train", *settings], check=True, timeout=400)
    steps = [json.loads(line)["step"] for line in (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(10, 121, 10))


@pytest.mark.slow
def test_the_demo_scores_what_it_should(tmp_path):
    environment = os.environ | {"KTSE_RUNS": str(tmp_path)}
    subprocess.run([KTSE, "train"], env=environment, check=True, timeout=1500)
    for stage in ("masks", "evaluate", "report"):
        subprocess.run([KTSE, stage, "--run", tmp_path / "demo"], env=environment, check=True, timeout=900)
    summary = RunFolder(tmp_path / "demo").read_summary()
    assert summary["pictures"]["val"] == 300
    assert summary["baseline_seed_miou"] >= 35
    assert summary["phase1_tag_map"] >= 70
    assert summary["seed_miou"] >= summary["baseline_seed_miou"]
    assert summary["mask_miou"] > summary["seed_miou"]
