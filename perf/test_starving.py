"""Reads beside queued writes (issue #132 of the original): how long a read that misses takes, with and without them.

A mounted volume, blocks of 128 KiB, 20 ms for each read and 200 ms for each write. One reader asks for 4 KiB of a
block that it has not read yet, again and again; meanwhile four writers write as fast as they are let, so that the
cache is full of blocks to be stored. The original with its defaults, in turns with ours. What the machine, the server
and the proxy before it make of so many writes is shown by GETs outside of the mount at the same time.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from perf.side_by_side import Ratio, Report
from s3backer.admin import create_volume
from s3backer.codec.choice import EncodingOptions, choose_codec
from s3backer.layouts.classic import ClassicLayout
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.mounts import needs_mounts, wait_until
from tests.support.original import ORIGINAL, OURS, program_mounted
from tests.support.proxied import proxied
from tests.support.servers import MinioServer

BLOCK = 128 << 10
#: Blocks that are there to be read.
STORED = 600
SIZE = 16 << 30
CACHE_BLOCKS = 1000
WRITERS = 4
ROUNDS = 3
READS = 150
#: Seconds after which a round has enough reads.
LONG = 40.0
LATENCY = {"get": "0.02", "put": "0.2"}

pytestmark = [
    needs_mounts,
    pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT),
    pytest.mark.skipif(
        not Path(ORIGINAL[0]).exists(), reason="Debian's s3backer is not installed: apt install s3backer"
    ),
]


def make_volume(server: MinioServer) -> str:
    """Return the bucket of a volume whose first blocks are stored."""
    bucket = server.make_bucket()
    store = S3Store(bucket, server.options())
    encoding = EncodingOptions(compress="none")
    create_volume(store, "", size=SIZE, block_size=BLOCK, encoding=encoding)
    codec = choose_codec(encoding, None, bucket=bucket, prefix="", block="")
    layout = ClassicLayout(store, "", block_size=BLOCK, size=SIZE, codec=codec)
    body = os.urandom(BLOCK)
    for block in range(1, STORED):
        layout.write(block, body)
    store.close()
    return bucket


class Writers:
    """Write blocks that were never written, as fast as they are let, each in a range of its own."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._stop = threading.Event()
        self.written = [0] * WRITERS
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]

    def _write(self, number: int) -> None:
        first = (1 + number) * (SIZE // (WRITERS + 1)) // BLOCK
        body = os.urandom(BLOCK)
        descriptor = os.open(self._disk, os.O_WRONLY)
        while not self._stop.is_set():
            os.pwrite(descriptor, body, (first + self.written[number]) * BLOCK)
            self.written[number] += 1
        os.close(descriptor)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write meanwhile; begin when the cache is full."""
        for thread in self._threads:
            thread.start()
        try:
            wait_until(lambda: sum(self.written) > CACHE_BLOCKS + 2 * WRITERS, "the cache is full")
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def read(disk: Path, blocks: Iterator[int]) -> list[float]:
    """Return the seconds of reads that miss."""
    took: list[float] = []
    descriptor = os.open(disk, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    end = time.monotonic() + LONG
    while len(took) < READS and time.monotonic() < end:
        block = next(blocks)
        started = time.perf_counter()
        assert len(os.pread(descriptor, 4096, block * BLOCK)) == 4096
        took.append(time.perf_counter() - started)
    os.close(descriptor)
    return sorted(took)


@contextmanager
def asking(options: StoreOptions, bucket: str) -> Iterator[list[float]]:
    """Get an object again and again meanwhile; yield the seconds that it takes."""
    took: list[float] = []
    stop = threading.Event()
    store = S3Store(bucket, options)

    def ask() -> None:
        while not stop.is_set():
            started = time.perf_counter()
            store.get("00000001")
            took.append(time.perf_counter() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()
        store.close()


@dataclass(frozen=True)
class Found:
    """Seconds of reads without and with writes that are queued, of GETs outside beside the latter; bytes a second."""

    alone: list[float]
    queued: list[float]
    outside: list[float]
    written: float


def once(program: str, server: MinioServer, url: str, directory: Path) -> Found:
    command = OURS if program == "ours" else ORIGINAL
    words = [f"--baseURL={url}/", f"--accessId={server.access_key}", f"--accessKey={server.secret_key}"]
    words += [f"--blockSize={BLOCK}", f"--size={SIZE}", f"--blockCacheSize={CACHE_BLOCKS}", "--listBlocks"]
    blocks = iter(random.Random(132).sample(range(1, STORED), STORED - 1))
    directory.mkdir()
    bucket = make_volume(server)
    with program_mounted(command, directory / "mnt", *words, bucket) as disk:
        alone = read(disk, blocks)
        writers = Writers(disk)
        with writers.running():
            before, started = sum(writers.written), time.perf_counter()
            with asking(replace(server.options(), endpoint_url=url), bucket) as outside:
                queued = read(disk, blocks)
            written = (sum(writers.written) - before) * BLOCK / (time.perf_counter() - started)
    return Found(alone, queued, sorted(outside), written)


def p99(took: list[float]) -> float:
    return took[min(len(took) - 1, len(took) * 99 // 100)]


def test_reads_beside_queued_writes(tmp_path: Path, report: Report) -> None:
    rounds: dict[str, list[Found]] = {"ours": [], "original": []}
    with MinioServer() as server, proxied(server, latency=LATENCY) as url:
        for number in range(ROUNDS):
            for program in sorted(rounds, reverse=bool(number % 2)):
                rounds[program].append(once(program, server, url, tmp_path / f"{program}{number}"))
    for program, found in rounds.items():
        written = statistics.median(one.written for one in found) / 1e6
        for name, figure in (("median", statistics.median), ("p99", p99)):
            queued = [figure(one.queued) for one in found]
            for what, others in (
                ("without", [figure(one.alone) for one in found]),
                ("a GET outside meanwhile", [figure(one.outside) for one in found]),
            ):
                ratios = [mine / other for mine, other in zip(queued, others, strict=True)]
                report.add(
                    Ratio(
                        f"{program}, {name} of reads while {written:.1f} MB/s are stored: "
                        f"{statistics.median(queued) * 1e3:.0f} ms",
                        f"{what}: {statistics.median(others) * 1e3:.0f} ms",
                        statistics.median(ratios),
                        min(ratios),
                        max(ratios),
                        None,
                        "times as long",
                    )
                )
