"""Fixtures of the mount tests."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest

from s3backer.mountpoint import read_mounts
from tests.support.mounts import CONNECTIONS
from tests.support.tools import run
from tests.support.workbench import Workbench


@pytest.fixture(params=[True, False], ids=["lane", "llfuse"])
def fast_lane(request: pytest.FixtureRequest) -> bool:
    """Return whether the fast lane answers the hot requests, or llfuse everything: every test runs both ways."""
    return bool(request.param)


@pytest.fixture(scope="module")
def connections() -> Iterator[None]:
    """Have the kernel's files of FUSE connections, which a system with systemd has mounted, and containers lack.

    Of the test processes that share what one of them has mounted, the last one unmounts it.
    """
    directory = Path(tempfile.gettempdir())
    with (directory / "s3b-fusectl").open("a+") as users, (directory / "s3b-fusectl-change").open("a") as change:
        with _locked(change):
            if not any(mount.path == str(CONNECTIONS) for mount in read_mounts()):
                run("mount", "-t", "fusectl", "fusectl", str(CONNECTIONS))
                users.write("ours")
                users.flush()
            fcntl.flock(users, fcntl.LOCK_SH)
        yield
        with _locked(change), suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            users.seek(0)
            if users.read():
                run("umount", str(CONNECTIONS))
                users.truncate(0)


@contextmanager
def _locked(file: TextIO) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _workbench(directory: Path, fast_lane: bool) -> Iterator[Workbench]:
    bench = Workbench(directory)
    bench.fast_lane = fast_lane
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def bench(tmp_path: Path, fast_lane: bool) -> Iterator[Workbench]:
    """Return a directory with room for a volume and its mount; whatever a test leaves there is ended."""
    with _workbench(tmp_path, fast_lane) as bench:
        yield bench


@pytest.fixture
def volume(bench: Workbench) -> Workbench:
    """Return a workbench with a volume of 1 MiB in blocks of 4 KiB."""
    bench.create()
    return bench


@pytest.fixture
def other(tmp_path: Path, fast_lane: bool) -> Iterator[Workbench]:
    """Return a second workbench with a volume."""
    (tmp_path / "other").mkdir()
    with _workbench(tmp_path / "other", fast_lane) as bench:
        bench.create()
        yield bench
