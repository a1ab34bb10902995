"""The training loop under Ray Train: one TorchTrainer, `ray.workers` processes, a local or a running cluster."""

import logging
import os
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import (  # what worker_failures holds; no public names
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)

from ktse_dist.config import Config
from ktse_dist.data.pool import WorkerDied
from ktse_dist.errors import STOPPED, UserError
from ktse_dist.launch.address import joins_cluster
from ktse_dist.launch.board import Pulse, Warden, make_board
from ktse_dist.launch.resize import SaveBeforeResize
from ktse_dist.training.job import Job
from ktse_dist.training.loop import run
from ktse_dist.training.setup import prepare_process
from ktse_dist.training.watchdog import FIRST_STEP

log = logging.getLogger("ktse")

# Ray's controller looks at workers this often, and report() waits for one look.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# It asks this often whether a node will be taken away; some clouds give 15 s.
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")

# Ray hears of a lost node up to 20 s late; a worker group that counted on it is given up and planned anew.
START_SECONDS = 30


class Asked(IntEnum):
    """What the ranks agree on: the highest that any of them was asked."""

    GO_ON = 0
    MOVE = 1  # a node will be taken away: a checkpoint, then a new start without it
    STOP = 2  # a checkpoint, then the end


class RayContext:
    """A rank of a Ray Train worker group."""

    step = 0

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()

    def report(self, metrics: dict[str, Any], checkpoint_path: Path | None = None) -> None:
        """Ray gets the path of a checkpoint, not a copy: our own writer keeps and prunes them."""
        ray.train.report(metrics | ({"checkpoint": str(checkpoint_path)} if checkpoint_path else {}))

    def should_stop(self) -> bool:
        return False  # a stopped cluster ends the process; the last checkpoint is where it goes on


class WatchedContext(RayContext):
    """A rank with a pulse: its steps are watched, and all ranks may be asked to leave."""

    def __init__(self, pulse: Pulse, config: Config) -> None:
        super().__init__()
        self._pulse, self.asked = pulse, Asked.GO_ON
        # its own group on the CPU: no step waits for the GPU to know whether to stop
        limit = timedelta(seconds=collective_seconds(config))
        self._group = dist.new_group(backend="gloo", timeout=limit) if self.world > 1 else None
        self._flag, self._sending = torch.zeros(1, dtype=torch.int32), None

    @property
    def step(self) -> int:
        return self._pulse.step

    @step.setter
    def step(self, step: int) -> None:
        self._pulse.step = step

    @property
    def stopping(self) -> bool:
        return self.asked != Asked.GO_ON

    def report(self, metrics: dict[str, Any], checkpoint_path: Path | None = None) -> None:
        if not self.stopping:  # then nobody listens
            super().report(metrics, checkpoint_path)

    def should_stop(self) -> bool:
        """What the ranks said one step earlier, so that none waits for the exchange."""
        if self._sending:
            self._sending.wait()
            self.asked = Asked(int(self._flag))
        elif not self._group:
            self.asked = self._own()
        if self._group and not self.stopping:
            self._flag.fill_(self._own())
            self._sending = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return self.stopping

    def _own(self) -> Asked:
        return Asked.STOP if self._pulse.asked_to_stop else Asked.MOVE if self._pulse.going else Asked.GO_ON

    def leave_node(self) -> None:
        """After the checkpoint. Ray starts all ranks again, elsewhere, when those of the node have failed like this."""
        going = self._pulse.going or [self.rank]
        if self.rank == 0:
            log.info(f"the nodes of ranks {going} will be taken away: checkpoint written after step {self.step}")
        if self.rank in going:
            raise RayActorError(error_msg=f"the node of rank {self.rank} will be taken away", preempted=True)


def collective_seconds(config: Config) -> int:
    """The longest that a rank waits for the others: later than the watchdog, which can tell who is at fault."""
    return (FIRST_STEP + 1) * config.train.hang_seconds


def train_with_ray(jobs: list[Job]) -> None:
    """Run the jobs one after the other on the same workers. Raises UserError for what the user can mend."""
    config = jobs[0].config
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(collective_seconds(config))
    if config.ray.fewest < config.ray.most:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_SECONDS))
    connect(config)
    board = make_board(config)
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"jobs": jobs, "board": board},
        torch_config=TorchConfig("nccl" if config.ray.use_gpu else "gloo", timeout_s=collective_seconds(config)),
        scaling_config=scaling(config),
        run_config=RunConfig(
            name=f"{jobs[0].folder.path.name}-{os.getpid()}",
            storage_path=str(jobs[0].folder.path / "ray"),
            failure_config=FailureConfig(
                max_failures=config.ray.max_failures, max_preemption_failures=config.ray.max_preemptions
            ),
            worker_runtime_env={"env_vars": worker_environment(config)},
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[SaveBeforeResize(board, config.train.grace_seconds)],
        ),
    )
    try:
        with Warden(board, config, STOPPED):
            trainer.fit()
        if mistake := ray.get(board.mistake.remote(), timeout=config.train.hang_seconds):
            raise UserError(mistake)
    except SystemExit:
        raise KeyboardInterrupt from None  # how Ray Train's own handler of Ctrl-C ends
    except ray.train.TrainingFailedError as error:
        raise user_error(error) or lost_rank(error, config) or error from error
    finally:
        ray.shutdown()


