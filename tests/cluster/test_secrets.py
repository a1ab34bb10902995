"""No file under cluster/ carries a secret, hands one to a place where it shows, or takes whatever is newest."""

import re
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
SECRET = {
    "a key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google": r"\bAIza[\w-]{35}\b|\"private_key\"",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a token": r"\b(gh[pousr]_\w{30,}|hf_\w{30,}|xox[abp]-[\w-]{10,}|eyJ[\w-]{20,}\.)",
    "something long and random": r"\b(?=\w*\d)[0-9a-fA-F]{32,}\b",
    "a password in an address": r"://[^/\s:@]+:[^/\s@]+@",
    "a value of a secret": r"(?i)\b(password|secret_access_key|auth_token)\b\s*[:=]\s*['\"]?(?!-)[\w/+-]{8,}",
    "a token on a command line": r"RAY_AUTH_TOKEN=",
}
NEWEST = r"(?m)^\s*(?:image|head_image|worker_image|FROM):?\s+(?!\S+:[\w.-]*\d)(?!&|\*)\S+|:latest\b"


def exposures(text: str) -> list[str]:
    found = [name for name, pattern in SECRET.items() if re.search(pattern, text)]
    if re.search(r"(?m)^[^#\n]*\benv_vars\s*:", text):
        found.append("env_vars")
    if re.search(NEWEST, text):
        found.append("the newest image")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_a_file_carries_no_secret_and_names_its_versions(path):
    assert exposures(path.read_text()) == []


@pytest.mark.parametrize(("line", "found"), [
    ("AWS_ACCESS_KEY_ID: AKIAIOSFODNN7EXAMPLE", "a key of AWS"),
    ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
    ("token: " + "ghp_" + "a1" * 18, "a token"),
    ("echo " + "0f" * 32 + " > auth_token", "something long and random"),
    ("ARG PIP_INDEX_URL=https://me:hunter22@index.example/simple", "a password in an address"),
    ("password: hunter2222", "a value of a secret"),
    ("env_vars: {WANDB_API_KEY: x}", "env_vars"),
    ("- --env=RAY_AUTH_TOKEN=abc", "a token on a command line"),
    ("  image: rayproject/ray", "the newest image"),
    ("FROM python", "the newest image"),
    ("  head_image: rayproject/ray:latest", "the newest image"),
])  # fmt: skip
def test_a_secret_or_an_open_version_is_noticed(line, found):
    assert found in exposures(f"kind: x\n{line}\n")


def test_the_dashboard_leaves_loopback_only_in_a_rayjob():
    """There the operator asks it for the job's state; token and NetworkPolicy are test_kuberay.py's."""
    elsewhere = re.compile(r"dashboard-host\S*[ =:]+(?!127\.0\.0\.1)\d")
    assert [path.name for path in FILES if elsewhere.search(path.read_text())] == ["rayjob.yaml"]
    assert [path.name for path in FILES if "0.0.0.0" in path.read_text()] == ["rayjob.yaml"]


def test_the_runtime_environment_only_leaves_things_behind():
    environment = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    assert environment.keys() == {"excludes"} and "/.git" in environment["excludes"]
