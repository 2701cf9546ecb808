"""Fixtures of the mount tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.workbench import Workbench


@contextmanager
def _workbench(directory: Path) -> Iterator[Workbench]:
    bench = Workbench(directory)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    """Return a directory with room for a volume and its mount; whatever a test leaves there is ended."""
    with _workbench(tmp_path) as bench:
        yield bench


@pytest.fixture
def volume(bench: Workbench) -> Workbench:
    """Return a workbench with a volume of 1 MiB in blocks of 4 KiB."""
    bench.create()
    return bench


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Workbench]:
    """Return a second workbench with a volume."""
    (tmp_path / "other").mkdir()
    with _workbench(tmp_path / "other") as bench:
        bench.create()
        yield bench
