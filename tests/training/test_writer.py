"""The thread that writes checkpoints: training goes on beside it, and what it could not write is told."""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from ktse_dist.errors import UserError
from ktse_dist.run_folder import RunFolder
from ktse_dist.training import checkpoint
from ktse_dist.training.writer import Snapshot, Writer

WEIGHTS = {"w": torch.arange(6.0).view(2, 3)}


def snapshot(step: int, numbers: int = 0) -> Snapshot:
    more = {"more": torch.ones(numbers)} if numbers else {}
    return Snapshot(WEIGHTS | more, {"w": torch.full((2, 3), 0.5)}, {"step": step})


def names(folder: RunFolder) -> list[str]:
    return sorted(os.listdir(folder.checkpoints))


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Saves wait until it is set."""
    event, save = threading.Event(), checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: event.wait(60) and save(*arguments))
    return event


def test_training_goes_on_while_a_checkpoint_is_written(folder, gate):
    with Writer(folder, 2, None) as writer:
        writer.begin(["step-00000001"], snapshot(1))
        assert not folder.checkpoints.exists()
        gate.set()
    assert checkpoint.load(folder.checkpoints / "step-00000001").state == {"step": 1}


def test_the_next_checkpoint_waits_for_the_one_before(folder, gate):
    with Writer(folder, 2, None) as writer:
        writer.begin(["step-00000001"], snapshot(1))
        threading.Timer(0.2, gate.set).start()
        writer.wait()
        assert names(folder) == ["step-00000001"]
        writer.begin(["phase1", "step-00000002"], snapshot(2))
    assert names(folder) == ["phase1", "step-00000001", "step-00000002"]


def test_an_error_ends_the_run_at_the_next_save_or_at_the_end(folder):
    folder.path.mkdir()
    folder.checkpoints.write_text("in the way")
    with Writer(folder, 2, None) as writer:
        writer.begin(["step-00000001"], snapshot(1))
        with pytest.raises(UserError, match=r"step-00000001 could not be written \(.*goes on from the start"):
            writer.wait()
    with pytest.raises(UserError, match="could not be written"), Writer(folder, 2, None) as writer:
        writer.begin(["step-00000001"], snapshot(1))


def test_the_writer_s_error_is_told_beside_what_ends_the_run(folder, caplog):
    folder.path.mkdir()
    folder.checkpoints.write_text("in the way")
    with (
        caplog.at_level(logging.ERROR, "ktse"),
        pytest.raises(ZeroDivisionError),
        Writer(folder, 2, None) as writer,
    ):
        writer.begin(["step-00000001"], snapshot(1))
        raise ZeroDivisionError
    assert "step-00000001 could not be written" in caplog.text


def test_what_is_written_when_the_run_fails_is_finished(folder, gate):
    with pytest.raises(ZeroDivisionError), Writer(folder, 2, None) as writer:
        writer.begin(["step-00000001"], snapshot(1))
        threading.Timer(0.2, gate.set).start()
        raise ZeroDivisionError
    assert names(folder) == ["step-00000001"]


FULL = """
import os, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_writer import LIMITS, RunFolder, UserError, Writer, snapshot
for limit in LIMITS:
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        try:
            with Writer(RunFolder(Path(sys.argv[1]) / str(limit)), 2, None) as writer:
                writer.begin(["step-00000002"], snapshot(2, 1000))
        except UserError as error:
            os.write(1, f"{error}\\n".encode())
        os._exit(0)
    os.wait()
