"""The Slurm script, run with commands in place of Slurm's and Ray's that write down how they were called."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from ktse_dist.config_file import load_config

ROOT = Path(__file__).parents[2]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
SCRIPT = ROOT / "cluster" / "slurm" / "train.sbatch"
ARGUMENTS = ["--config", "configs/voc_large_batch.yaml", "data.path=/shared/voc"]
STUBS = {
    "hostname": "echo '10.0.0.1 fd00::1 '",
    "scontrol": 'echo "$@" >>"$HERE/scontrol"',
    "srun": """while [[ $1 == --* ]]; do shift; done
               if [ "$1" = rm ]; then echo "$@" >>"$HERE/removed"; else exec "$@"; fi""",
    # Ray starts, then does what comes after --: the training, which is the stub below
    "ray": """printf '%s\\n' "$@" >"$HERE/ray"
              env >"$HERE/environment"
              cp --preserve=mode "$RAY_AUTH_TOKEN_PATH" "$HERE/token"
              [ "${RAY_FAILS:-}" ] && exit 0
              while [ "$1" != -- ]; do shift; done; shift; "$@" """,
    "python": """if [ "$1" = -c ]; then exec "$PYTHON" "$@"; fi
                 printf '%s\\n' "$@" >"$HERE/training"
                 trap 'echo checkpoint >"$HERE/saved"; exit 143' TERM
                 for _ in $(seq "$LASTS"); do sleep 0.1; done
                 exit "${TRAINING_ENDS:-0}" """,
}


class Job(NamedTuple):
    process: subprocess.Popen
    here: Path

    def words(self, name: str) -> list[str]:
        return (self.here / name).read_text().splitlines()


@pytest.fixture
def start_job(tmp_path) -> Callable[..., Job]:
    """`start_job(lasts=0.5, **environment)`: the script on two nodes of four GPUs, under another number each time."""

    def begin(lasts: float = 0.1, script: Path = SCRIPT, **environment: str) -> Job:
        here, commands = tmp_path / "calls", tmp_path / "bin"
        for folder in (here, commands):
            folder.mkdir(exist_ok=True)
        for name, body in STUBS.items():
            (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (commands / name).chmod(0o755)
        given = {
            "PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(tmp_path), "HERE": str(here),
            "PYTHON": sys.executable, "LASTS": str(int(lasts * 10)), "KTSE_RUNS": "/shared/runs",
            "SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32",
        } | environment  # fmt: skip
        command = ["bash", str(script), *ARGUMENTS]
        return Job(subprocess.Popen(command, env=given, text=True, stderr=subprocess.PIPE), here)

    return begin


def ray_options(job: Job) -> dict[str, object]:
    """What the nodes start Ray with, parsed as symmetric-run and then `ray start` would."""
    words = job.words("ray")
    assert words[0] == "symmetric-run"
    return start.make_context("start", curate_and_validate_ray_start_args(words[1 : words.index("--")])).params


def test_the_scripts_are_what_bash_and_shellcheck_take():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    subprocess.run([SHELLCHECK, SCRIPT], check=True)


def test_shellcheck_finds_a_mistake(tmp_path):
    mistaken = tmp_path / "mistaken.sbatch"
    mistaken.write_text(SCRIPT.read_text().replace('mkdir -p "$state"', "mkdir -p $state"))
    found = subprocess.run([SHELLCHECK, mistaken], check=False, capture_output=True, text=True)
    assert "SC2086" in found.stdout


def test_the_training_gets_the_users_arguments_and_a_worker_for_every_gpu(start_job):
    job = start_job()
    assert job.process.wait(20) == 0
    module, *arguments = job.words("training")[1:]
    assert (module, arguments) == ("ktse_dist.train", [*ARGUMENTS, "ray.workers=8"])
    config = load_config(ROOT / arguments[1], arguments[2:])
    assert config.ray.workers == 8 and config.ray.use_gpu


def test_ray_starts_with_options_that_it_knows(start_job):
    job = start_job()
    job.process.wait(20)
    options = ray_options(job)
    assert options["dashboard_host"] == "127.0.0.1"
    assert (options["num_gpus"], options["num_cpus"], options["temp_dir"]) == (4, 32, "/tmp/ray-4711")
    words = job.words("ray")
    assert words[words.index("--min-nodes") + 1] == "2"
    assert words[words.index("--address") + 1] in "".join(job.words("environment"))  # RAY_ADDRESS, for the training


def ports(job: Job) -> list[int]:
    options = ray_options(job)
    gcs = next(int(w.rpartition(":")[2]) for w in job.words("ray") if w.startswith("10.0.0.1:"))
    names = ("dashboard_port", "ray_client_server_port", "dashboard_agent_listen_port", "metrics_export_port")
    return [gcs, *(int(options[name]) for name in names)]


def test_jobs_that_follow_each_other_have_ports_of_their_own(start_job):
    used: list[int] = []
    for number in ("4711", "4712", "4799", "5910", "99999999"):
        job = start_job(SLURM_JOB_ID=number)
        job.process.wait(20)
        used += ports(job)
    assert len(used) == len(set(used)) == 25
    assert all(20_000 <= port < 32_768 for port in used)  # above Ray's workers, below the kernel's own choice


def test_the_token_is_of_this_job_alone_and_only_its_owner_reads_it(start_job):
    tokens = []
    for _ in range(2):
        job = start_job()
        job.process.wait(20)
        assert stat.S_IMODE((job.here / "token").stat().st_mode) == 0o600
        tokens.append((job.here / "token").read_text().strip())
        assert "RAY_AUTH_MODE=token" in job.words("environment")
        assert not list((job.here.parent / ".ktse").iterdir())  # gone with the job
        assert job.words("removed")[-1] == "rm -rf /tmp/ray-4711"
    assert tokens[0] != tokens[1] and all(re.fullmatch("[0-9a-f]{64}", token) for token in tokens)


def test_a_token_is_in_no_command_and_in_no_environment(start_job):
    job = start_job()
    job.process.wait(20)
    token = (job.here / "token").read_text().strip()
    assert token not in "".join((job.here / name).read_text() for name in ("ray", "environment", "training"))


def test_a_signal_reaches_the_training_alone_and_the_job_is_queued_again(start_job):
    job = start_job(lasts=15)
    wait_for(job.here / "training")
    job.process.send_signal(signal.SIGTERM)
    job.process.wait(20)
    assert (job.here / "saved").read_text() == "checkpoint\n"
    assert job.words("scontrol") == ["requeue 4711"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 15
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_training_fails_the_job_and_is_not_queued_again(start_job):
    job = start_job(TRAINING_ENDS="2")
    assert job.process.wait(20) == 2
    assert not (job.here / "scontrol").exists()


def test_a_ray_that_does_not_start_fails_the_job(start_job):
    job = start_job(RAY_FAILS="yes")
    assert job.process.wait(20) == 1
    assert "Ray did not start" in job.process.stderr.read()


def test_without_a_shared_folder_nothing_starts(start_job):
    job = start_job(KTSE_RUNS="")
    assert job.process.wait(20) == 1
    assert "KTSE_RUNS" in job.process.stderr.read() and not (job.here / "ray").exists()


def test_the_job_takes_whole_nodes_and_hears_of_its_end():
    lines = [line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    options = dict(shlex.split(line)[0].removeprefix("--").partition("=")[::2] for line in lines)
    assert {"exclusive", "requeue"} <= options.keys()
    assert (options["signal"], options["open-mode"], options["ntasks-per-node"]) == ("B:TERM@120", "append", "1")
