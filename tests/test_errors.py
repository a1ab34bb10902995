"""How a command ends that nobody reads any more."""

import errno
import os
import subprocess
import sys

import pytest

from ktse_dist.errors import run_main

TALKS = "from ktse_dist.errors import run_main; run_main(lambda _: [print(9 * str(n)) for n in range(10**5)], [])"


def test_a_command_whose_reader_is_gone_ends_quietly():
    line = [sys.executable, "-c", TALKS]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as talking:
        assert talking.stdout.readline() == 9 * "0" + "\n"
        talking.stdout.close()
        assert talking.stderr.read() == ""
    assert talking.returncode == 141


def test_another_broken_pipe_is_not_hidden(capfd):
    def main(arguments: list[str]) -> None:
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run_main(main, [])


WORKS = """
import sys, time
from pathlib import Path
from ktse_dist.errors import run_main
from ktse_dist.files import atomic
def main(_):
    with atomic(Path(sys.argv[1])) as file:
        file.write(b"half")
        print("working")
        time.sleep(60)
run_main(main, [])
"""


def test_sigterm_ends_a_command_in_one_line_and_nothing_half_written_stays(tmp_path):
    line = [sys.executable, "-c", WORKS, str(tmp_path / "masks.tar")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as working:
        assert working.stdout.readline() == "working\n"
        working.terminate()
        said = working.communicate(timeout=60)[1]
    assert working.returncode == 143 and said == "ktse: stopped; the same command goes on from what is finished\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.EACCES, "give permission or make room"),
        (errno.ENOSPC, "give permission or make room"),
        (errno.EROFS, "give permission or make room"),
        (errno.EISDIR, "move away what lies there"),
    ],
)
def test_a_place_that_takes_no_file_is_one_line(capsys, number, mend):
    def main(arguments: list[str]) -> None:
        raise OSError(number, os.strerror(number), "runs/a/report.html")

    with pytest.raises(SystemExit) as ended:
        run_main(main, [])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"ktse: runs/a/report.html: {os.strerror(number)}; {mend}")


def test_a_bug_is_not_told_as_a_full_disk():
    def main(arguments: list[str]) -> None:
        raise FileNotFoundError(errno.ENOENT, "gone", "ours")

    with pytest.raises(FileNotFoundError):
        run_main(main, [])
