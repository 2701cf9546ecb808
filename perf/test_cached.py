"""Cached I/O with direct I/O, beside the original: everything is in both caches before it begins.

128 KiB blocks in a directory, room for four times the bytes that are used. The processor time of writes includes
their way to the directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from perf.figures import Suite, side_by_side
from perf.fio import Done, Job, needs_fio, run_fio
from perf.rivals import DIRECT, MIB, PROGRAMS, Rival, fill, needs_rivals, new_place, running
from perf.side_by_side import Report

SIZE = 1024 * MIB
MEMORY = 512 * MIB
AREA = 96 * MIB
#: Where others write meanwhile, and how fast.
ELSEWHERE = 256 * MIB
RATE = "rate=,200m"

pytestmark = [*needs_rivals, needs_fio]


@dataclass(frozen=True)
class Shape:
    """A workload and the ratio that it should reach."""

    name: str
    job: Job
    target: float
    unit: str = "requests/s"


def _shapes() -> Iterator[Shape]:
    for pattern, targets in (("randread", (1.5, 2.0, 1.4)), ("randwrite", (1.3, 1.3, 1.3))):
        what = f"4 KiB random {pattern.removeprefix('rand')}"
        yield Shape(f"{what}, depth 1", Job(pattern, 4096, AREA, words=("ioengine=psync",)), targets[0])
        deep = ("ioengine=libaio", "iodepth=16")
        yield Shape(f"{what}, depth 16", Job(pattern, 4096, AREA, words=deep), targets[1])
        four = ("ioengine=psync", "numjobs=4")
        yield Shape(f"{what}, 4 jobs", Job(pattern, 4096, AREA, words=four), targets[2])
    for pattern, target in (("read", 2.0), ("write", 1.5)):
        job = Job(pattern, MIB, AREA, words=("ioengine=psync",))
        yield Shape(f"1 MiB sequential {pattern}", job, target, "MB/s")


@pytest.fixture(scope="module")
def rivals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Rival]]:
    directory = tmp_path_factory.mktemp("cached")
    with contextlib.ExitStack() as stack:
        found = {}
        for program in (*PROGRAMS, DIRECT):
            place = new_place(directory / program / "objects")
            mount = running(program, place, directory / program, size=SIZE, memory=MEMORY)
            found[program] = stack.enter_context(mount)
            fill(found[program].disk, AREA)
            found[program].settle()
        yield found


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite("cached")


@pytest.mark.parametrize("shape", list(_shapes()), ids=lambda shape: shape.name)
def test_cached(shape: Shape, rivals: dict[str, Rival], suite: Suite, report: Report) -> None:
    def run(program: str) -> Done:
        return run_fio(rivals[program].disk, shape.job)[0]

    writes = "write" in shape.job.pattern
    workload = side_by_side(f"cached {shape.name}", rivals, run, target=shape.target, unit=shape.unit, writes=writes)
    suite.add(workload)
    report.add(workload.ratio("tuned"))


def test_cached_read_while_others_upload(rivals: dict[str, Rival], suite: Suite, report: Report) -> None:
    """Random reads while another job writes 200 MB/s, as far as it gets, to other blocks, which go to the directory."""
    reader = Job("randread", 4096, AREA, words=("ioengine=psync",))
    words = ("ioengine=libaio", "iodepth=4", RATE)
    writer = Job("write", 128 << 10, 128 * MIB, ELSEWHERE, words)
    written: dict[str, list[float]] = {program: [] for program in rivals}

    def run(program: str) -> Done:
        reads, writes = run_fio(rivals[program].disk, reader, writer)
        written[program].append(writes.bytes_per_second / 1e6)
        return reads

    name = "cached 4 KiB random read while 200 MB/s are written"
    workload = side_by_side(name, rivals, run, target=1.5, unit="requests/s", writes=True)
    suite.add(workload)
    report.add(workload.ratio("tuned"))
    print("MB/s written meanwhile:", {program: [round(one) for one in found] for program, found in written.items()})
