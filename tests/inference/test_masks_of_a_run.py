"""`ktse masks` in one process: what it puts up with, what it refuses, and going on after a kill."""

import contextlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock

from ktse_dist import evaluate, export, masks, report
from ktse_dist.config.stages import Masks
from ktse_dist.config_file import load_config
from ktse_dist.data import pool
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.errors import UserError, run_main
from ktse_dist.files import write_text
from ktse_dist.inference import generate
from ktse_dist.run_folder import RunFolder

TORN = (3, 17)  # rows of train


@pytest.fixture(scope="module")
def run(untrained_run) -> Path:
    return untrained_run("run")


def copy(run: Path, place: Path) -> tuple[Path, Index]:
    """The run over data of its own."""
    shutil.copytree(run.parent / "data", place / "data")
    shutil.copytree(run, place / "run", ignore=shutil.ignore_patterns("masks"))
    file = RunFolder(place / "run").config_file
    write_text(file, file.read_text().replace(str(run.parent / "data"), str(place / "data")))
    return place / "run", Index.open(place / "data", "train")


def tear(index: Index, rows: tuple[int, ...], at: int = 300) -> None:
    for row in rows:
        with (index.path / index.shards[int(index.samples["shard"][row])].name).open("r+b") as file:
            file.seek(int(index.samples["image"]["offset"][row]) + at)
            file.write(b"\0" * 8)


@pytest.fixture(scope="module")
def torn(run, tmp_path_factory) -> tuple[Path, Index, str]:
    """A run with two training pictures and one other that cannot be read, its masks, and what the command said."""
    folder, index = copy(run, tmp_path_factory.mktemp("torn"))
    tear(index, TORN)
    tear(Index.open(index.path, "val"), (1,))
    said, log = io.StringIO(), logging.getLogger("ktse")
    log.addHandler(handler := logging.StreamHandler(said))
    with contextlib.redirect_stdout(said):
        masks.main(["--run", str(folder), "masks.strength=0.3"])
    log.removeHandler(handler)
    return folder, index, said.getvalue()


def test_a_picture_that_cannot_be_read_has_a_mask_that_says_nothing(torn):
    folder, index, _ = torn
    made = MaskIndex(RunFolder(folder).masks, index)
    for row in range(len(index)):
        mask, sure = (decode_mask(made.read(row, member)) for member in ("mask", "conf"))
        assert mask.shape == sure.shape == (60, 72)
        assert ((mask == 255).all() and (sure == 0).all()) == (row in TORN)


def test_it_is_named_and_counted(torn):
    _, index, said = torn
    assert all(f"255 everywhere: {index.key(row)}: its image is damaged" in said for row in TORN)
    assert "3 pictures could not be read" in said


def test_scores_and_the_report_leave_it_out(torn):
    folder, index, _ = torn
    evaluate.main(["--run", str(folder)])
    report.main(["--run", str(folder)])
    assert RunFolder(folder).read_summary()["pictures"] == {"train": len(index) - len(TORN), "val": 3}


def test_exports_have_its_mask_and_the_pictures_that_there_are(torn, tmp_path):
    folder, index, _ = torn
    export.main(["--run", str(folder), "--out", str(tmp_path / "out"), "--pictures", "--split", "train"])
    assert len(list(tmp_path.rglob("*.jpg"))) == len(index) - len(TORN)
    assert len(list((tmp_path / "out").rglob("*.png"))) == len(index)


def test_more_of_them_than_allowed_end_the_command_also_when_it_goes_on(run, tmp_path, capsys):
    folder, index = copy(run, tmp_path)
    tear(index, (1, 9, 10, 18))
    for _ in range(2):
        with pytest.raises(UserError, match=r"data\.max_bad_fraction: 4 of 24 pictures of split 'train' .* are 3"):
            masks.main(["--run", str(folder), "masks.strength=0.3"])
    masks.main(["--run", str(folder), "masks.strength=0.3", "data.max_bad_fraction=0.2"])
    assert "4 pictures could not be read" in capsys.readouterr().out


def test_masks_made_anew_are_scored_anew(run, tmp_path):
    folder, _ = copy(run, tmp_path)
    masks.main(["--run", str(folder), "masks.strength=0.3", "--refine", "none"])
    first = evaluate.evaluated(RunFolder(folder))
    assert first["background"]["strength"] == 0.3
    shutil.rmtree(folder / "masks")
    masks.main(["--run", str(folder), "masks.strength=0.4", "--refine", "none"])
    assert evaluate.evaluated(RunFolder(folder))["background"]["strength"] == 0.4


def test_a_lost_summary_is_written_anew(run, tmp_path, capsys):
    folder, _ = copy(run, tmp_path)
    masks.main(["--run", str(folder), "masks.strength=0.3", "--refine", "none"])
    RunFolder(folder).summary_file.unlink()
    evaluate.main(["--run", str(folder)])
    assert "? images/s" in capsys.readouterr().out


def test_damaged_counts_of_finished_masks_are_named(run, tmp_path):
    folder, _ = copy(run, tmp_path)
    masks.main(["--run", str(folder), "masks.strength=0.3", "--refine", "none"])
    counts = next((folder / "masks").glob("train-*.seeds.npz"))
    counts.write_bytes(counts.read_bytes()[:50])
    with pytest.raises(UserError, match=rf"{counts.name}: damaged"):
        masks.main(["--run", str(folder), "masks.strength=0.3", "--refine", "none"])
    counts.unlink()
    with pytest.raises(UserError, match=rf"{counts.name}: not there.*ktse masks"):  # and not a score of fewer pictures
        evaluate.main(["--run", str(folder)])


