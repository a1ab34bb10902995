"""Checkpoint directories: whole or absent, verified, pruned."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ktse_dist.errors import UserError
from ktse_dist.training import checkpoint

WEIGHTS = {"backbone.w": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}
MOMENTUM = {"backbone.w": torch.full((2, 3), 0.5)}


def write(folder: Path, step: int, keep: int = 10, name: str | None = None, state: dict | None = None) -> Path:
    name = name or f"step-{step:08}"
    checkpoint.save(folder, name, WEIGHTS, MOMENTUM, state or {"step": step}, keep)
    return folder / name


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    path = write(tmp_path / "deep" / "er", 7, state={"step": 7, "config": {"lr": 0.1, "name": "ü"}})
    read = checkpoint.load(path)
    assert read.state == {"step": 7, "config": {"lr": 0.1, "name": "ü"}}
    for saved, loaded in ((WEIGHTS, read.weights), (MOMENTUM, read.momentum)):
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[k], loaded[k]) and saved[k].dtype == loaded[k].dtype for k in saved)


def test_a_checkpoint_without_momentum_can_be_saved(tmp_path):
    checkpoint.save(tmp_path, "phase1", WEIGHTS, {}, {}, keep=1)
    assert checkpoint.load(tmp_path / "phase1").momentum == {}


def test_a_checkpoint_s_files_are_for_all_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        path = write(tmp_path, 1)
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == dict.fromkeys(os.listdir(path), 0o640)


def test_latest_is_the_highest_step_and_no_named_one(tmp_path):
    assert checkpoint.latest(tmp_path / "absent") is None
    write(tmp_path, 0, name="phase1")
    assert checkpoint.latest(tmp_path) is None
    for step in (99999999, 100000000, 5):
        write(tmp_path, step)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-100000000"


def test_only_the_last_k_steps_and_all_named_ones_are_kept(tmp_path):
    write(tmp_path, 1, name="phase1")
    for step in range(1, 6):
        write(tmp_path, step, keep=2)
    assert names(tmp_path) == ["phase1", "step-00000004", "step-00000005"]


def test_saving_a_name_again_replaces_it(tmp_path):
    write(tmp_path, 1, name="best")
    path = write(tmp_path, 2, name="best")
    assert checkpoint.load(path).state == {"step": 2}
    assert names(tmp_path) == ["best"]


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE])
def test_every_flipped_byte_is_refused_with_the_files_name(tmp_path, file):
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    good = (path / file).read_bytes()
    for place in range(0, len(good), max(1, len(good) // 60)):
        bad = bytearray(good)
        bad[place] ^= 1
        (path / file).write_bytes(bad)
        try:
            read = checkpoint.load(path)
        except UserError as error:
            assert str(path / file) in str(error)
        else:  # white space and such between the values of state.json
            assert file == checkpoint.STATE
            assert read.state == {"step": 2}
    (path / file).write_bytes(good)
    assert checkpoint.load(path).state == {"step": 2}


def test_damage_is_mended_by_going_back_to_the_previous_checkpoint(tmp_path):
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    (path / checkpoint.OPTIMIZER).unlink()
    with pytest.raises(UserError, match=r"step-00000002/optimizer.safetensors.*delete .*step-00000002 .*step-00000001"):
        checkpoint.load(path)


def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path):
    torch.save({"step": 1}, tmp_path / "model.pt")
    (tmp_path / "deepspeed").mkdir()
    torch.save({}, tmp_path / "deepspeed" / "mp_rank_00_model_states.pt")
    for path in (tmp_path / "model.pt", tmp_path / "deepspeed"):
        with pytest.raises(UserError, match=r"`ktse convert FILE OUT.safetensors`"):
            checkpoint.load(path)


def test_a_pickle_under_a_safetensors_name_is_never_opened(tmp_path):
    path = write(tmp_path, 1)
    torch.save(WEIGHTS, path / checkpoint.WEIGHTS)
    with pytest.raises(UserError, match=r"weights.safetensors: missing or damaged"):
        checkpoint.load(path)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from ktse_dist.training import checkpoint
count = 0
def killed(before):
    def call(*arguments, **names):
        global count
        count += 1
        if count == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **names)
    return call
for owner, name in ((checkpoint, "save_tensors"), (checkpoint, "_sync"), (Path, "write_text"), (Path, "rename")):
    setattr(owner, name, killed(getattr(owner, name)))
checkpoint.save(Path(sys.argv[1]), "step-00000002", {"w": torch.ones(3)}, {}, {"step": 2}, 10)
"""


def test_a_save_killed_anywhere_leaves_a_whole_checkpoint(tmp_path):
    """Killed at each file-system call of a save that replaces step 2; torch is imported once, the saves are forked."""
    program = textwrap.dedent(KILLED).replace("checkpoint.save(", "LAST = lambda: checkpoint.save(")
    driver = textwrap.dedent("""
        for at in range(1, 12):
            child = os.fork()
            if child == 0:
                sys.argv[1:] = [f"{root}/{at}", str(at)]
                LAST()
                os._exit(0)
            print(os.WTERMSIG(os.waitpid(child, 0)[1]))
    """)
    for at in range(1, 12):
        write(tmp_path / str(at), 1)
        write(tmp_path / str(at), 2)
    run = subprocess.run(
        [sys.executable, "-c", program + "root = sys.argv[1]\n" + driver, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    signals = [int(s) for s in run.stdout.split()]
    assert signals[0] == signal.SIGKILL
    assert signals[-1] == 0, "the last of the 11 is beyond a save's last call"
    for at in range(1, 12):
        folder = tmp_path / str(at)
        checkpoint.load(checkpoint.latest(folder))
        write(folder, 3)
        assert [n for n in names(folder) if n.startswith(".")] == []
        for name in ("step-00000001", "step-00000002", "step-00000003"):
            checkpoint.load(folder / name)
