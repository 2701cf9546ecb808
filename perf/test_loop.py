"""ext4 on a loop device with direct I/O on, over the disk, beside the original: no fsync, everything cached.

The file on ext4 is opened for direct I/O too, else its own cache would be measured. Requests: 1 MiB in order by one
job; 4 KiB at random, 16 under way.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perf.figures import Suite, side_by_side
from perf.fio import Done, Job, needs_fio, run_fio
from perf.rivals import MIB, PROGRAMS, Rival, fill, needs_rivals, new_place, running
from perf.side_by_side import Report
from tests.support.mounts import filesystem, loop_device

SIZE = 512 * MIB
MEMORY = 512 * MIB
AREA = 96 * MIB
TARGET = 1.2

pytestmark = [*needs_rivals, needs_fio]

DEEP = ("ioengine=libaio", "iodepth=16")
SHAPES = {
    "1 MiB sequential read": (Job("read", MIB, AREA, words=("ioengine=psync",)), "MB/s"),
    "1 MiB sequential write": (Job("write", MIB, AREA, words=("ioengine=psync",)), "MB/s"),
    "4 KiB random read": (Job("randread", 4096, AREA, words=DEEP), "requests/s"),
    "4 KiB random write": (Job("randwrite", 4096, AREA, words=DEEP), "requests/s"),
}


@dataclass(frozen=True)
class Filesystem:
    """ext4 over a program's disk, and a file on it."""

    rival: Rival
    file: Path


@contextlib.contextmanager
def ext4_over(rival: Rival, mountpoint: Path, *options: str) -> Iterator[Path]:
    """Make ext4 on the disk, with nothing left to be done later, and mount it over a loop device."""
    with loop_device(rival.disk) as device:
        make = ["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", device]
        subprocess.run(make, check=True, timeout=300)
        with filesystem(device, mountpoint, *options) as mounted:
            yield mounted


@pytest.fixture(scope="module")
def filesystems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Filesystem]]:
    directory = tmp_path_factory.mktemp("loop")
    with contextlib.ExitStack() as stack:
        found = {}
        for program in PROGRAMS:
            place = new_place(directory / program / "objects")
            rival = stack.enter_context(running(program, place, directory / program, size=SIZE, memory=MEMORY))
            root = stack.enter_context(ext4_over(rival, directory / program / "ext4"))
            file = root / "data"
            file.touch()
            fill(file, AREA)
            subprocess.run(["sync", "-f", str(file)], check=True, timeout=300)
            rival.settle()
            found[program] = Filesystem(rival, file)
        yield found


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite("loop")


@pytest.mark.parametrize("shape", list(SHAPES))
def test_ext4_over_loop(shape: str, filesystems: dict[str, Filesystem], suite: Suite, report: Report) -> None:
    job, unit = SHAPES[shape]

    def run(program: str) -> Done:
        return run_fio(filesystems[program].file, job)[0]

    rivals = {program: found.rival for program, found in filesystems.items()}
    writes = "write" in job.pattern
    workload = side_by_side(f"ext4 over loop, {shape}", rivals, run, target=TARGET, unit=unit, writes=writes)
    suite.add(workload)
    report.add(workload.ratio("tuned"))
