"""Wrong inputs end in one line that names what is wrong and the mend, exit status 2, and nothing half-done."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import kernels
from ktse_dist import evaluate, masks, report, train
from ktse_dist.cli import dispatch
from ktse_dist.config_file import load_config
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.errors import run_main

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    """Inputs to go wrong with."""
    folder = tmp_path_factory.mktemp("inputs")
    data = folder / "stickers"
    pack_stickers(data, train=10, val=2)
    made = {"data": data, "runs": folder / "runs", "empty": folder / "empty", "pickle": folder / "model.pth"}
    made["empty"].mkdir()
    torch.save({"weight": torch.zeros(1)}, made["pickle"])
    made["list"] = folder / "list.yaml"
    made["list"].write_text("- 1\n")
    made["alias"] = folder / "alias.yaml"
    made["alias"].write_text("run: &a {name: x}\ndata: *a\n")
    made["foreign"] = folder / "foreign"
    made["foreign"].mkdir()
    (made["foreign"] / "dataset.json").write_text(json.dumps({"format": 99}))
    made["torn"] = folder / "torn"
    pack_stickers(made["torn"], train=10, val=2)
    index = made["torn"] / "train.index"
    index.write_bytes(index.read_bytes()[:-20])
    made["cut"] = folder / "cut"
    pack_stickers(made["cut"], train=10, val=2)
    shard = made["cut"] / "val-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-20])
    made["run"] = folder / "runs" / "broken"
    made["run"].mkdir(parents=True)
    (made["run"] / "checkpoints" / "step-00000007").mkdir(parents=True)
    torch.save({}, made["run"] / "checkpoints" / "step-00000007" / "mp_rank_00_model_states.pt")
    return made


Case = tuple[Callable[[list[str]], None], str, tuple[str, ...]]
SMALL = "data.path={data} run.root={runs} engine.name=torch train.batch=[[0,2]]"

CASES: dict[str, Case] = {
    "unknown section": (train.main, "trian.epochs=3", ("trian", "train")),
    "unknown key": (train.main, "train.epoch=3", ("train.epoch", "train.epochs")),
    "value of a wrong kind": (train.main, "train.epochs=many", ("train.epochs", "many", "integer")),
    "pseudo-label thresholds the wrong way round": (
        train.main,
        "method.pseudo_label.low=0.4",
        ("method.pseudo_label.low", "0.4", "high=0.3"),
    ),
    "value out of range": (
        train.main,
        "method.erasing.threshold=1.5",
        ("method.erasing.threshold", "1.5", "less than 1"),
    ),
    "choice that does not exist": (train.main, "engine.name=horovod", ("engine.name", "horovod", "'ddp'")),
    "preset that does not exist": (train.main, "method.preset=best", ("method.preset", "best", "'published'")),
    "ZeRO stage that does not exist": (train.main, "engine.zero=4", ("engine.zero", "4", "3")),
    "no override at all": (train.main, "epochs", ("epochs", "section.key=value")),
    "config file missing": (train.main, "--config {empty}/none.yaml", ("none.yaml", "no such file")),
    "config that is no mapping": (train.main, "--config {list}", ("list.yaml", "mapping")),
    "config with aliases": (train.main, "--config {alias}", ("alias.yaml", "aliases")),
    "batch smaller than the workers": (train.main, "train.batch=[[0,1]] ray.workers=2", ("train.batch", "ray.workers")),
    "batch schedule out of order": (train.main, "train.batch=[[3,8]]", ("train.batch", "[[0, size]")),
    "batch larger than the data": (train.main, f"{SMALL} train.batch=[[0,16]]", ("train.batch", "16", "10")),
    "phase 1 longer than the run": (
        train.main,
        "train.epochs=1 train.phase1_epochs=2 train.baseline=false",
        ("phase1_epochs", "train.epochs"),
    ),
    "stride that the backbone lacks": (train.main, "model.backbone=resnet38d", ("output_stride", "8")),
    "no data": (train.main, "data.path={empty}", ("empty", "dataset.json")),
    "data of another format": (train.main, "data.path={foreign}", ("dataset.json", "99")),
    "index cut short": (train.main, "data.path={torn} run.root={runs}", ("train.index",)),
    "dry run on a shard cut short": (
        train.main,
        "data.path={cut} run.root={runs} train.batch=[[0,2]] --dry-run",
        ("val-00000.tar", "bytes, expected are"),
    ),
    "weights that are a pickle": (
        train.main,
        f"{SMALL} model.weights={{pickle}} run.name=pickled",
        ("model.pth", "ktse convert FILE"),
    ),
    "checkpoint that is a pickle": (train.main, f"{SMALL} run.name=broken", ("step-00000007", "ktse convert FILE")),
    "GPU asked for where there is none": (
        train.main,
        "data.path={data} run.root={runs} train.batch=[[0,2]] ray.use_gpu=true",
        ("use_gpu", "0"),
    ),
    "run root that is a file": (
        train.main,
        "data.path={data} run.root={list} engine.name=torch train.batch=[[0,2]]",
        ("run.root", "list.yaml", "write"),
    ),
    "run name with a slash": (train.main, "run.name=a/b", ("run.name", "a/b")),
    "masks of no run": (masks.main, "--run {empty}", ("config.yaml", "ktse train")),
    "score of no run": (evaluate.main, "--run {empty}", ("config.yaml", "ktse train")),
    "report of no run": (report.main, "--run {empty}", ("ktse",)),
    "file to convert missing": (dispatch, "convert {empty}/a.pth {empty}/out.safetensors", ("a.pth", "no such file")),
    "verb that does not exist": (dispatch, "trian", ("trian", "train")),
}


def command(line: str, files: Files) -> list[str]:
    return [part.format(**files) for part in line.split(" ")]


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_input_is_one_line_with_the_mend(name, files, capsys, monkeypatch):
    main, line, expected = CASES[name]
    monkeypatch.setenv("KTSE_RUNS", str(files["runs"]))
    with pytest.raises(SystemExit) as stop:
        run_main(main, command(line, files))
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert len([text for text in error.splitlines() if text.startswith("ktse: ")]) == 1
    assert "Traceback" not in error
    for part in expected:
        assert part in error


def test_a_relative_run_root_inside_a_job_is_refused(files, capsys, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("KTSE_RUNS", raising=False)
    with pytest.raises(SystemExit) as stop:
        run_main(train.main, [f"data.path={files['data']}"])
    assert stop.value.code == 2
    assert "run.root" in capsys.readouterr().err


def test_an_engine_that_is_not_installed_is_named_with_the_one_that_is(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(SystemExit) as stop:
        run_main(train.main, command("data.path={data} run.root={runs} train.batch=[[0,2]]", files))
    assert stop.value.code == 2
    assert "engine.name=torch" in capsys.readouterr().err


def test_a_kernel_mode_of_the_environment_that_does_not_exist_is_named(files, capsys, monkeypatch):
    monkeypatch.setenv("KTSE_KERNELS", "fast")
    with pytest.raises(SystemExit) as stop:
        run_main(train.main, command(SMALL, files))
    assert stop.value.code == 2
    assert "KTSE_KERNELS: 'fast'" in capsys.readouterr().err


def test_triton_kernels_without_a_gpu_are_refused_before_training(files, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SystemExit) as stop:
        run_main(train.main, command(f"{SMALL} kernels.mode=triton", files))
    kernels.set_mode("auto")
    assert stop.value.code == 2
    assert "kernels.mode: 'triton' got CPU tensors; it needs a CUDA device" in capsys.readouterr().err


def test_compiling_without_a_compiler_is_refused_before_training(files, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        run_main(train.main, command(f"{SMALL} train.compile=true", files))
    assert stop.value.code == 2
    assert "train.compile: needs a C++ compiler" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_not_called_trained(files, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", lambda planned: None)  # as after SIGTERM
    with pytest.raises(SystemExit) as stop:
        run_main(train.main, command(f"{SMALL} run.name=stopped", files))
    assert stop.value.code == 143
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped: ")


def test_a_run_that_another_command_trains_is_left_alone(files, capsys):
    folder = files["runs"] / "taken"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(SystemExit) as stop:
        run_main(train.main, command(f"{SMALL} run.name=taken", files))
    assert stop.value.code == 2
    assert f"{folder}: another ktse train is at work there" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_weights_mean_the_same_file_from_every_folder(files):
    config = load_config(None, command("data.path={data} run.root={runs} model.weights=mine.safetensors", files))
    assert train.resolved(config).model.weights == Path("mine.safetensors").absolute()


def test_a_wrong_input_leaves_nothing_behind(files, capsys):
    before = sorted(files["runs"].rglob("*"))
    with pytest.raises(SystemExit):
        run_main(train.main, command(f"{SMALL} train.batch=[[0,16]] run.name=never", files))
    assert sorted(files["runs"].rglob("*")) == before


def test_the_command_itself_exits_with_2_and_shows_a_traceback_only_with_debug():
    line = [sys.executable, "-m", "ktse_dist.train", "train.epoch=3"]
    short, long = (
        subprocess.run(line + more, capture_output=True, text=True, timeout=120) for more in ([], ["--debug"])
    )
    assert short.returncode == 2
    assert short.stderr.strip().count("\n") == 0
    assert "Traceback" in long.stderr
