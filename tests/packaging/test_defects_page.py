"""The page of the original's defects names all of them, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_complete_and_its_tests_exist() -> None:
    shown, opened = (ROOT / "docs" / "defects.md").read_text().split("## Open")
    numbers = [[int(n) for n in re.findall(r"^\| (\d+) \|", part, re.MULTILINE)] for part in (shown, opened)]
    assert numbers == [[1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16], [2, 9, 15, 17]]
    for line in shown.splitlines():
        assert not re.match(r"\| \d", line) or "::test_" in line, line
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown + opened)
    assert len(named) > 20
    for path, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (path, name)
