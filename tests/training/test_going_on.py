"""What a run that goes on accepts, refuses and mends."""

from pathlib import Path

import pytest

from ktse_dist.config import Config
from ktse_dist.config_file import load_config
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.errors import UserError
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.checkpoint import Checkpoint
from ktse_dist.training.context import LocalContext
from ktse_dist.training.job import Job, check_same_run, prepare
from ktse_dist.training.loop import run
from ktse_dist.training.metrics import MetricsLog, Progress


def go_on(*keys: str) -> None:
    saved = Checkpoint({}, {}, {"config": load_config(None).model_dump(mode="json", by_alias=True)})
    check_same_run(saved, load_config(None, keys), Path("step-00000007"))


@pytest.mark.parametrize("key", ["run.seed=1", "train.epochs=9", "data.window_shards=1", "optimiser.phase2.lr=0.5"])
def test_a_run_does_not_go_on_with_what_would_change_its_result(key):
    with pytest.raises(UserError, match=key.partition("=")[0]):
        go_on(key)


@pytest.mark.parametrize("key", ["run.root=/elsewhere", "run.name=moved", "ray.workers=4", "engine.zero=3"])
def test_a_run_goes_on_elsewhere_and_on_another_layout(key):
    assert load_config(None, [key]) != load_config(None)
    go_on(key)  # raises nothing


def test_metrics_go_on_after_a_line_that_a_power_cut_left_unfinished(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics_file.write_text('{"step": 10, "cls": 0.5}\n{"step": 20, "cls": 0.4}\n30\n{"step": 30, "c')
    MetricsLog(folder, 10).close()
    assert folder.metrics_file.read_text() == '{"step": 10, "cls": 0.5}\n'


def test_time_and_pictures_add_up_over_stops():
    progress = Progress(pictures_left=8, seconds_before=10.0, pictures_before=40)
    progress.add(8)
    seconds, pictures = progress.spent
    assert pictures == 48
    assert 10 < seconds < 11


@pytest.fixture
def small(tmp_path) -> Config:
    pack_stickers(tmp_path / "data", train=8, val=2, workers=1)
    return load_config(None, [
        "engine.name=torch", f"data.path={tmp_path}/data", "data.crop=64", "data.long_side=[64,96]", "train.epochs=1",
        "train.phase1_epochs=1", "train.batch=[[0,4]]", "train.baseline=false", "train.precision=fp32",
    ])  # fmt: skip


def test_a_fork_whose_start_is_gone_does_not_train_from_scratch(small, tmp_path):
    with pytest.raises(UserError, match="nothing to fork from"):
        run(Job(small, RunFolder(tmp_path / "run"), start=tmp_path / "phase1"), LocalContext())
    assert not (tmp_path / "run").exists()


def test_a_missing_val_split_is_noticed_before_training(small, tmp_path):
    (tmp_path / "data" / "val.index").unlink()
    with pytest.raises(UserError, match=r"val\.index"):
        prepare(Job(small, RunFolder(tmp_path / "run")))


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(small, tmp_path):
    folder = RunFolder(tmp_path / "run")
    wild = small.model_copy(update={"optimiser": small.optimiser.model_copy(update={
        "phase1": small.optimiser.phase1.model_copy(update={"lr": 1e30})})})  # fmt: skip
    with pytest.raises(UserError, match=r"optimiser\.phase1\.lr: the loss is"):
        run(Job(wild, folder), LocalContext())
    assert not folder.checkpoints.exists() and not folder.model.exists()


def test_a_run_goes_on_from_its_last_checkpoint_once_a_full_disk_has_room_again(small, disk):
    folder = RunFolder(disk("45m") / "run")  # a checkpoint has 29 MB
    often = small.model_copy(update={"train": small.train.model_copy(update={"checkpoint_steps": 1})})
    with pytest.raises(UserError, match=r"step-00000002.*No space left on device.*goes on from step-00000001"):
        run(Job(often, folder), LocalContext())
    disk("200m")
    run(Job(often, folder), LocalContext())
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == ["step-00000001", "step-00000002"]
    assert folder.model.is_file()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_disk_full_of_other_files_ends_the_run_in_one_line(small, disk):
    place = disk("16k")
    (place / "others").write_bytes(bytes(12 << 10))
    with pytest.raises(UserError, match=r"No space left on device; free some space there and run the same command"):
        run(Job(small, RunFolder(place / "run")), LocalContext())
