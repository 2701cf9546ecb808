"""Fixtures of the tests of what ties s3backer to the system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.workbench import Workbench


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Workbench]:
    """Return a workbench with a volume of 1 MiB in blocks of 4 KiB; whatever a test leaves there is ended."""
    bench = Workbench(tmp_path)
    bench.create()
    try:
        yield bench
    finally:
        bench.close()
