"""The schema, its presets and what overrides what."""

from pathlib import Path

import pytest

from ktse_dist.config import Config
from ktse_dist.config_file import DEMO, load_config, parse_override, read_yaml, to_yaml
from ktse_dist.errors import UserError
from ktse_dist.presets import PRESETS
from ktse_dist.search import load_search

CONFIGS = Path(__file__).parent.parent / "configs"


def test_an_override_beats_yaml_and_yaml_beats_the_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("optimiser: {phase1: {lr: 0.5}}\ntrain: {epochs: 9, phase1_epochs: 1}\n")
    config = load_config(file, ["train.epochs=4"])
    assert (config.train.epochs, config.optimiser.phase1.lr) == (4, 0.5)
    assert config.optimiser.phase1.momentum == PRESETS["corrected"]["optimiser"]["phase1"]["momentum"]


def test_the_published_preset_has_the_published_quirks():
    config = load_config(None, ["method.preset=published"])
    assert config.optimiser.phase1.momentum == config.optimiser.phase2.momentum == 5e-4
    assert config.optimiser.horizon == "batch_8"
    assert (config.method.transfer.pairs, config.method.pseudo_label.division) == (4, "raw")
    assert not any((config.method.detach.transfer, config.method.detach.local, config.method.detach.global_))


def test_a_resolved_config_reads_back_as_itself(tmp_path):
    config = load_config(None, ["method.preset=published", "run.root=/x", "data.path=/y"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid(path):
    config = load_search(path, [])[0] if "search" in read_yaml(path) else load_config(path)
    assert isinstance(config, Config)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_no_shipped_config_repeats_a_constant_of_its_preset(path):
    given = read_yaml(path)
    preset = PRESETS[given.get("method", {}).get("preset", "corrected")]
    assert not repeated(given, preset)


def repeated(given: dict, preset: dict) -> list[str]:
    found = []
    for key in given.keys() & preset.keys():
        both = given[key], preset[key]
        found += repeated(*both) if all(isinstance(b, dict) for b in both) else [key] * (both[0] == both[1])
    return found


def test_without_a_config_file_the_demo_is_meant():
    assert load_config(None) == load_config(DEMO)


def test_values_of_overrides_are_yaml():
    assert parse_override("train.batch=[[0, 8], [10, 16]]") == {"train": {"batch": [[0, 8], [10, 16]]}}


def test_the_batch_size_follows_its_schedule():
    assert load_config(None, ["train.batch=8"]).train.batch == ((0, 8),)
    train = load_config(None, ["train.batch=[[0,8],[3,16]]"]).train
    assert [train.batch_size(epoch) for epoch in (0, 2, 3, 6)] == [8, 8, 16, 16]


def test_a_config_file_that_is_too_large_is_refused(tmp_path):
    file = tmp_path / "large.yaml"
    file.write_text("#" * 70_000)
    with pytest.raises(UserError, match="70000 bytes"):
        load_config(file)


@pytest.mark.parametrize(
    "text", ["run.name=2024-13-45", "run.name=!!int x", f"run.name={'[' * 20_000}", f"run.seed={'1' * 5_000}"]
)
def test_a_value_that_yaml_chokes_on_is_the_users_mistake(text):
    with pytest.raises(UserError, match="not YAML"):
        parse_override(text)


@pytest.mark.parametrize("text", ["method.preset=[1]", "masks.scales=[]", "masks.scales=[0]", "masks.alphas=[]"])
def test_a_value_that_nothing_can_be_made_with_is_refused(text):
    with pytest.raises(UserError, match=text.partition("=")[0]):
        load_config(None, [text])


def test_a_bare_name_means_the_config_that_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("own")) == load_config(DEMO.with_name("own.yaml"))
    (tmp_path / "own").write_text("run: {name: mine}\n")
    assert load_config(Path("own")).run.name == "mine"


def test_a_config_that_is_not_there_names_the_built_in_ones():
    with pytest.raises(UserError, match=r"own2: no such file; .*demo.*own"):
        load_config(Path("own2"))


def test_own_pictures_are_trained_without_a_second_run_and_get_masks_of_all_pictures():
    own = load_config(Path("own"))
    assert not own.train.baseline and own.masks.pictures.train is None and own.engine.name == "torch"


def test_a_watchdog_that_takes_waiting_for_storage_for_hanging_is_refused():
    keys = ["run.root=s3://bucket/runs", "run.deadline=100"]
    with pytest.raises(UserError, match=r"^train\.hang_seconds is 100, and a run waits up to run\.deadline=100 s"):
        load_config(None, [*keys, "train.hang_seconds=100"])
    assert load_config(None, [*keys, "train.hang_seconds=101"]).train.hang_seconds == 101
