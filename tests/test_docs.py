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


@pytest.mark.parametrize("page", ["README.md", *(str(file.relative_to(ROOT)) for file in (ROOT / "docs").glob("*.md"))])
def test_links_lead_to_files_of_the_repository(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text())
    folder = (ROOT / page).parent
    assert [link for link in links if not (folder / link).exists()] == []
