"""Runs the command line, in this process or as one of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from s3backer import hints
from s3backer.admin import create_volume
from s3backer.cli import main
from s3backer.stores.directory import DirectoryStore
from tests.support.commands import Answer, Run

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the control sockets of this test in its own directory."""
    directory = tmp_path / "sockets"
    directory.mkdir(mode=0o700)
    monkeypatch.setattr("s3backer.control.sockets.control_directory", lambda: directory)
    return directory


@pytest.fixture
def run(sockets: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command in this process."""
    root, ours = logging.getLogger(), logging.getLogger("s3backer")
    level = ours.level

    def run_here(*words: str) -> Answer:
        capfd.readouterr()
        # In a process of its own none is noted yet.
        monkeypatch.setattr(hints, "_stores", {})
        code = main(words)
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    yield run_here
    for handler in list(root.handlers):
        if getattr(handler, "_s3backer", False):
            root.removeHandler(handler)
    ours.setLevel(level)


@pytest.fixture
def run_apart() -> Run:
    """Run a command in a process of its own, without a terminal; ``wrapper``: what runs it."""

    def run_there(*words: str, wrapper: Sequence[str] = ()) -> Answer:
        done = subprocess.run(
            [*wrapper, sys.executable, "-m", "s3backer", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run_there


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Return a directory that holds a volume of 8 MiB in blocks of 64 KiB."""
    directory = tmp_path / "volume"
    directory.mkdir()
    create_volume(DirectoryStore(directory), "", size=8 << 20, block_size=64 << 10)
    return directory
