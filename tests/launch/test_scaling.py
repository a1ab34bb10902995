"""A fixed number of workers, or as many as there is room for: what Ray is asked for, and what is refused."""

from pathlib import Path

import pytest
import ray
import torch

from ktse_dist.config import Config
from ktse_dist.config_file import load_config, read_yaml, to_yaml, validate
from ktse_dist.errors import UserError
from ktse_dist.launch import ray_tune
from ktse_dist.launch.board import Board
from ktse_dist.launch.ray_train import check_gpus, scaling
from ktse_dist.launch.ray_tune import Plan, concurrent
from ktse_dist.run_folder import RunFolder
from ktse_dist.search import load_search

TUNE = Path(__file__).parents[2] / "configs" / "tune_erasing.yaml"


def config_of(*keys: str) -> Config:
    return load_config(None, list(keys))


def test_ray_is_asked_for_a_range_of_workers_and_told_how_often_to_look():
    asked = scaling(config_of("ray.workers=[1,3]", "ray.resize_seconds=5", "ray.threads=2"))
    assert (asked.min_workers, asked.max_workers, asked.elasticity_enabled) == (1, 3, True)
    assert asked.elastic_resize_monitor_interval_s == 5
    assert asked.resources_per_worker == {"CPU": 2}


def test_a_single_number_stays_fixed():
    assert not scaling(config_of("ray.workers=3")).elasticity_enabled


def test_a_range_survives_the_config_of_a_run_folder(tmp_path):
    config = config_of("ray.workers=[1,3]")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert validate(read_yaml(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("workers", ["0", "[2,1]", "[1,2,3]", "[0,2]", "5000", "1.5", "many", "true", "null"])
def test_what_is_neither_is_refused_by_name(workers):
    with pytest.raises(UserError, match=r"ray.workers: found .*; allowed are a number from 1 to 4096, and two"):
        config_of(f"ray.workers={workers}")


def test_the_largest_number_of_workers_needs_as_many_pictures():
    with pytest.raises(UserError, match=r"train\.batch has a batch of 2 for ray\.workers=3"):
        config_of("ray.workers=[1,3]", "train.batch=[[0,2]]")


def test_the_smallest_number_of_workers_needs_as_many_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_gpus(config_of("ray.workers=[1,3]", "ray.use_gpu=true"))
    with pytest.raises(UserError, match="2 workers need a GPU each, this machine has 1"):
        check_gpus(config_of("ray.workers=[2,3]", "ray.use_gpu=true"))


def test_the_trials_of_a_search_take_the_smallest_number_each(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "memory": 1e9})
    plan = Plan(*load_search(TUNE, ["ray.workers=[2,4]"]), RunFolder(Path("/runs/x")), 5, [6, 7])
    assert concurrent(plan) == 4
    assert ray_tune.trainer(plan, plan.base, "x", []).scaling_config.num_workers == 2


def test_ranks_are_asked_to_leave_before_a_resize_and_only_then():
    board = Board(60)
    asked = [board.beat(0, "host", 1, 7, None)]
    board.resize(True)
    asked.append(board.beat(0, "host", 1, 8, None))
    there = board.ranks()
    board.leave(0)
    board.resize(False)
    assert (asked, there, board.ranks()) == ([False, True], [0], [])
    assert board.beat(0, "host", 2, 8, None) is False
