"""A search under Ray Tune: one TorchTrainer a trial, all of them forks of one phase 1; resumable after a kill.

Tune's own notes (pickles, in the search's own folder) say which trials there are; checkpoints and scores of a trial are
ours, so a trial that was interrupted goes on from its last checkpoint.
"""

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
import ray.train
from ray import tune
from ray.train import LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE  # Ray has no public way to add one
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from ktse_dist.config import Config
from ktse_dist.errors import UserError
from ktse_dist.launch.ray_train import RayContext, connect, user_error, worker_environment
from ktse_dist.run_folder import RunFolder
from ktse_dist.search import Search, Trial, as_given, variant
from ktse_dist.training.divergence import Diverged
from ktse_dist.training.job import Job
from ktse_dist.training.setup import prepare_process
from ktse_dist.training.trial import run_trial, train_to

log = logging.getLogger("ktse")

METRIC, MODE, ARM = "score", "max", "arm"
EXPERIMENT = "search"  # Tune's folder under <search>/ray
ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # seconds between Tune's notes of its state: what a killed driver may forget
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial has metrics.jsonl and TensorBoard files of its own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would note the running trials as ended; without it Ctrl-C is another kill
    "RAY_AIR_NEW_OUTPUT": "0",  # verbose=0 silences only the old output
}
DRIVER = {"memory": 1}  # bytes: a trial itself only waits, its workers take the cores, and an empty request is refused


