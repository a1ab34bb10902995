"""The whole chain: tagged pictures in, masks, score and report out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ktse_dist import evaluate, masks, report, train
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.run_folder import RunFolder

KTSE = Path(sys.executable).with_name("ktse")
STAGES = ("masks", "evaluate", "report")
SMALL = ["engine.name=torch", "data.crop=64", "data.long_side=[64,96]", "train.epochs=2", "train.phase1_epochs=1"]
SMALL += ["train.batch=[[0,8]]", "masks.scales=[0.5]", "masks.pictures.train=6"]
SCORES = {"seed_miou", "baseline_seed_miou", "mask_miou"}
FIELDS = SCORES | {f"{name}_train" for name in SCORES}
FIELDS |= {"best_threshold", "images_per_second", "seconds", "per_class", "versions", "git", "index_sha256", "tag_map"}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> RunFolder:
    """Every stage in this process, small."""
    root = tmp_path_factory.mktemp("demo")
    pack_stickers(root / "data", train=24, val=4)
    train.main([f"run.root={root}", f"data.path={root}/data", *SMALL, "method.sie=0.5"])


@pytest.mark.slow
def test_the_demo_scores_what_it_should(tmp_path):
    environment = os.environ | {"KTSE_RUNS": str(tmp_path)}
    subprocess.run([KTSE, "train"], env=environment, check=True, timeout=1200)
    for stage in STAGES:
        subprocess.run([KTSE, stage, "--run", tmp_path / "demo"], env=environment, check=True, timeout=900)
    summary = RunFolder(tmp_path / "demo").read_summary()
    assert summary["pictures"]["val"] == 300
    assert summary["baseline_seed_miou"] >= 35
    assert summary["phase1_tag_map"] >= 70
    assert summary["seed_miou"] >= summary["baseline_seed_miou"]
    assert summary["mask_miou"] > summary["seed_miou"]
