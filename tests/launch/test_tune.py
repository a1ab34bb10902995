"""`ktse tune` as people start it: real trials under Ray, killed and gone on with."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ktse_dist.data.pack.stickers import pack_stickers

TRIALS = 8
RUN = {
    "data": {"long_side": [96, 128], "crop": 96},
    "train": {"epochs": 3, "phase1_epochs": 1, "batch": [[0, 6]], "checkpoint_steps": 1},
    "engine": {"name": "ddp"},
    "ray": {"workers": 1},
    "masks": {"scales": [1.0], "long_side": 128, "refine": "none", "pictures": {"train": 12}, "processes": 1},
}
SPACE = {
    "method.erasing.threshold": {"low": 0.4, "high": 0.8},
    "optimiser.phase2.lr": {"low": 0.002, "high": 0.02, "log": True},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "data"
    pack_stickers(folder, train=24, val=4, workers=1)
    return folder


def config_file(folder: Path, data: Path, **search) -> Path:
    run = RUN | {"run": {"name": "tuned", "root": str(folder)}, "data": RUN["data"] | {"path": str(data)}}
    (folder / "tune.yaml").write_text(yaml.safe_dump(run | {"search": search}))
    return folder / "tune.yaml"


def start(file: Path, verb: str = "tune") -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", f"ktse_dist.{verb}", "--config", str(file)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, **pipes)


def finish(file: Path, verb: str = "tune") -> str:
    with start(file, verb) as process:
        said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-5000:]
    return said


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "tuned" / "tune.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_arms_end_in_a_table_a_page_and_a_config_that_train_takes(data, tmp_path):
    arms = {"baseline": {"method.sie": 0, "method.ssr": 0, "method.mga": 0}, "+MGA": {"method.sie": 0, "method.ssr": 0}}
    file = config_file(tmp_path, data, rungs=2, arms=arms)
    said = finish(file)
    found = rows(tmp_path)
    assert {row["label"] for row in found} == set(arms)
    assert [float(row["score_at_12"]) for row in found] == sorted(float(row["score_at_12"]) for row in found)[::-1]
    assert all(arm in said for arm in arms) and (tmp_path / "tuned" / "report" / "index.html").is_file()
    weights = [path.parent.name for path in (tmp_path / "tuned" / "trials").glob("*/model.safetensors")]
    assert weights == [found[0]["trial"]]  # of the best arm only
    assert not list((tmp_path / "tuned" / "trials").glob("*/checkpoints"))
    best = yaml.safe_load((tmp_path / "tuned" / "best.yaml").read_text())
    assert best["run"]["name"] == "tuned-best" and best["method"]["ssr"] == 0


@pytest.mark.slow
def test_a_search_killed_twice_loses_no_trial_and_its_best_one_trains_to_the_same_score(data, tmp_path):
    file = config_file(tmp_path, data, trials=TRIALS, rungs=4, space=SPACE)
    before = killed_after(file, 3) | killed_after(file, 4)
    finish(file)
    found = {row["trial"]: row for row in rows(tmp_path)}
    assert len(found) == TRIALS and before.keys() <= {(trial, rung) for trial in found for rung in range(1, 5)}
    for (trial, rung), score in before.items():
        assert float(found[trial][f"score_at_{4 + 2 * rung}"]) == pytest.approx(score, abs=0.005)
    ended = [row for row in found.values() if row["score_at_12"]]
    assert 0 < len(ended) < TRIALS  # ASHA gave some up
    best = rows(tmp_path)[0]
    assert float(best["score_at_12"]) == max(float(row["score_at_12"]) for row in ended)
    assert trained_again(tmp_path / "tuned" / "best.yaml") == pytest.approx(float(best["score_at_12"]), abs=0.005)


def killed_after(file: Path, scores: int) -> dict[tuple[str, int], float]:
    """(trial, rung) -> score of what the search said before its driver was killed."""
    said = {}
    process = start(file)
    for line in process.stdout:
        told = re.search(r"trial (\w+): ([\d.]+) at (\d) of 4", line)
        if told:
            said[told[1], int(told[3])] = float(told[2])
            if len(said) == scores:
                break
    process.send_signal(signal.SIGKILL)
    process.stdout.read()  # until its last worker is gone
    process.wait()
    time.sleep(1)
    return said


def trained_again(file: Path) -> float:
    """seed_miou_train of the run that best.yaml makes."""
    finish(file, "train")
    run = file.parents[1] / "tuned-best"
    for verb in ("masks", "evaluate"):
        subprocess.run([sys.executable, "-m", f"ktse_dist.{verb}", "--run", str(run)], check=True, timeout=600)
    return json.loads((run / "summary.json").read_text())["seed_miou_train"]