@dataclass(frozen=True)
class Plan:
    """A search with everything that its trials share. first: the step they fork at; rungs: those they are scored at."""

    config: Config
    search: Search
    folder: RunFolder
    first: int
    rungs: list[int]

    @property
    def base(self) -> Job:
        """The run whose phase 1 all trials share."""
        return Job(self.config, RunFolder(self.folder.path / "phase1"))

    def trial(self, name: str, values: dict[str, Any]) -> Job:
        return Job(variant(self.config, values), RunFolder(self.folder.path / "trials" / name), self.base.folder.phase1)

    def values(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The keys that a trial sets, of what Tune drew for it."""
        return self.search.arms[sample[ARM]] if self.search.arms else sample


def search_with_ray(plan: Plan) -> list[Trial]:
    """Phase 1, then the trials, in the order in which they were drawn. UserError for what the user can mend."""
    connect(plan.config)
    try:
        train_phase1(plan)
        results = tuner_of(plan, concurrent(plan)).fit()
        return [trial_of(plan, result) for result in results]
    finally:
        ray.shutdown()


def train_phase1(plan: Plan) -> None:
    if plan.base.folder.phase1.exists():
        return
    log.info("phase 1, %d steps, shared by all trials: %s", plan.first, plan.base.folder.path)
    try:
        trainer(plan, plan.base, "phase1", []).fit()
    except ray.train.TrainingFailedError as error:
        raise user_error(error) or error from error
    except SystemExit:
        raise KeyboardInterrupt from None  # how Ray Train's own handler of Ctrl-C ends
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # that handler stays, and swallows later ones


def trainer(plan: Plan, job: Job, name: str, callbacks: list[TuneReportCallback]) -> TorchTrainer:
    config = job.config
    return TorchTrainer(
        work,
        train_loop_config={"job": job, "first": plan.first, "rungs": plan.rungs if job.start else []},
        torch_config=TorchConfig(backend="nccl" if config.ray.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.ray.fewest, use_gpu=config.ray.use_gpu, resources_per_worker=of_a_worker(config)
        ),
        run_config=RunConfig(
            name=f"{name}-{os.getpid()}",
            storage_path=str(job.folder.path / "ray"),
            worker_runtime_env={"env_vars": worker_environment(config)},
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=callbacks,
        ),
    )


def of_a_worker(config: Config) -> dict[str, float]:
    return {"CPU": config.ray.threads} | ({"GPU": 1} if config.ray.use_gpu else {})


def work(arguments: dict[str, Any]) -> None:
    """What each worker of a trial runs; without rungs it is phase 1."""
    job, context = arguments["job"], RayContext()
    prepare_process(job.config.ray.threads)
    if not arguments["rungs"]:
        train_to(job, 0, arguments["first"], context)
        return
    for name in ("ktse", None):  # the lines of all trials at once tell nobody anything; metrics.jsonl has them
        logging.getLogger(name).setLevel(logging.WARNING)
    run_trial(job, arguments["first"], arguments["rungs"], context)


def trainable(plan: Plan) -> Callable[[dict[str, Any]], None]:
    def trial(sample: dict[str, Any]) -> None:
        name = tune.get_context().get_trial_id()
        name_cluster()
        try:
            trainer(plan, plan.trial(name, plan.values(sample)), name, [TuneReportCallback()]).fit()
        except ray.train.TrainingFailedError as error:
            mistake = user_error(error)
            if not isinstance(mistake, Diverged):  # a full disk, say, tells nothing of the settings
                raise (mistake or error) from None
            # a learning rate at which the loss is no number is a result, too: the worst one
            tune.report({"rung": len(plan.rungs), METRIC: 0.0, "scores": [], "failed": str(mistake)})

    return tune.with_resources(trial, DRIVER)


def name_cluster() -> None:
    """Tell the trainers that start in this process which cluster theirs is.

    What frees the cores of a trial that was given up asks for its cluster by the environment; where it finds several on
    one machine it breaks off, and the search would wait for those cores for ever.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


def concurrent(plan: Plan) -> int:
    """How many trials fit the cluster at once. UserError if not even one does."""
    workers, have = plan.config.ray.fewest, ray.cluster_resources()
    need = {name: workers * amount for name, amount in of_a_worker(plan.config).items()}
    fits = min(int(have.get(name, 0) // amount) for name, amount in need.items())
    if not fits:
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in need.items())
        found = " and ".join(f"{have.get(name, 0):g}" for name in need)
        raise UserError(
            f"ray.workers: a trial needs {wanted}, the cluster has {found}; lower ray.workers or ray.threads"
        )
    return min(fits, plan.search.concurrent or fits)


def tuner_of(plan: Plan, at_once: int) -> tune.Tuner:
    """A new search, or the one that was interrupted, with its unfinished and its failed trials."""
    os.environ |= ENVIRONMENT
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # a restored trial says its first scores twice
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = plan.folder.path / "ray"
    if tune.Tuner.can_restore(str(storage / EXPERIMENT)) and list((storage / EXPERIMENT).glob("experiment_state-*")):
        return tune.Tuner.restore(
            str(storage / EXPERIMENT), trainable(plan), resume_unfinished=True, resume_errored=True
        )
    run_config = tune.RunConfig(
        name=EXPERIMENT,
        storage_path=str(storage),
        failure_config=tune.FailureConfig(max_failures=plan.search.retries),
        callbacks=[Lines(len(plan.rungs))],
        verbose=0,
    )
    return tune.Tuner(
        trainable(plan), param_space=space(plan.search), tune_config=tune_config(plan, at_once), run_config=run_config
    )


def space(search: Search) -> dict[str, Any]:
    if search.arms:
        return {ARM: tune.grid_search(list(search.arms))}
    draw = {False: tune.uniform, True: tune.loguniform}
    return {key: draw[bounds.log](bounds.low, bounds.high) for key, bounds in search.space.items()}


def tune_config(plan: Plan, at_once: int) -> tune.TuneConfig:
    return tune.TuneConfig(
        metric=METRIC,
        mode=MODE,
        num_samples=1 if plan.search.arms else plan.search.trials,
        max_concurrent_trials=at_once,
        search_alg=algorithm(plan),
        scheduler=scheduler(plan),
    )


def algorithm(plan: Plan) -> Searcher | SearchAlgorithm:
    """The first trial of a space is the config as given, so that the best one is no worse than it."""
    given = None if plan.search.arms else as_given(plan.config, plan.search)
    points, seed = [given] if given else None, plan.config.run.seed
    if plan.search.arms or plan.search.algorithm == "random":
        return BasicVariantGenerator(points_to_evaluate=points, random_state=seed)
    return OptunaSearch(points_to_evaluate=points, seed=seed)


def scheduler(plan: Plan) -> TrialScheduler:
    """Arms are compared at their end, all of them; a space gives up its worse trials at rungs."""
    if plan.search.arms:
        return FIFOScheduler()
    return Halving(time_attr="rung", max_t=len(plan.rungs), grace_period=1, reduction_factor=plan.search.reduction)


class Halving(ASHAScheduler):
    """ASHA that knows, in a restored search, what trials scored before; Ray does not keep a scheduler's state."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for rung, score in enumerate((trial.last_result or {}).get("scores", []), start=1):
            self._trial_info[trial.trial_id].on_result(trial, rung, score)


class Lines(tune.Callback):
    """A line for each score."""

    def __init__(self, rungs: int):
        self.rungs = rungs

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        found = result.get("failed") or f"{result[METRIC]:.2f} at {result['rung']} of {self.rungs}"
        log.info("trial %s: %s, %s", trial.trial_id, found, label(trial.config))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        log.info("trial %s broke off for good: %s", trial.trial_id, trial.error_file)


def label(sample: dict[str, Any]) -> str:
    """A trial's arm, or its values, by the last parts of their keys where these differ."""
    short = {key: key.rpartition(".")[2] for key in sample}
    if len(set(short.values())) < len(short):
        short = {key: key for key in sample}
    return sample.get(ARM) or " ".join(f"{short[key]}={value:.4g}" for key, value in sample.items())


def trial_of(plan: Plan, result: tune.Result) -> Trial:
    metrics = result.metrics or {}
    name = Path(result.path).name if not metrics else metrics["trial_id"]
    error = str(result.error).strip().splitlines()[-1] if result.error else None
    return Trial(
        name,
        label(result.config),
        plan.values(result.config),
        metrics.get("scores", []),
        metrics.get("seconds", 0.0),
        metrics.get("failed") or error,
    )
