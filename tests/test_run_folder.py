"""Where runs lie and how their summary grows."""

from pathlib import Path

import pytest

from ktse_dist.config_file import load_config
from ktse_dist.errors import UserError
from ktse_dist.run_folder import JOB_MARK, RunFolder, dataset_path, run_root


def test_the_root_is_the_key_then_the_environment_then_runs_here(monkeypatch):
    monkeypatch.delenv(JOB_MARK, raising=False)
    monkeypatch.setenv("KTSE_RUNS", "/elsewhere")
    assert run_root(load_config(None, ["run.root=/given"])) == Path("/given")
    assert run_root(load_config(None)) == Path("/elsewhere")
    monkeypatch.delenv("KTSE_RUNS")
    assert run_root(load_config(None)) == Path.cwd() / "runs"


def test_inside_a_job_only_an_absolute_root_will_do(monkeypatch):
    monkeypatch.delenv("KTSE_RUNS", raising=False)
    monkeypatch.setenv(JOB_MARK, "{}")
    with pytest.raises(UserError, match=r"run\.root"):
        run_root(load_config(None))
    assert run_root(load_config(None, ["run.root=/shared"])) == Path("/shared")


def test_a_tilde_means_the_home_folder_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(None, ["run.root=~/runs", "data.path=~/data"])
    assert (run_root(config), dataset_path(config)) == (Path("/home/me/runs"), Path("/home/me/data"))


def test_the_embedded_data_lie_under_the_root():
    assert dataset_path(load_config(None, ["run.root=/shared"])) == Path("/shared/stickers")


def test_a_summary_keeps_what_other_stages_wrote_and_its_total_is_true(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.update_summary(images_per_second=3.0, seconds={"train": 2.0})
    folder.update_summary(seed_miou=40.0, seconds={"masks": 1.5})
    folder.update_summary(seconds={"masks": 2.5})
    assert folder.read_summary() == {
        "images_per_second": 3.0,
        "seed_miou": 40.0,
        "seconds": {"train": 2.0, "masks": 2.5, "total": 4.5},
    }


def test_a_written_config_is_read_back(tmp_path):
    folder, config = RunFolder(tmp_path), load_config(None, ["run.name=other"])
    folder.write_config(config)
    assert folder.read_config() == config


@pytest.mark.parametrize("kept", [0, 3])
def test_a_config_that_lost_its_end_is_no_config(tmp_path, kept):
    folder = RunFolder(tmp_path)
    folder.write_config(load_config(None))
    sections = folder.config_file.read_text().split("\n")
    ends = [n for n, line in enumerate(sections) if line and not line.startswith(" ")]
    folder.config_file.write_text("\n".join(sections[: ends[kept]]))
    with pytest.raises(UserError, match=r"config\.yaml: damaged, section '\w+' is missing"):
        folder.read_config()


@pytest.mark.parametrize("content", ["[]", "3", '"x"'])
def test_a_summary_that_is_no_object_is_damaged(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.summary_file.write_text(content)
    with pytest.raises(UserError, match=r"summary\.json: damaged"):
        folder.read_summary()
