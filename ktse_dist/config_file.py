"""Configs of people: presets, YAML files and `a.b=c` overrides become one checked Config.

Precedence: preset < YAML < override. Nothing else in ktse_dist reads YAML.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from ktse_dist.config import Config
from ktse_dist.config.base import Model
from ktse_dist.errors import UserError
from ktse_dist.presets import PRESETS

YAML_LIMIT = 65_536  # bytes; a larger file is not one of our configs


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The resolved config of a YAML file (None: the built-in demo) and `a.b=c` overrides. Raises UserError."""
    return over_preset(merge(read_given(path), *(parse_override(o) for o in overrides)))


def read_given(path: Path | None) -> dict[str, Any]:
    """What a YAML file or a built-in config gives (None: the demo), before anything is checked."""
    return read_yaml(built_in(path) if path else DEMO)


def over_preset(given: dict[str, Any]) -> Config:
    """The config of these keys over the preset that they name."""
    method = given.get("method")
    preset = method.get("preset", "corrected") if isinstance(method, dict) else "corrected"
    known = preset if isinstance(preset, str) and preset in PRESETS else "corrected"  # validation names a wrong one
    return validate(merge(PRESETS[known], given))


DEMO = Path(__file__).parent / "demo.yaml"


def built_in(path: Path) -> Path:
    """A bare name that is no file here, such as `own`, means the config of that name that comes with the package."""
    return DEMO.with_name(f"{path}.yaml") if str(path) in names() and not path.is_file() else path


def validate(given: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(given)
    except ValidationError as error:
        raise UserError(explain(error.errors()[0])) from None


UNION = re.compile(r"(lax-or-strict|literal)\[")  # pydantic's names for the kinds of values that a key may have


def explain(problem: Any, root: type[Model] = Config) -> str:
    """Pydantic's first complaint about a `root` as one line: key, what was found, what is allowed."""
    path = [str(part) for part in problem["loc"] if not UNION.match(str(part))]
    key = ".".join(path) or "config"
    if problem["type"] == "extra_forbidden" and path == ["search"]:
        return "search: is for ktse tune --config FILE; leave it out to train one run"
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key. {nearest(path, root)}"
    if problem["type"] == "value_error":
        return ".".join([*path, problem["msg"].removeprefix("Value error, ")])  # our messages begin with the key
    return f"{key}: found {problem['input']!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}"


def nearest(path: Sequence[str], root: type[Model]) -> str:
    model: Any = root
    for part in path[:-1]:
        model = get_args(model)[1] if get_origin(model) is dict else model.model_fields[part].annotation
    known = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(path[-1], known, n=1)
    return f"Did you mean '{'.'.join([*path[:-1], close[0]])}'?" if close else f"Allowed here: {', '.join(known)}"


def told(section: type[Model], name: str) -> str:
    """All keys of a section with their defaults, for --help."""
    keys = listed({name: section().model_dump(mode="json", by_alias=True)})
    return f"keys and their defaults, where the run's config.yaml says nothing else: {keys}"


def listed(sections: dict[str, Any]) -> str:
    return ", ".join(leaf for name, section in sections.items() for leaf in leaves(section, name))


def leaves(tree: Any, path: str) -> Iterator[str]:
    if not isinstance(tree, dict):
        yield f"{path}={json.dumps(tree)}"
        return
    for key, value in tree.items():
        yield from leaves(value, f"{path}.{key}")


def names() -> list[str]:
    """The configs that come with the package."""
    return sorted(file.stem for file in DEMO.parent.glob("*.yaml"))


# What loading foreign text can raise: also for 2024-13-45, for numbers of 5,000 digits, and for 10,000 brackets.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


class _NoAliases(yaml.SafeLoader):
    """Safe loading without anchors: an alias bomb stays text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file: safe types only, no aliases, at most YAML_LIMIT bytes."""
    if not path.is_file():
        raise UserError(f"--config {path}: no such file; give one, or the name of a built-in one: {', '.join(names())}")
    if path.stat().st_size > YAML_LIMIT:
        raise UserError(f"--config {path}: {path.stat().st_size} bytes; a config has at most {YAML_LIMIT}")
    try:
        content = yaml.load(path.read_text(), Loader=_NoAliases)  # a subclass of SafeLoader
    except NOT_YAML as error:
        raise UserError(f"--config {path}: not YAML that we read ({error}); see configs/demo.yaml") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"--config {path}: found a {type(content).__name__}; allowed is a mapping of sections")
    return content or {}


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as a nested mapping; c is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"'{text}': not an override; write section.key=value, for example train.epochs=3")
    try:
        content: Any = yaml.load(value, Loader=_NoAliases)
    except NOT_YAML:
        raise UserError(f"'{text[:200]}': the value is not YAML; quote it, for example run.name='\"a: b\"'") from None
    for part in reversed(key.split(".")):
        content = {part: content}
    return content


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers win; mappings merge, everything else is replaced."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False)
