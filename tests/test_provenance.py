"""Which code made a result."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ktse_dist import provenance


@pytest.fixture
def tree(tmp_path) -> Path:
    """Somebody's own repository with one commit."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    return tmp_path


@pytest.mark.parametrize(("package", "known"), [("ktse_dist", True), (".venv/site-packages/ktse_dist", False)])
def test_the_revision_is_that_of_our_own_tree_and_never_one_around_it(tree, monkeypatch, package, known):
    (tree / package).mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(tree / package / "provenance.py"))
    found = provenance.git_revision()
    assert (len(found) == 40) if known else (found is None)


def test_a_git_that_hangs_or_is_missing_ends_nothing(monkeypatch):
    for error in (FileNotFoundError(), subprocess.TimeoutExpired("git", 10)):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(subprocess, "run", fails)
        assert provenance.git_revision() is None
