"""What a search tries: section `search` of a config file, ranges of keys or named arms, and the run that a trial is."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ktse_dist.config import Config
from ktse_dist.config.base import Model
from ktse_dist.config_file import explain, merge, over_preset, parse_override, read_given, validate
from ktse_dist.errors import UserError

Value = float | int | bool | str | None


def flat(tree: Any) -> Any:
    """{"a": {"b": value}} as {"a.b": value}; a mapping without mappings in it, such as a range, is a value."""
    if not isinstance(tree, dict):
        return tree
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict) and any(isinstance(v, dict) for v in value.values())
        found |= {f"{key}.{rest}": v for rest, v in flat(value).items()} if inner else {key: value}
    return found


class Range(Model):
    """Numbers from low to high, drawn evenly, or evenly on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low is {self.low}, high is {self.high}; allowed is low < high, with log both above 0")
        return self


class Search(Model):
    """Trials that fork from one phase 1: of a `space`, keys and their ranges, or `arms`, all of which are trained."""

    algorithm: Literal["optuna", "random"] = "optuna"  # optuna: its tree-structured Parzen estimator
    trials: int = Field(16, ge=1, le=1000)  # of a space
    rungs: int = Field(3, ge=1, le=50)  # scores of a trial, evenly spaced over phase 2, the last one at its end
    reduction: float = Field(2, gt=1, le=10)  # of a space: about 1 in so many goes on from rungs 1, r, r^2... (ASHA)
    concurrent: int | None = Field(None, ge=1, le=1000)  # trials at once; None: as many as the cluster has room for
    retries: int = Field(2, ge=0, le=100)  # of a trial that broke off; it goes on from its last checkpoint
    space: Annotated[dict[str, Range], BeforeValidator(flat)] = Field({}, max_length=10)
    arms: dict[Annotated[str, Field(pattern=r"^[\w+.,= -]{1,50}$")], dict[str, Value]] = Field({}, max_length=100)

    @model_validator(mode="after")
    def _keys_of_phase2(self) -> "Search":
        """What phase 1 reads cannot differ between trials that share it."""
        keys = {"space": list(self.space), "arms": [key for arm in self.arms.values() for key in arm]}
        for place, key in ((place, key) for place, found in keys.items() for key in found):
            if not key.startswith(("method.", "optimiser.phase2.")) or key.startswith("method.preset"):
                raise ValueError(f"{place}: '{key}'; allowed are keys of optimiser.phase2 and of method, except preset")
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> "Search":
        if bool(self.space) == bool(self.arms):
            found = "both" if self.space else "neither"
            raise ValueError(f"space, search.arms: {found} given; give one, see configs/tune_erasing.yaml")
        return self


@dataclass(frozen=True)
class Trial:
    """What became of a trial. scores: at its rungs, as far as it came; seconds: of training; failed: why, if so."""

    name: str
    label: str
    values: dict[str, Any]
    scores: list[float]
    seconds: float
    failed: str | None = None

    def note(self, rungs: int) -> str:
        """Why it went no further; empty for a trial that came to its end."""
        return self.failed or (f"given up after {len(self.scores)} of {rungs}" if len(self.scores) < rungs else "")


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Who came further is better: at a rung the better ones go on, and scores of different rungs do not compare."""
    return sorted(trials, key=lambda trial: (len(trial.scores), *trial.scores[-1:]), reverse=True)


class _File(Model):
    search: Search


def load_search(path: Path | None, overrides: Sequence[str]) -> tuple[Config, Search]:
    """The run that trials vary, and the search. UserError names the key, also of a value that no run could take."""
    given = merge(*map(spread, [read_given(path), *(parse_override(o) for o in overrides)]))
    if not isinstance(given.get("search"), dict):
        raise UserError("search: no such section; it needs a space or arms, as in configs/tune_erasing.yaml")
    try:
        search = _File.model_validate({"search": given.pop("search")}).search
    except ValidationError as error:
        raise UserError(explain(error.errors()[0], _File)) from None
    config = over_preset(given)
    for values in extremes(search):
        variant(config, values)
    check_decimal(config, search)
    return config, search


def check_decimal(config: Config, search: Search) -> None:
    for key in search.space:
        if not isinstance(value_of(config, key), float):
            found = value_of(config, key)
            raise UserError(f"search.space: '{key}' is {found!r}, no decimal number; compare its values as search.arms")


def spread(given: dict[str, Any]) -> dict[str, Any]:
    """Keys like `a.b` in the space and in arms as nested mappings, so that overrides of them merge."""
    search = given.get("search")
    if not isinstance(search, dict):
        return given
    found = dict(search)
    if isinstance(search.get("space"), dict):
        found["space"] = merge(*(nested(*pair) for pair in search["space"].items()))
    return given | {"search": found}


def extremes(search: Search) -> list[dict[str, Any]]:
    """The corners of the space, or the arms: if these are runs, so is everything between."""
    if search.arms:
        return list(search.arms.values())
    ends = [(bounds.low, bounds.high) for bounds in search.space.values()]
    return [dict(zip(search.space, corner, strict=True)) for corner in itertools.product(*ends)]


def variant(config: Config, values: dict[str, Any]) -> Config:
    """The run with these keys set over it."""
    return validate(merge(config.model_dump(by_alias=True), *(nested(*pair) for pair in values.items())))


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def as_given(config: Config, search: Search) -> dict[str, float] | None:
    """The values of the searched keys in the config itself, the first trial; None where they lie outside the space."""
    found = {key: value_of(config, key) for key in search.space}
    inside = all(bounds.low <= found[key] <= bounds.high for key, bounds in search.space.items())
    return found if inside else None


def value_of(config: Config, key: str) -> Any:
    value: Any = config.model_dump(by_alias=True)
    for part in key.split("."):
        value = value[part]
    return value


def rung_steps(rungs: int, phase1_steps: int, total_steps: int) -> list[int]:
    """Steps after which a trial is scored: evenly over phase 2, the last one its end. UserError if it is too short."""
    steps = total_steps - phase1_steps
    if not 0 < phase1_steps < total_steps:
        raise UserError(
            "train.phase1_epochs: trials fork from the end of phase 1 and differ in phase 2, and one of them has no "
            "step; set it between 1 and train.epochs - 1"
        )
    if steps < rungs:
        raise UserError(f"search.rungs: {rungs} scores in {steps} steps of phase 2; allowed is at most {steps}")
    return [phase1_steps + steps * number // rungs for number in range(1, rungs + 1)]
