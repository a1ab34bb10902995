"""`python -m ktse_dist.tune --config FILE [a.b=c ...]`: search settings, or compare arms; all fork from one phase 1."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from ktse_dist.config import Config
from ktse_dist.config_file import to_yaml, validate
from ktse_dist.errors import Parser, UserError, run_main
from ktse_dist.files import read_json, write_text
from ktse_dist.run_folder import RunFolder, run_folder
from ktse_dist.run_lock import alone
from ktse_dist.search import Search, Trial, best_first, load_search, rung_steps, variant
from ktse_dist.train import check_compiler, check_kernels, make_folder, resolved
from ktse_dist.training.job import Job, flatten, is_free, prepare
from ktse_dist.training.setup import start_logging

NEEDED = {"ray": "train", "deepspeed": "train", "optuna": "tune"}  # package: extra of ktse_dist
TABLE = "table.txt"


def main(arguments: list[str]) -> None:
    parser = Parser(prog="ktse tune", description=__doc__)
    parser.add_argument("--config", type=Path, metavar="FILE", required=True, help="YAML with a section `search`")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="keys set over the config, search.* among them")
    options = parser.parse_intermixed_args(arguments)
    check_installed()
    given, search = load_search(options.config, options.overrides)
    check_engine(given)
    config = of_trials(resolved(given))
    folder = run_folder(config)
    if folder.address:
        raise UserError(f"run.root: a search needs a folder that every node sees, found {folder.address}; give one")
    start_logging()
    check_compiler(config)
    check_kernels(config)
    _, schedule, _ = prepare(Job(config, RunFolder(folder.path / "phase1")))
    rungs = rung_steps(search.rungs, schedule.phase1_steps, schedule.total_steps)
    make_folder(folder)
    with alone(folder.path, "ktse tune"):
        keep_search(folder, config, search)
        print(search_or_read(folder, config, search, schedule.phase1_steps, rungs))


def check_installed() -> None:
    missing = [(package, extra) for package, extra in NEEDED.items() if find_spec(package) is None]
    if missing:
        package, extra = missing[0]
        raise UserError(f"ktse tune needs {package}, not installed here; pip install 'ktse_dist[{extra}]'")


def check_engine(config: Config) -> None:
    if config.engine.name == "torch":
        raise UserError(
            "engine.name: 'torch' knows no Ray, under which a search runs its trials; "
            "set engine.name=ddp, with ray.workers=1 the same thing"
        )


def of_trials(config: Config) -> Config:
    """The run that trials vary: it is scored against other trials, not a baseline, and goes on from its last state."""
    given = config.model_dump(by_alias=True)
    given["train"] |= {"baseline": False, "keep": 1}
    return validate(given)


def keep_search(folder: RunFolder, config: Config, search: Search) -> None:
    """A search goes on only with the settings it was started with."""
    file = folder.path / "search.json"
    now = config.model_dump(mode="json", by_alias=True) | {"search": search.model_dump(mode="json")}
    if not file.exists():
        write_text(file, json.dumps(now, indent=2) + "\n")
        return
    then, now = flatten(read_json(file, "give a new run.name")), flatten(now)
    for key in (key for key in sorted(then | now) if then.get(key) != now.get(key) and not is_free(key)):
        raise UserError(
            f"{key}: {now.get(key)!r}, but {folder.path} was started with {then.get(key)!r}; "
            "set it back to go on, or give a new run.name"
        )


def search_or_read(folder: RunFolder, config: Config, search: Search, first: int, rungs: list[int]) -> str:
    """The lines to print: of a search that has ended, they are read."""
    ended = folder.path / TABLE
    if not ended.exists():
        from ktse_dist.launch.ray_tune import Plan, search_with_ray  # only a search needs Ray started

        trials = search_with_ray(Plan(config, search, folder, first, rungs))
        finish(folder, config, search, rungs, best_first(trials))
    return ended.read_text().rstrip("\n")


def finish(folder: RunFolder, config: Config, search: Search, rungs: list[int], trials: list[Trial]) -> None:
    """Table, page and best.yaml; only the best trial keeps its weights. UserError if no trial came to its end."""
    from ktse_dist.reporting import search_page  # needs optuna, which main has looked for

    best = trials[0]
    if len(best.scores) < len(rungs):
        mend = "the same command tries again what broke off; what diverged needs other values and a new run.name"
        raise UserError(f"no trial came to its end; {best.label}: {best.failed}; {mend}")
    chosen = f"# {best.label}: {best.scores[-1]:.2f}, the best of {len(trials)}\n{to_yaml(best_config(config, best))}"
    page = search_page.render(config, search, rungs, trials, chosen)
    write_text(folder.path / "best.yaml", chosen)
    write_text(folder.path / "trials.json", json.dumps([vars(trial) for trial in trials], indent=2) + "\n")
    write_text(folder.path / "tune.csv", search_page.as_csv(rungs, trials))
    write_text(folder.report, page)
    for trial in trials:
        drop_weights(RunFolder(folder.path / "trials" / trial.name), trial is best)
    lines = search_page.table(rungs, trials)
    made = f"report: {folder.report}\nnext: ktse train --config {folder.path / 'best.yaml'}"
    write_text(folder.path / TABLE, f"{lines}\n{made}\n")  # last: it says that the search has ended


def drop_weights(trial: RunFolder, keep_model: bool) -> None:
    shutil.rmtree(trial.checkpoints, ignore_errors=True)
    if not keep_model:
        trial.model.unlink(missing_ok=True)


def best_config(config: Config, best: Trial) -> Config:
    given = variant(config, best.values).model_dump(by_alias=True)
    given["run"]["name"] = f"{config.run.name[:95]}-best"
    return validate(given)


if __name__ == "__main__":
    run_main(main)
