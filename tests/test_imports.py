"""Who may import whom, read from every import statement."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "ktse_dist").rglob("*.py")) + sorted((ROOT / "kernels").rglob("*.py"))
LIBRARY = ("models", "method", "data", "evaluation", "inference", "reporting")  # each imports those before it
LEAF = "ktse_dist.data.palette"  # what mask values mean, for all
ENTRIES = {"train", "tune", "masks", "evaluate", "report", "predict", "export", "segment", "cli"}


def modules(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def roots(path: Path) -> set[str]:
    return {module.split(".")[0] for module in modules(path)}


def parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).with_suffix("").parts


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(parts(p)))
def test_a_file_imports_only_what_its_layer_may(path):
    where, uses = parts(path), roots(path)
    ours = {m.split(".")[1] for m in modules(path) if m.startswith("ktse_dist.")}
    if where[0] == "kernels":
        assert uses - set(sys.stdlib_module_names) <= {"torch", "triton", "kernels"}
        return
    if where[1] in ("config", "config_file", "presets", "errors"):
        assert ours <= {"config", "errors", "presets"} and "kernels" not in uses
    if "ray" in uses:
        assert where[1] == "launch"
    if "deepspeed" in uses:
        assert where[1:3] == ("training", "engine")
    if "launch" in ours:
        assert where[1] in ENTRIES | {"launch"}
    if where[1] in LIBRARY:
        imported = {m.split(".")[1] for m in modules(path) if m.startswith("ktse_dist.") and not m.startswith(LEAF)}
        later = LIBRARY[LIBRARY.index(where[1]) + 1 :]
        assert not imported & (ENTRIES | {"training", "launch", *later})
    if "yaml" in uses:
        assert where[1] == "config_file"


def test_the_torch_engine_needs_neither_ray_nor_deepspeed():
    import subprocess

    check = "import sys; sys.modules['ray'] = sys.modules['deepspeed'] = None; import ktse_dist.train"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)


def test_no_test_or_benchmark_bears_the_name_of_a_package():
    names = {p.stem for folder in ("tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")}
    assert not names & ({"torch", "ray", "triton", "kernels", "deepspeed", "ktse_dist"} | sys.stdlib_module_names)
