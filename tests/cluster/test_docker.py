"""The Dockerfiles: their pip steps run in a clean environment, and what they promise about the image."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "docker"
FILES = ["cpu.Dockerfile", "gpu.Dockerfile"]
Step = tuple[str, str]  # instruction, argument


def steps(text: str) -> list[Step]:
    lines = re.sub(r"\\\n", " ", "".join(line for line in text.splitlines(True) if not line.startswith("#")))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)]


def of(name: str) -> list[Step]:
    return steps((FOLDER / name).read_text())


def mistakes(found: list[Step]) -> list[str]:
    """What makes an image unrepeatable, root's, or a carrier of secrets."""
    wrong = []
    for word, rest in found:
        if word == "FROM" and (not re.search(r":[\w.-]*\d[\w.-]*$", rest) or rest.endswith(":latest")):
            wrong.append("base")
        if word in ("ENV", "ARG") and re.search(r"(TOKEN|SECRET|PASSWORD|_KEY)\w*=", rest):
            wrong.append("secret")
        if word == "ARG" and re.search(r"://[^/\s]*@", rest):
            wrong.append("secret")
        if word == "ADD" or re.search(r"curl[^|]*\|\s*(ba)?sh", rest):
            wrong.append("from anywhere")
        if word == "RUN" and "pip install" in rest and not ("--constraint" in rest or "--no-deps" in rest):
            wrong.append("versions")
        if word == "RUN" and re.search(r"\bsudo\b|chmod -R 777|--trusted-host", rest):
            wrong.append("rights")
    users = [rest for word, rest in found if word == "USER"]
    if not users or users[-1].split(":")[0] in ("0", "root"):
        wrong.append("root")
    if ("ENV", "token") not in [(w, m[1]) for w, r in found for m in re.finditer(r"RAY_AUTH_MODE=(\w+)", r)]:
        wrong.append("no token")
    return wrong


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_pinned_without_secrets_and_not_of_root(name):
    assert mistakes(of(name)) == []


@pytest.mark.parametrize(("old", "new", "found"), [
    ("python:3.11.14-slim-bookworm", "python", "base"),
    ("python:3.11.14-slim-bookworm", "python:latest", "base"),
    ("USER 1000:1000", "USER root", "root"),
    ("USER 1000:1000", "", "root"),
    ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "no token"),
    ("ARG PIP_INDEX_URL", "ARG PIP_INDEX_URL=https://me:pass@index.example/simple", "secret"),
    ("ARG PIP_INDEX_URL", "ARG AWS_SECRET_ACCESS_KEY=x", "secret"),
    ("pip install --constraint constraints-cpu.txt", "pip install", "versions"),
    ("COPY configs configs", "ADD https://example.org/x.tar /", "from anywhere"),
])  # fmt: skip
def test_a_mistake_in_a_dockerfile_is_noticed(old, new, found):
    text = (FOLDER / FILES[0]).read_text()
    assert old in text and found in mistakes(steps(text.replace(old, new)))


@pytest.mark.parametrize("name", FILES)
def test_the_dependencies_are_a_layer_that_a_commit_does_not_change(name):
    found = of(name)
    install = next(i for i, (word, rest) in enumerate(found) if word == "RUN" and ".[$EXTRAS]" in rest)
    before = [rest for word, rest in found[:install] if word == "COPY"]
    assert not any(rest.split()[0] in ("ktse_dist", "kernels", "configs", ".") for rest in before)


@pytest.mark.parametrize("name", FILES)
def test_an_image_has_every_extra_that_is_tested(name):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = next(rest for word, rest in of(name) if word == "ARG" and rest.startswith("EXTRAS="))
    assert set(installed.removeprefix("EXTRAS=").split(",")) == set(extras) - {"dev", "gs"}


def ignored(path: str, rules: list[str]) -> bool:
    """Docker's rule: the last line of .dockerignore that fits a path or a folder above it decides."""
    parts = Path(path).parts
    above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    verdict = False
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        fits = any(fnmatch.fnmatch(p, pattern) for p in above) or (
            "**/" in rule and any(fnmatch.fnmatch(part, pattern) for part in parts)
        )
        verdict = not rule.startswith("!") if fits else verdict
    return verdict


def context_rules() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_into_an_image_reaches_the_build(name):
    sources = [source for word, rest in of(name) if word == "COPY" for source in rest.split()[:-1]]
    assert sources and not [s for s in sources if ignored(s, context_rules()) or not (ROOT / s).exists()]


@pytest.mark.parametrize("path", [".git/config", ".env", "runs/demo/model.safetensors", "pip.conf", ".venv/bin/python",
                                  "cluster/ray/aws.yaml", "ktse_dist/__pycache__/cli.pyc"])  # fmt: skip
def test_what_no_image_needs_stays_out_of_the_build(path):
    assert ignored(path, context_rules())


def copy(sources: list[str], target: str, image: Path) -> None:
    """COPY as Docker does it: a folder's content, or files into a folder."""
    for source in sources:
        into = image / target
        if (ROOT / source).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, into, symlinks=True, ignore=unwanted, dirs_exist_ok=True)
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, into)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_steps_run_in_a_clean_environment(name, tmp_path):
    """Whoever configures pip through PIP_* has one index for all, torch included, as in the Makefile."""
    image, venv = tmp_path / "image", tmp_path / "venv"
    image.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    own_index = any(os.environ.get(key) for key in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
    if own_index or name == "gpu.Dockerfile":  # CUDA's libraries are gigabytes: here its steps, with torch for the CPU
        environment["TORCH_INDEX"] = "" if own_index else "https://download.pytorch.org/whl/cpu"
    for word, rest in of(name):
        if word == "ARG":
            key, _, value = rest.partition("=")
            if value:
                environment.setdefault(key, value)
        elif word == "COPY":
            *sources, target = rest.split()
            copy(sources, target, image)
        elif word == "RUN" and "pip install" in rest:
            command = re.sub(r"--mount=\S+", "", rest)
            done = subprocess.run(["bash", "-euc", command], cwd=image, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in image.iterdir()) == [
        "LICENSE", "README.md", "configs", "constraints-cpu.txt", "pyproject.toml"
    ]  # fmt: skip
    assert [path for path in image.rglob("*") if path.is_symlink()] == []  # what they led to is not in the image
    code = "import ktse_dist, kernels, ray, deepspeed, triton, pydensecrf, boto3, s3fs; print(ktse_dist.__file__)"
    where = subprocess.run(
        ["python", "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert where.stdout.strip().splitlines()[-1].startswith(str(venv))
    command = shlex.split(next(rest for word, rest in of(name) if word == "CMD").translate(str.maketrans("[],", "   ")))
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
