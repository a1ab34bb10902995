"""A trial: a fork that is scored at rungs, stopped anywhere and gone on with."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ktse_dist.config import Config
from ktse_dist.config_file import load_config
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.evaluation.score import read_seeds
from ktse_dist.inference.generate import SeedSource, parts, score_part
from ktse_dist.mask_work import network_from, splits
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.job import Job
from ktse_dist.training.trial import run_trial, train_to

from .ranks import Rank

FORK, RUNGS = 4, [6, 8]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    data = tmp_path_factory.mktemp("trial") / "data"
    pack_stickers(data, train=24, val=4, workers=1)
    keys = ["data.long_side=[96,128]", "data.crop=96", "train.batch=[[0,6]]", "train.epochs=2", "train.phase1_epochs=1"]
    keys += ["train.precision=fp32", "train.baseline=false", "engine.name=torch", "masks.scales=[1.0]"]
    return load_config(None, [f"data.path={data}", *keys, "masks.long_side=128", "masks.pictures.train=10"])


@pytest.fixture(scope="module")
def fork(config, tmp_path_factory) -> Path:
    folder = RunFolder(tmp_path_factory.mktemp("phase1"))
    assert train_to(Job(config, folder), 0, FORK, Rank())
    return folder.phase1


def trial(config: Config, fork: Path, folder: Path, *contexts: Rank) -> list[dict]:
    for context in contexts:
        run_trial(Job(config, RunFolder(folder), fork), FORK, RUNGS, context)
    return contexts[-1].told


def test_a_trial_stopped_between_rungs_reports_what_an_unbroken_one_does(config, fork, tmp_path):
    whole = trial(config, fork, tmp_path / "whole", Rank())
    broken = trial(config, fork, tmp_path / "broken", Rank(steps=1), Rank(steps=2), Rank())
    assert [found["rung"] for found in whole] == [1, 2]
    assert whole[-1]["scores"] == [found["score"] for found in whole]
    without_time = [[{**found, "seconds": 0} for found in told] for told in (whole, broken)]
    assert without_time[0] == without_time[1]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_its_last_score_is_what_evaluate_finds_in_the_finished_run(config, fork, tmp_path):
    told = trial(config, fork, tmp_path, Rank())
    folder, train = RunFolder(tmp_path), splits(config)[0]
    network = network_from(folder.model, config)
    source = SeedSource(network, train, config.masks, config.data.resize)
    for part in parts(train, config.masks):
        score_part(source, part, folder.masks, lambda: None)
    seeds = read_seeds(folder.masks, train)
    assert len(seeds.tags.rows) == 10
    assert (told[-1]["threshold"], told[-1]["score"]) == seeds.sweep.best()
    assert told[-1]["tag_map"] == pytest.approx(seeds.tag_map)


def test_a_finished_trial_trains_and_scores_nothing_again(config, fork, tmp_path):
    first = trial(config, fork, tmp_path, Rank())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name.startswith(("step", "model"))}
    assert trial(config, fork, tmp_path, Rank()) == first
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(json.loads((tmp_path / "scores.json").read_text())) == len(RUNGS)
