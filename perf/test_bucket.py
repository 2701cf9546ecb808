"""Much data, and all of it in the bucket: written and seen through, then read cold, on MinIO beside others.

Written: for ours until fsync has returned, for the original, whose fsync does nothing, until its process has exited,
for filesystems over a bucket (perf/peers.py) until their file is closed and the bucket has all its bytes.
The processor time is that of the whole process, its start and its end included.
1 GiB, or as many MiB as S3BACKER_PERF_MIB says; the table names the size.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from perf.figures import ROUNDS, Figure, Suite, Workload, memory
from perf.peers import PEERS, drop_cache, peer_running, wait_for_bytes
from perf.rivals import MIB, OURS, PROGRAMS, Place, Rival, needs_rivals, new_place, running
from perf.side_by_side import Report
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.servers import MinioServer

AMOUNT = int(os.environ.get("S3BACKER_PERF_MIB", "1024")) * MIB
MEMORY = 256 * MIB
CONTENDERS = (*PROGRAMS, *PEERS)

pytestmark = [*needs_rivals, pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT)]


@pytest.fixture
def server() -> Iterator[MinioServer]:
    with MinioServer() as running_server:
        yield running_server


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Measured:
    """The figures of all programs, of one direction."""

    def __init__(self, name: str, target: float) -> None:
        self.figures = {program: Figure(program) for program in CONTENDERS}
        self.workload = Workload(f"{name} {AMOUNT // MIB} MiB, MinIO", "MB/s", target, list(self.figures.values()))

    def note(self, program: str, seconds: float, cpu: float, peak: float) -> None:
        """Keep a round; the processor time is per MiB."""
        figure = self.figures[program]
        figure.values.append(AMOUNT / 1e6 / seconds)
        figure.cpu.append(cpu * 1e6 / (AMOUNT / MIB))
        figure.peak = max(figure.peak, peak)


def mounted(program: str, place: Place, directory: Path) -> AbstractContextManager[Rival]:
    if program in PEERS:
        drop_cache(directory)
        return peer_running(program, place, directory)
    return running(program, place, directory, size=AMOUNT, memory=MEMORY)


def test_bucket(server: MinioServer, tmp_path: Path, report: Report) -> None:
    writing, reading = Measured("write and have in the bucket", 1.0), Measured("read cold", 1.2)
    pieces = [os.urandom(MIB) for _ in range(16)]
    for number in range(ROUNDS):
        for program in CONTENDERS[number % len(CONTENDERS) :] + CONTENDERS[: number % len(CONTENDERS)]:
            directory = tmp_path / f"{program}{number}"
            place = new_place(directory / "objects", server)
            cpu = children_cpu()
            with mounted(program, place, directory) as rival:
                started = time.perf_counter()
                with rival.disk.open("wb" if program in PEERS else "r+b", buffering=0) as file:
                    for index in range(AMOUNT // MIB):
                        file.write(pieces[index % len(pieces)])
                    os.fsync(file.fileno())
                if program in PEERS:
                    wait_for_bytes(place, AMOUNT)
                seconds = time.perf_counter() - started
                peak = rival.peak()
            if program != OURS and program not in PEERS:
                seconds = time.perf_counter() - started
            writing.note(program, seconds, children_cpu() - cpu, peak)
            cpu = children_cpu()
            with mounted(program, place, directory) as rival:
                started = time.perf_counter()
                with rival.disk.open("rb", buffering=0) as file:
                    for index in range(AMOUNT // MIB):
                        assert file.read(MIB) == pieces[index % len(pieces)]
                seconds = time.perf_counter() - started
                peak = rival.peak()
            reading.note(program, seconds, children_cpu() - cpu, peak)
            shutil.rmtree(directory)
    suite = Suite("bucket")
    for measured in (writing, reading):
        suite.add(measured.workload)
        report.add(measured.workload.ratio("tuned"))
        report.add(memory(measured.workload, MEMORY))