def scaling(config: Config) -> ScalingConfig:
    return ScalingConfig(
        num_workers=config.ray.workers,
        use_gpu=config.ray.use_gpu,
        resources_per_worker={"CPU": config.ray.threads} | ({"GPU": 1} if config.ray.use_gpu else {}),
        elastic_resize_monitor_interval_s=config.ray.resize_seconds,
    )


def connect(config: Config) -> None:
    """Join the cluster of RAY_ADDRESS (set inside a submitted job), else start one on this machine for this process."""
    if joins_cluster():
        ray.init(logging_level="WARNING")
    else:
        cores = max(os.cpu_count() or 1, config.ray.most * config.ray.threads)
        check_gpus(config)
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody takes this machine away
        # Ray Train asks the dashboard for its own state, and floods the log without one
        ray.init("local", num_cpus=cores, include_dashboard=True, dashboard_host="127.0.0.1", logging_level="WARNING")


def check_gpus(config: Config) -> None:
    found = torch.cuda.device_count()
    if config.ray.use_gpu and found < config.ray.fewest:
        raise UserError(
            f"ray.use_gpu: {config.ray.fewest} workers need a GPU each, this machine has {found}; "
            "lower ray.workers, set ray.use_gpu=false, or join a cluster with RAY_ADDRESS"
        )


def worker_environment(config: Config) -> dict[str, str]:
    """The config reaches a worker by itself; KTSE_KERNELS, which wins over it, does not."""
    environment = {"OMP_NUM_THREADS": str(config.ray.threads)}
    environment |= {name: os.environ[name] for name in ("KTSE_KERNELS",) if name in os.environ}
    # Ray hides GPUs only from those that asked for one
    return environment if config.ray.use_gpu else environment | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def train_on_worker(arguments: dict[str, Any]) -> None:
    """What each worker runs."""
    jobs, board = arguments["jobs"], arguments["board"]
    config = jobs[0].config
    if ray.get(board.mistake.remote(), timeout=config.train.hang_seconds):
        return  # a new start does not mend it; the driver says what it is
    prepare_process(config.ray.threads)
    with Pulse(board, ray.train.get_context().get_world_rank(), config) as pulse:
        context = WatchedContext(pulse, config)
        if context.rank == 0 and config.ray.fewest < config.ray.most:
            log.info(f"{context.world} workers of ray.workers={list(config.ray.workers)}")
        try:
            train_jobs(jobs, context)
        except WorkerDied:
            raise  # a new start may mend it
        except UserError as error:
            ray.get(board.give_up.remote(str(error)), timeout=config.train.hang_seconds)
            be_quiet()
            raise
        if context.asked == Asked.MOVE:
            be_quiet()
            context.leave_node()


def be_quiet() -> None:
    """No traceback of Ray's for an end that is told in one line."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)


def train_jobs(jobs: list[Job], context: WatchedContext) -> None:
    for job in jobs:
        run(job, context)
        if context.stopping:
            return


def user_error(error: ray.train.TrainingFailedError) -> UserError | None:
    """The user's mistake behind a failed training, if that is what ended it."""
    raised = (f for f in failures(error).values() if isinstance(f, UserExceptionWithTraceback))
    causes = (failure._base_exc for failure in raised)
    return next((cause for cause in causes if isinstance(cause, UserError)), None)


def lost_rank(error: ray.train.TrainingFailedError, config: Config) -> UserError | None:
    """The one line for ranks that were lost once too often, if that ended the training."""
    lost = [rank for rank, failure in failures(error).items() if isinstance(failure, WorkerHealthCheckFailedError)]
    if not lost:
        return None
    return UserError(
        f"ray.max_failures: rank {lost[0]} was lost, after {config.ray.max_failures} new starts, all that are allowed; "
        "see to its machine (memory?); the same command goes on from the last checkpoint"
    )


def failures(error: ray.train.TrainingFailedError) -> dict[int, Exception]:
    """By rank."""
    return error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
