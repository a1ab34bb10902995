"""How a command ends that nobody reads any more."""

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