"""
LIMITS = (0, 50, 150, 4095)  # bytes


def test_a_file_that_cannot_grow_ends_in_one_line_and_the_last_checkpoint_stays(tmp_path):
    """The kernel refuses every byte beyond the limit."""
    folders = [RunFolder(tmp_path / str(limit)) for limit in LIMITS]
    for folder in folders:
        with Writer(folder, 2, None) as writer:
            writer.begin(["step-00000001"], snapshot(1))
    lines = driven(FULL, tmp_path).splitlines()
    assert len(lines) == len(LIMITS)
    for folder, line in zip(folders, lines, strict=True):
        assert f"{folder.checkpoints}: step-00000002 could not be written" in line
        assert "goes on from step-00000001" in line
        assert names(folder) == ["step-00000001"]
        assert checkpoint.load(folder.checkpoints / "step-00000001").state == {"step": 1}


def driven(program: str, *arguments: object) -> str:
    """What a program, which forks, prints."""
    command = [sys.executable, "-c", program, str(arguments[0]), str(Path(__file__).parent), *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("taken", [0, 100, 200])  # KiB beforehand: it fills up in other files
def test_a_full_disk_ends_in_one_line_and_leaves_room_again(disk, taken):
    small_disk = disk("256k")
    folder = RunFolder(small_disk / "run")
    with Writer(folder, 2, None) as writer:
        writer.begin(["step-00000001"], snapshot(1))
    (small_disk / "others").write_bytes(bytes(taken << 10))
    with pytest.raises(UserError, match=r"step-00000002.*No space left on device.*step-00000001"):  # noqa: SIM117
        with Writer(folder, 2, None) as writer:
            writer.begin(["step-00000002"], snapshot(2, 100_000))
    assert names(folder) == ["step-00000001"]
    (small_disk / "others").write_bytes(b"")
    with Writer(folder, 2, None) as writer:
        writer.begin(["step-00000003"], snapshot(3, 10_000))
    for step in (1, 3):
        assert checkpoint.load(folder.checkpoints / f"step-{step:08}").state == {"step": step}


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_writer import Writer, RunFolder, checkpoint, snapshot
count = 0
def killed(before):
    def call(*arguments, **names):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **names)
    return call
for owner, name in ((checkpoint, "save_tensors"), (checkpoint, "_sync"), (Path, "write_text"), (Path, "rename"),
                    (shutil, "rmtree"), (Path, "mkdir"), (os, "unlink")):
    setattr(owner, name, killed(getattr(owner, name)))
for at in map(int, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        with Writer(RunFolder(Path(sys.argv[1]) / str(at)), 2, None) as writer:
            writer.begin(["phase1", "step-00000002"], snapshot(2))
            writer.wait()
            writer.begin(["step-00000003"], snapshot(3))
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""
POINTS = 60  # more than the three saves have


def check_kills(path: Path, points: range) -> int:
    """How many of the points a save was killed at. They are the calls that change the disk, among them those that
    prune and that replace phase1."""
    for at in points:
        with Writer(RunFolder(path / str(at)), 2, None) as writer:
            writer.begin(["phase1", "step-00000001"], snapshot(1))
    ends = [int(line) for line in driven(KILLED, path, *points).split()]
    kills = ends.count(signal.SIGKILL)
    assert ends == [signal.SIGKILL] * kills + [0] * (len(points) - kills)
    last = 1
    for number, at in enumerate(points):
        folder = RunFolder(path / str(at))
        step = checkpoint.load(checkpoint.latest(folder.checkpoints)).state["step"]
        assert last <= step <= 3 and (number < kills or step == 3)
        last = step
        with Writer(folder, 2, None) as writer:
            writer.begin(["phase1", "step-00000004"], snapshot(4))
        assert "step-00000004" in names(folder) and not [name for name in names(folder) if name.startswith(".")]
        for name in names(folder):
            checkpoint.load(folder.checkpoints / name)
    return kills


def test_a_killed_writer_leaves_the_last_good_checkpoint(tmp_path):
    assert check_kills(tmp_path, range(2, POINTS, 5)) >= 6


@pytest.mark.slow
def test_a_writer_killed_at_each_of_its_write_points_leaves_the_last_good_checkpoint(tmp_path):
    assert check_kills(tmp_path, range(1, POINTS)) >= 30


def test_weights_that_are_no_numbers_are_not_written(folder):
    wild = snapshot(2)._replace(weights={"w": torch.tensor([1.0, float("nan")])})
    told = pytest.raises(UserError, match=r"weights of step-00000002 are no finite numbers.*lower the learning")
    with told, Writer(folder, 1, None) as writer:
        writer.begin(["step-00000001"], snapshot(1))
        writer.wait()
        writer.begin(["step-00000002"], wild)
    assert names(folder) == ["step-00000001"]
