"""The pages that name tests name such that exist; that of the original's defects names all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(("page", "least"), [("defects.md", 20), ("durability.md", 100)])
def test_the_tests_that_a_page_names_exist(page: str, least: int) -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)", (DOCS / page).read_text()))
    assert len(named) > least
    for path, name in sorted(named):
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (path, name)


def test_the_page_of_defects_is_complete() -> None:
    shown, opened = (DOCS / "defects.md").read_text().split("## Open")
    numbers = [[int(n) for n in re.findall(r"^\| (\d+) \|", part, re.MULTILINE)] for part in (shown, opened)]
    assert numbers == [[1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16], [2, 9, 15, 17]]
    for line in shown.splitlines():
        assert not re.match(r"\| \d", line) or "::test_" in line, line
