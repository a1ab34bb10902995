"""`python -m ktse_dist.train [--config FILE] [a.b=c ...]`: train a run, or go on with it where it stopped."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kernels
from kernels.dispatch import check_device
from ktse_dist import models
from ktse_dist.config import Config
from ktse_dist.config_file import load_config, merge, to_yaml, validate
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.errors import STOPPED, Parser, UserError, run_main
from ktse_dist.run_folder import RunFolder, dataset_path, run_address, run_folder, run_root
from ktse_dist.run_lock import alone
from ktse_dist.training.context import LocalContext
from ktse_dist.training.dry_run import describe
from ktse_dist.training.job import Job, mirror_of, prepare
from ktse_dist.training.loop import run
from ktse_dist.training.mirror import send
from ktse_dist.training.setup import fast_precision, prepare_process, start_logging, uses_gpu

DRY_RUN = (
    "check all that a start checks, print config, data, parameters, memory, steps, weights; stop. Exit status 2 for "
    "what would stop the run; weights that are not there yet are only the last line, 'not ready: ...', and status 0"
)
NEEDED = {"torch": (), "ddp": ("ray",), "deepspeed": ("ray", "deepspeed")}  # packages of each engine


def main(arguments: list[str]) -> None:
    parser = Parser(prog="ktse train", description=__doc__)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML, or a built-in one: demo (default), own")
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="keys set over the config")
    options = parser.parse_intermixed_args(arguments)
    config = resolved(load_config(options.config, options.overrides))
    folder = run_folder(config)
    start_logging()
    planned = jobs(config, folder)
    check_installed(config)
    check_compiler(config)
    check_kernels(config)
    # a run at an address: what the working folder holds is replaced, which must not happen to a run at work there
    with at_work(folder) if folder.address else nullcontext():
        prepared = [prepare(job) for job in planned]
    index, schedule, saved = prepared[0]
    if options.dry_run:
        print(to_yaml(config), describe(config, index, schedule, saved), sep="\n")
        return
    if not saved:
        print(f"model.weights: {models.starting_point(config.model, index.classes)}")
    with at_work(folder):
        train(planned)
        bring_results(planned)
    if not all(job.folder.model.exists() for job in planned):
        print(f"stopped: {folder.path}; the same command goes on where it stopped")
        raise SystemExit(STOPPED)
    if config.train.baseline and folder.baseline.model.exists():
        folder.update_summary(seconds=folder.baseline.spent("baseline"))
        send(folder, config, folder.summary_file)
    print(f"trained: {folder.address or folder.path}\nnext: ktse masks --run {folder.path}")


def resolved(config: Config) -> Config:
    """The config with absolute paths, so that it means the same from every folder and on every worker; the embedded
    data are packed."""
    path = dataset_path(config)
    if config.data.path is None:
        pack_stickers(path)
    found = {"run": {"root": run_address(config) or run_root(config)}, "data": {"path": path}}
    if config.data.cache.folder:
        found["data"]["cache"] = {"folder": config.data.cache.folder.expanduser().absolute()}
    return for_workers(validate(merge(config.model_dump(by_alias=True), found)))


def for_workers(config: Config) -> Config:
    """The config with what all workers must agree on: where the weights to start from lie, and a precision."""
    found: dict[str, Any] = {}
    if isinstance(config.model.weights, Path):
        found["model"] = {"weights": config.model.weights.expanduser().absolute()}
    if config.train.precision == "auto":
        found["train"] = {"precision": fast_precision(uses_gpu(config))}
    return validate(merge(config.model_dump(by_alias=True), found))


def check_installed(config: Config) -> None:
    missing = [package for package in NEEDED[config.engine.name] if find_spec(package) is None]
    if missing:
        raise UserError(
            f"engine.name: '{config.engine.name}' needs {' and '.join(missing)}, not installed here; "
            "pip install 'ktse_dist[train]', or set engine.name=torch"
        )


def check_compiler(config: Config) -> None:
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if config.train.compile and not any(map(shutil.which, compilers)):
        raise UserError("train.compile: needs a C++ compiler, no g++ or clang++ found; install one, or set it to false")


def check_kernels(config: Config) -> None:
    try:
        kernels.mode()
    except ValueError as error:
        raise UserError(f"{error}; unset it, since it wins over kernels.mode") from None
    try:
        kernels.set_mode(config.kernels.mode)
        check_device(uses_gpu(config))
    except ValueError as error:
        raise UserError(f"{error}; or set kernels.mode=auto") from None


@contextmanager
def at_work(folder: RunFolder) -> Iterator[None]:
    """The run's folder, made and this command's alone."""
    make_folder(folder)
    with alone(folder.path, "ktse train"):
        yield


def make_folder(folder: RunFolder) -> None:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"run.root: {folder.path} cannot be made ({error.strerror}); give a folder that you may write to"
        ) from None


def jobs(config: Config, folder: RunFolder) -> list[Job]:
    """The run and, where asked for, the classification-only run that forks from the end of its phase 1."""
    if not config.train.baseline:
        return [Job(config, folder)]
    plain = config.model_dump(by_alias=True)
    plain["method"] |= {"sie": 0.0, "ssr": 0.0, "mga": 0.0}
    baseline = validate(plain)
    start = f"{folder.address}/checkpoints/{folder.phase1.name}" if folder.address else folder.phase1
    return [Job(config, folder), Job(baseline, folder.baseline, start)]


def bring_results(planned: list[Job]) -> None:
    """What the next commands read, from the address of a run where another machine may have trained it."""
    for mirror in filter(None, map(mirror_of, planned)):
        mirror.bring(phase1=True)


def train(planned: list[Job]) -> None:
    """As far as they get; who asks to stop meanwhile asks the training, and afterwards whoever was asked before."""
    asked_to_stop = signal.getsignal(signal.SIGTERM)
    try:
        train_with_engine(planned)
    finally:
        signal.signal(signal.SIGTERM, asked_to_stop)


def train_with_engine(planned: list[Job]) -> None:
    config = planned[0].config
    if config.engine.name == "torch":
        prepare_process(None)
        context = LocalContext()
        for job in planned:
            if not context.should_stop():
                run(job, context)
        return
    from ktse_dist.launch.ray_train import train_with_ray  # only these engines need Ray installed

    train_with_ray(planned)


if __name__ == "__main__":
    run_main(main)