def test_a_mode_of_the_kernels_that_this_machine_cannot_run_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("kernels.dispatch._chosen", "auto")  # as it is again after the test
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    folder, _ = copy(run, tmp_path)
    RunFolder(folder).write_config(load_config(folder / "config.yaml", ["kernels.mode=triton"]))
    with pytest.raises(UserError, match=r"needs a CUDA device.*or set KTSE_KERNELS=auto"):
        masks.main(["--run", str(folder), "masks.strength=0.3"])


def test_a_full_gpu_is_one_line(run, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    folder, _ = copy(run, tmp_path)
    monkeypatch.setattr(generate, "look", full)
    with pytest.raises(UserError, match=r"no room on the GPU \(CUDA out of memory\).*masks\.max_pixels"):
        masks.main(["--run", str(folder), "masks.strength=0.3"])


def test_pictures_of_the_calibration_wait_within_a_bound_and_for_nobody_elses_masks(monkeypatch):
    size = 10 * 10 * (3 + 2 * 4)
    monkeypatch.setattr(generate, "KEPT_BYTES", 2 * size)
    seed = SimpleNamespace(rgb=np.zeros((10, 10, 3), np.uint8), cams=SimpleNamespace(cams=np.zeros((2, 10, 10), "f4")))
    kept = {}
    for workers in (0, 2):
        index = SimpleNamespace(check_keys=lambda: None)
        monkeypatch.setattr(generate, "Reader", lambda index: None)
        source = generate.SeedSource(None, index, Masks(workers=workers), "opencv")
        for row in range(4):
            source.keep(SimpleNamespace(row=row, **vars(seed)))
        monkeypatch.setattr(source, "_compute", lambda row: "computed")
        kept[workers] = [row for row in range(4) if source.seed(row) != "computed"]
    assert kept == {0: [0, 1], 2: []}


def test_the_strength_is_chosen_on_those_that_can_be_read(run, tmp_path):
    folder, index = copy(run, tmp_path)
    tear(index, TORN)
    masks.main(["--run", str(folder), "masks.pictures.train=6"])
    assert '"chosen_by": "train", "pictures": 5' in (RunFolder(folder).masks / "calibration.json").read_text()


def test_a_header_that_is_torn_too_leaves_the_size_to_the_ground_truth(run, tmp_path):
    _, index = copy(run, tmp_path)
    tear(index, (3,), at=0)
    assert generate.Reader(index).size(3) == (60, 72)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != ".lock"}


@pytest.mark.slow
def test_a_killed_command_goes_on_and_makes_no_mask_twice(run, tmp_path):
    folder, _ = copy(run, tmp_path)
    arguments = ["--run", str(folder), "masks.strength=0.3", "masks.scales=[2.0,2.0]"]
    command = [sys.executable, "-m", "ktse_dist.masks", *arguments]
    masks.main(arguments)
    shutil.move(folder / "masks", tmp_path / "whole")
    first, deadline = subprocess.Popen(command, stderr=subprocess.DEVNULL), time.monotonic() + 100
    while not list((folder / "masks").glob("train-00001.seeds.npz")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    then = {file.name: file.stat().st_mtime_ns for file in (folder / "masks").glob("*.npz")}
    masks.main(arguments)
    assert len(then) >= 2 and all((folder / "masks" / name).stat().st_mtime_ns == at for name, at in then.items())
    assert contents(folder / "masks") == contents(tmp_path / "whole")


def test_a_refining_process_that_dies_ends_the_command_in_one_line(run, tmp_path, monkeypatch, capsys):
    folder, _ = copy(run, tmp_path)

    def dying(function, items, processes):
        return pool.ordered_map(signal.raise_signal, (signal.SIGKILL for _ in items), 1)

    monkeypatch.setattr(generate, "ordered_map", dying)
    with pytest.raises(SystemExit) as stop:
        run_main(masks.main, ["--run", str(folder), "masks.strength=0.3"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "\nktse: masks.processes: a worker process died" in error
    assert not list((folder / "masks").glob("*.tar"))


def test_two_commands_do_not_make_the_same_masks_at_once(run, tmp_path):
    folder, _ = copy(run, tmp_path)
    (folder / "masks").mkdir()
    with FileLock(folder / "masks" / ".lock"), pytest.raises(UserError, match="another ktse masks is at work"):
        masks.main(["--run", str(folder)])


def test_keys_that_would_change_other_things_are_refused(run):
    with pytest.raises(UserError, match=r"'ray\.workers=3': only keys of section masks"):
        masks.with_mask_keys(load_config(run / "config.yaml"), ["ray.workers=3"])


def test_a_full_cache_may_be_enlarged_for_the_masks(run):
    config = masks.with_mask_keys(load_config(run / "config.yaml"), ["data.cache.gigabytes=3"])
    assert config.data.cache.gigabytes == 3


def test_unreadable_pictures_alone_are_a_shard_without_scores(tmp_path):
    scores = generate.SeedScores(generate.ThresholdSweep(3, generate.THRESHOLDS))
    scores.add(generate.Unreadable(0, "torn", (1, 1)))
    scores.save(tmp_path / "train-00000.seeds.npz")
    with np.load(tmp_path / "train-00000.seeds.npz") as counted:
        assert counted["scores"].shape == (0, 3) and counted["unreadable"].tolist() == [0]
