"""One command at a time in a folder, also after the machine of the last one was lost."""

import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from ktse_dist import run_lock
from ktse_dist.errors import UserError
from ktse_dist.run_lock import alone

HOLD = "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
HOLD += "print('held', flush=True); time.sleep(60)"


def test_a_second_command_on_this_machine_is_refused_at_once(tmp_path):
    refused = pytest.raises(UserError, match="another ktse train is at work there")
    with alone(tmp_path, "ktse train"), refused, alone(tmp_path, "ktse train"):
        pass


def test_the_lock_is_free_after_the_end_and_after_an_error(tmp_path):
    with pytest.raises(ValueError), alone(tmp_path, "ktse train"):
        raise ValueError
    with alone(tmp_path, "ktse train"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match="is at work there"), alone(tmp_path, "ktse train"):
            pass
        process.kill()
    with alone(tmp_path, "ktse train"):
        assert (tmp_path / ".owner").is_file()


def test_the_lock_of_another_machine_is_waited_for(tmp_path):
    (tmp_path / ".owner").write_text("elsewhere")
    held = FileLock(tmp_path / ".lock", thread_local=False)
    held.acquire()
    threading.Timer(0.5, held.release).start()
    started = time.monotonic()
    with alone(tmp_path, "ktse train"):
        assert time.monotonic() - started >= 0.4
        assert (tmp_path / ".owner").read_text() != "elsewhere"


def test_one_that_goes_on_working_elsewhere_is_told_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "LEASE_SECONDS", 0.2)
    (tmp_path / ".owner").write_text("elsewhere")
    refused = pytest.raises(UserError, match="another ktse train is at work there")
    with FileLock(tmp_path / ".lock"), refused, alone(tmp_path, "ktse train"):
        pass
