"""What the documents point to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "security.md").read_text())
ROWS = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_test_that_the_security_page_names_is_there(file, test):
    assert f"def {test}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_security_page_has_a_test(row):
    assert re.search(r"`tests/[\w/]+\.py::\w+`", row)


PAGES = [file for top in ("docs", "kernels", "cluster", "tests") for file in (ROOT / top).rglob("*.md")]
TREE = re.search(r"```\nktse_dist/\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
WHOLE = ("config", "engine")  # folders that the tree names without their files


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("package", ["ktse_dist", "kernels"])
def test_the_tree_in_the_readme_names_every_module(package):
    modules = [file for file in (ROOT / package).rglob("*.py") if not file.name.startswith("__")]
    assert [file for file in modules if file.parent.name not in WHOLE and file.name not in TREE] == []
