"""The files of cluster/, read as their readers read them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"


class _Strict(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, as kubectl does; PyYAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"a key stands twice in {sorted(keys)}"
        return super().construct_mapping(node, deep)


def read(text: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, Loader=_Strict))


@pytest.fixture
def documents() -> Callable[[str], list[dict[str, Any]]]:
    """`documents("kuberay/rayjob.yaml")`: its YAML documents, new ones at every call."""
    return lambda name: read((CLUSTER / name).read_text())
