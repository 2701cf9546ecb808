"""The demonstration: its table, and that it leaves nothing behind wherever it is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import mounts_below, needs_mounts, wait_until
from tests.support.servers import find_program

pytestmark = [needs_mounts, pytest.mark.skipif(find_program("weed") is None, reason="there is no weed program")]

ROOT = Path(__file__).resolve().parents[2]


class Run:
    """One demonstration whose files, and all of whose processes, are known by its own temporary directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / "demo.py")],
            env={**os.environ, "TMPDIR": str(directory), "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def mounts(self) -> list[str]:
        return mounts_below(self.directory)

    def processes(self) -> list[int]:
        """Every process that inherited the directory in its environment."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and f"TMPDIR={self.directory}\0".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def loop_devices(self) -> list[str]:
        backing = (entry.read_text() for entry in Path("/sys/block").glob("loop*/loop/backing_file"))
        return [file for file in backing if file.startswith(str(self.directory))]

    def left_behind(self) -> list[object]:
        return [*self.mounts(), *self.processes(), *self.loop_devices(), *self.directory.iterdir()]

    def end(self) -> None:
        """Undo what the demonstration did not, so that a failing test leaves nothing either."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        for path in reversed(self.mounts()):
            subprocess.run(["umount", "-l", path], check=False)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    running = Run(tmp_path)
    yield running
    running.end()


def test_it_verifies_every_file_and_shows_what_it_took(run: Run) -> None:
    output, _ = run.process.communicate(timeout=240)
    assert run.process.returncode == 0, output
    rows = re.findall(r"│ ([^│]+?) +│ +\$?([0-9.]+)(?: MiB/s)? │", output.replace(",", ""))
    numbers = {name: float(value) for name, value in rows}
    assert numbers["files verified"] > 500, output
    assert numbers["bytes verified"] > 20e6
    # ext4's own blocks come on top; the volume of 1 GiB is sparse.
    assert numbers["bytes verified"] < numbers["bytes in the bucket"] < 2 * numbers["bytes verified"]
    assert numbers["PUT requests"] >= numbers["objects in the bucket"] - 1
    assert numbers["what the requests would have cost"] > 0
    assert run.left_behind() == []


POINTS: dict[str, Callable[[Run], object]] = {
    "at the start": lambda run: True,
    "server started": lambda run: len(run.processes()) > 1,
    "volume mounted": lambda run: any(path.endswith("/volume") for path in run.mounts()),
    "copying": lambda run: next(iter(run.directory.glob("*/filesystem/[a-m]*")), None),
}


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("at the start", signal.SIGINT),
        ("server started", signal.SIGTERM),
        ("volume mounted", signal.SIGINT),
        ("copying", signal.SIGINT),
        pytest.param("copying", signal.SIGTERM, marks=pytest.mark.soak),
    ],
)
def test_interrupted_it_leaves_nothing(run: Run, point: str, number: signal.Signals) -> None:
    wait_until(lambda: POINTS[point](run) or run.process.poll() is not None, point)
    run.process.send_signal(number)
    output, _ = run.process.communicate(timeout=120)
    # Before its first statement has run, Python itself answers the signal.
    assert run.process.returncode in ((130, -number, 1) if point == "at the start" else (130,)), output
    wait_until(lambda: not run.left_behind(), f"nothing is left, and not {run.left_behind()}")
