"""A daemon's resident set over a long time under a changing load, on MinIO, beside its budget of 256 MiB.

Cached and uncached random reads and writes, a reader in order and large writes go on at the same time at a limited
speed, with a flush each minute. 30 minutes, or as many as S3BACKER_PERF_MINUTES says. Flat: the median of the
last third is no more than 8 MiB above that of the middle third.
"""

from __future__ import annotations

import os
import re
import statistics
import threading
import time
from pathlib import Path

import pytest

from perf.fio import Job, needs_fio, run_fio
from perf.rivals import MIB, OURS, needs_rivals, new_place, running
from perf.side_by_side import Ratio, Report
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.servers import MinioServer

MINUTES = float(os.environ.get("S3BACKER_PERF_MINUTES", "30"))
SIZE, MEMORY = 1024 * MIB, 256 * MIB
ALLOWANCE, FLAT = 64, 8
_EVERY = 2.0

pytestmark = [
    *needs_rivals,
    needs_fio,
    pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT),
]


def resident(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) / 1024


def jobs() -> list[Job]:
    slow = ("ioengine=libaio", "iodepth=4", "rate=8m,8m")
    return [
        Job("randrw", 4096, 96 * MIB, 0, ("ioengine=libaio", "iodepth=16", "rate=8m,8m")),
        Job("randread", 4096, 512 * MIB, 256 * MIB, ("ioengine=psync", "rate=2m")),
        Job("write", MIB, 384 * MIB, 512 * MIB, slow),
        Job("read", 128 << 10, SIZE, 0, slow),
    ]


def test_memory_stays_as_it_is(tmp_path: Path, report: Report) -> None:
    found: list[float] = []
    with MinioServer() as server:
        place = new_place(tmp_path / "objects", server)
        with running(OURS, place, tmp_path / "ours", size=SIZE, memory=MEMORY) as rival:
            over = threading.Event()

            def watch() -> None:
                while not over.wait(_EVERY):
                    found.append(resident(rival.pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                end = time.monotonic() + 60 * MINUTES
                while (left := end - time.monotonic()) > 0:
                    run_fio(rival.disk, *jobs(), seconds=max(1.0, min(60.0, left)))
                    rival.settle()
            finally:
                over.set()
                watcher.join()
            peak = rival.peak()
    third = len(found) // 3
    growth = statistics.median(found[2 * third :]) - statistics.median(found[third : 2 * third])
    what, beside = f"resident set over {MINUTES:g} minutes", "budget of 256 MiB"
    above = peak - MEMORY / MIB
    report.add(Ratio(f"{what}, peak", beside, above, above, above, ALLOWANCE, unit="MiB above it"))
    report.add(Ratio(f"{what}, last third", "the middle third", growth, growth, growth, FLAT, unit="MiB more"))
