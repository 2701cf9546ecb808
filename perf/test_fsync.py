"""Synchronous writes to a mount with a journal beside the same to a plain file on the same disk.

4 KiB at random, each followed by fdatasync, by one job and by sixteen; the plain file is preallocated and written. The
kernel lets one fsync of a file at a time come to a FUSE filesystem, so that sixteen jobs are no faster there than one;
group commit is seen where the kernel is not in between (``perf/test_journal.py``). Then sqlite with synchronous
commits, on ext4 on a loop device over the journalled volume and over the plain file. Last, 384 MiB in order, buffered,
with one fsync at the end, into a bucket on MinIO with a journal and without.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perf.fio import Job, needs_fio, run_fio
from perf.rivals import JOURNAL, MIB, OURS, Rival, needs_rivals, new_place, running
from perf.side_by_side import ROUNDS, Ratio, Report
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.mounts import filesystem, loop_device
from tests.support.servers import MinioServer
from tests.support.tools import run

SIZE = 512 * MIB
MEMORY = 256 * MIB
AREA = 64 * MIB
SEQUENTIAL = 384 * MIB
PLAIN = "a plain file"
COMMITS = 200

pytestmark = [*needs_rivals, needs_fio]


@dataclass(frozen=True)
class Disk:
    """A file to write to, and what has to be waited for after that."""

    file: Path
    rival: Rival | None = None

    def settle(self) -> None:
        if self.rival is not None:
            self.rival.settle()
        else:
            os.sync()


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Disk]]:
    directory = tmp_path_factory.mktemp("fsync")
    with contextlib.ExitStack() as stack:
        found = {}
        place = new_place(directory / JOURNAL / "objects")
        rival = stack.enter_context(running(JOURNAL, place, directory / JOURNAL, size=SIZE, memory=MEMORY))
        found[JOURNAL] = Disk(rival.disk, rival)
        plain = directory / "plain"
        with plain.open("wb") as file:
            for _ in range(SIZE // MIB):
                file.write(bytes(MIB))
        found[PLAIN] = Disk(plain)
        os.sync()
        yield found


def side_by_side(disks: dict[str, Disk], names: list[str], once: Callable[[Disk], float]) -> dict[str, list[float]]:
    """Return what each disk reached in every round, in changing order."""
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            values[name].append(once(disks[name]))
            disks[name].settle()
    return values


def ratio(what: str, values: dict[str, list[float]], ours: str, other: str, unit: str, target: float | None) -> Ratio:
    mine, theirs = values[ours], values[other]
    rounds = [a / b for a, b in zip(mine, theirs, strict=True)]
    return Ratio(
        f"{what}, {ours}: {statistics.median(mine):.0f} {unit}",
        f"{other}: {statistics.median(theirs):.0f} {unit}",
        statistics.median(mine) / statistics.median(theirs),
        min(rounds),
        max(rounds),
        target,
    )


@pytest.mark.parametrize(("jobs", "target"), [(1, 0.5), (16, None)])
def test_synchronous_writes(disks: dict[str, Disk], report: Report, jobs: int, target: float | None) -> None:
    words = ("ioengine=psync", "fdatasync=1", f"numjobs={jobs}", "thread")
    job = Job("randwrite", 4096, AREA, words=words)
    values = side_by_side(disks, [JOURNAL, PLAIN], lambda disk: run_fio(disk.file, job)[0].per_second)
    report.add(ratio(f"4 KiB write + fdatasync, {jobs} jobs", values, JOURNAL, PLAIN, "a second", target))


@pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT)
def test_writing_in_order(report: Report, tmp_path: Path) -> None:
    pieces = [os.urandom(MIB) for _ in range(16)]

    def write(disk: Disk) -> float:
        started = time.perf_counter()
        with disk.file.open("r+b", buffering=0) as file:
            for number in range(SEQUENTIAL // MIB):
                file.write(pieces[number % len(pieces)])
            os.fsync(file.fileno())
            return SEQUENTIAL / (time.perf_counter() - started) / 1e6

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(MinioServer())
        disks = {}
        for program in (JOURNAL, OURS):
            place = new_place(tmp_path / program / "objects", server)
            rival = stack.enter_context(running(program, place, tmp_path / program, size=SIZE, memory=MEMORY))
            disks[program] = Disk(rival.disk, rival)
        values = side_by_side(disks, [JOURNAL, OURS], write)
    report.add(ratio("384 MiB in order and one fsync", values, JOURNAL, OURS, "MB/s", 0.8))


def test_sqlite(disks: dict[str, Disk], report: Report, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        roots = {}
        for name in (JOURNAL, PLAIN):
            device = stack.enter_context(loop_device(disks[name].file))
            run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", device)
            roots[name] = stack.enter_context(filesystem(device, tmp_path / name.replace(" ", "-")))
        places = {disks[name].file: root for name, root in roots.items()}
        values = side_by_side(disks, [JOURNAL, PLAIN], lambda disk: commits(places[disk.file]))
    report.add(ratio("sqlite, synchronous commits on ext4", values, JOURNAL, PLAIN, "a second", 0.5))


def commits(place: Path) -> float:
    """Return how many commits a second there were."""
    path = place / "base"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as base:
        base.execute("PRAGMA synchronous=FULL")
        base.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT)")
        started = time.perf_counter()
        for number in range(COMMITS):
            base.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 100))
        seconds = time.perf_counter() - started
    path.unlink()
    return COMMITS / seconds
