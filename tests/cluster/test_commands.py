"""Every command that cluster/ gives to copy: ours through our own reader, Ray's through Ray's, files that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from ktse_dist import train
from ktse_dist.config import Config
from ktse_dist.config_file import load_config
from ktse_dist.masks import with_mask_keys

ROOT = Path(__file__).parents[2]
README = ROOT / "cluster" / "README.md"
IN_THE_IMAGE = "/opt/ktse/"  # where the images hold configs/
BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HERE_DOCUMENT = re.compile(r" <<'EOF'\n(.*?)^EOF$", re.MULTILINE | re.DOTALL)


def commands(script: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell script, $(...) and here documents left out."""
    script = HERE_DOCUMENT.sub("", script).replace("\\\n", " ")
    script = re.sub(r"\"?\$\((?:[^()]|\([^()]*\))*\)\"?", "WORD", script)
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if token and set(token) <= set("();&|"):
                if words:
                    yield words
                words = []
            else:
                words.append(token)


def in_the_readme() -> list[list[str]]:
    return [words for block in BLOCK.findall(README.read_text()) for words in commands(block)]


def trainings() -> list[list[str]]:
    """The arguments of every training: in the README, after `ray job submit`, for the Slurm script, in the RayJob."""
    found = [words[words.index("ktse_dist.train") + 1 :] for words in in_the_readme() if "ktse_dist.train" in words]
    slurm = "cluster/slurm/train.sbatch"
    found += [[*words[words.index(slurm) + 1 :], "ray.workers=8"] for words in in_the_readme() if slurm in words]
    header = re.search(rf"{slurm} (.*)", (ROOT / slurm).read_text())[1]
    found.append([*shlex.split(header), "ray.workers=8"])
    *_, job = yaml.safe_load_all((ROOT / "cluster" / "kuberay" / "rayjob.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "ktse_dist.train"]
    return [*found, words[3:]]


def test_the_keys_of_masks_are_taken():
    (found,) = (words[words.index("ktse_dist.masks") + 1 :] for words in in_the_readme() if "ktse_dist.masks" in words)
    assert found[:2] == ["--run", "/shared/runs/voc"]
    config = with_mask_keys(load_config(None), found[2:])
    assert (config.masks.workers, config.masks.processes, config.ray.use_gpu) == (8, 4, True)


def resolve(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Config:
    """What the training would start with; SystemExit or UserError for what it would refuse."""
    seen = []

    def reader(path: Path, overrides: list[str]) -> Config:
        seen.append(load_config(ROOT / str(path).removeprefix(IN_THE_IMAGE), overrides))
        raise InterruptedError

    monkeypatch.setattr(train, "load_config", reader)
    with pytest.raises(InterruptedError):
        train.main(arguments)
    return seen[0]


@pytest.mark.parametrize("arguments", trainings(), ids=" ".join)
def test_a_training_is_one_that_our_reader_takes(arguments, monkeypatch):
    config = resolve(arguments, monkeypatch)
    assert config.engine.name != "torch" and config.ray.use_gpu
    assert str(config.data.path).startswith("/")


@pytest.mark.parametrize("arguments", [
    ["--config", "configs/voc.yaml", "data.paht=/shared/data"],
    ["--config", "configs/nothing.yaml"],
    ["--config", "configs/voc.yaml", "--workers", "8"],
])  # fmt: skip
def test_a_wrong_training_is_refused(arguments, monkeypatch):
    with pytest.raises((SystemExit, Exception)) as refused:
        resolve(arguments, monkeypatch)
    assert refused.type.__name__ in ("SystemExit", "UserError")


def parse_with_ray(words: list[str]) -> click.Context:
    """`ray ...` as Ray's own command line parses it, without running it."""
    command: click.Command = ray_cli
    rest = words[1:]
    while isinstance(command, click.Group):
        name = rest.pop(0)
        command = command.commands[name]
    return command.make_context(name, rest)


def rays() -> list[list[str]]:
    found = [words for words in in_the_readme() if words[0] == "ray"]
    for name in ("raycluster.yaml", "rayjob.yaml"):
        text = (ROOT / "cluster" / "kuberay" / name).read_text()
        found += commands(re.search(r"ray drain-node.*?;", text, re.DOTALL)[0].replace("\n", " "))
    return found


@pytest.mark.parametrize("words", rays(), ids=" ".join)
def test_a_command_of_ray_is_one_that_ray_takes(words):
    parse_with_ray(words)


def test_submitted_jobs_reach_the_dashboard_on_loopback_and_take_the_runtime_environment():
    submits = [parse_with_ray(words).params for words in rays() if words[:3] == ["ray", "job", "submit"]]
    assert [options["entrypoint"][2].removeprefix("ktse_dist.") for options in submits].count("train") == 3
    for options in submits:
        assert options["address"] == "http://127.0.0.1:8265" and options["runtime_env"] == "cluster/runtime_env.yaml"
        assert options["entrypoint"][:2] == ("python", "-m")
        assert options["entrypoint"][2] in ("ktse_dist.train", "ktse_dist.masks")


@pytest.mark.parametrize("line", [
    "ray job submit --adress http://127.0.0.1:8265 -- python x.py",
    "ray start --head --dashboard-host",
    "ray drain-node --reason SPOT --reason-message x",
])  # fmt: skip
def test_a_wrong_command_of_ray_is_refused(line):
    with pytest.raises(click.UsageError):
        parse_with_ray(shlex.split(line))


def test_files_that_commands_name_exist():
    named = {word for words in in_the_readme() for word in words if word.startswith(("cluster/", "configs/"))}
    assert len(named) > 6
    assert [name for name in named if not any(ROOT.glob(name))] == []


def test_links_lead_to_files_of_this_folder():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text())
    assert links and [link for link in links if not (README.parent / link).exists()] == []


def test_every_file_of_the_folder_is_explained():
    files = {str(p.relative_to(README.parent)) for p in README.parent.rglob("*") if p.is_file() and p != README}
    assert {file for file in files if f"]({file})" not in README.read_text()} == set()


def test_here_documents_are_kubernetes_objects():
    objects = [yaml.safe_load(text) for text in HERE_DOCUMENT.findall(README.read_text())]
    assert [one["kind"] for one in objects] == ["PersistentVolumeClaim", "PodMonitor"]
    claim, _ = objects
    for name in ("raycluster.yaml", "rayjob.yaml"):
        assert f"claimName: {claim['metadata']['name']}}}" in (README.parent / "kuberay" / name).read_text()


PLACEHOLDERS = {
    "ray/aws.yaml": {"REGISTRY", "HEAD_PROFILE", "WORKER_PROFILE", "SECURITY_GROUP", "FILE_SYSTEM"},
    "ray/gcp.yaml": {"REGISTRY", "PROJECT", "IMAGE_FAMILY", "WORKER_ACCOUNT", "FILESTORE_ADDRESS"},
    "kuberay/raycluster.yaml": {"REGISTRY"},
    "kuberay/rayjob.yaml": {"REGISTRY"},
}
# words in capitals that are Ray's, a cloud's, Kubernetes' or ours
OURS = {"ALL", "TCP", "SPOT", "GPU", "CPU", "PERSISTENT", "DELETE", "TERMINATE", "DRAIN_NODE_REASON_PREEMPTION",
        "KTSE_RUNS", "XDG_CACHE_HOME", "RAY_AUTH_MODE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}  # fmt: skip


def capitals(text: str) -> set[str]:
    code = re.sub(r"(^|\s)#.*", "", text)  # comments explain; values count
    return {word for word in re.findall(r"(?<![\w$-])[A-Z][A-Z_]+(?![\w])", code)} - OURS


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_what_has_to_be_filled_in_is_explained(name):
    assert capitals((README.parent / name).read_text()) == PLACEHOLDERS[name]
    assert all(re.search(rf"\b{word}\b", README.read_text()) for word in PLACEHOLDERS[name])


def test_the_images_are_the_ones_that_the_readme_builds():
    built = {words[words.index("--tag") + 1] for words in in_the_readme() if words[:2] == ["docker", "build"]}
    used = set()
    for name in PLACEHOLDERS:
        used |= set(re.findall(r"image: (\S+)", (README.parent / name).read_text()))
    assert used == built
