"""The request engine: CPU of the client for each request, and reads with a heavy tail.

CPU         user and system seconds of the client for a request, 8 callers, MinIO; of the original the whole daemon,
            each block written or read once through the mount in pieces of 128 KiB
tail        20,000 random reads, 16 in flight; 1 % of the answers take 10 s, the others 20 ms ± 20 %; with and
            without asking twice
slow-down   every answer takes ten times as long: how many are asked for twice
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perf.side_by_side import Ratio, Report
from s3backer.s3.hedging import Hedging
from s3backer.stores.s3 import S3Store
from tests.support.minio_program import find_minio
from tests.support.original import ORIGINAL, program_mounted, reach
from tests.support.proxied import proxied
from tests.support.servers import MinioServer

ROUNDS = 5
CALLERS = 8
PIECE = 128 << 10
#: Bytes of a request, and how many of them make a round.
SIZES = {4 << 10: 4000, 128 << 10: 1000, 1 << 20: 160, 8 << 20: 40}

pytestmark = pytest.mark.skipif(find_minio() is None, reason="MinIO was not built: run 'tools/bootstrap test'")


@pytest.fixture(scope="module")
def server() -> Iterator[MinioServer]:
    with MinioServer() as server:
        yield server


def cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def together(work: Callable[[int], None], callers: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ours(server: MinioServer, size: int, count: int) -> dict[str, float]:
    """Return CPU seconds for a PUT and for a GET."""
    store = S3Store(server.make_bucket(), replace(server.options(), connections=CALLERS))
    body = os.urandom(size)
    found = {}
    for what in ("PUT", "GET"):

        def work(caller: int, what: str = what) -> None:
            for number in range(caller, count, CALLERS):
                if what == "PUT":
                    store.put(f"{number:08x}", body, if_none_match=True)
                else:
                    store.get(f"{number:08x}")

        before = cpu(resource.RUSAGE_SELF)
        together(work, CALLERS)
        found[what] = (cpu(resource.RUSAGE_SELF) - before) / count
    store.close()
    return found


def original(server: MinioServer, size: int, count: int, directory: Path) -> dict[str, float]:
    bucket = server.make_bucket()
    words = [*reach(server), f"--blockSize={size}", f"--size={size * count}", "--blockCacheThreads=8", bucket]
    content = os.urandom(PIECE)

    def used(work: Callable[[int], None]) -> float:
        before = cpu(resource.RUSAGE_CHILDREN)
        with program_mounted(ORIGINAL, directory / "mnt", *words) as disk:
            file = os.open(disk, os.O_RDWR)
            work(file)
            os.close(file)
        return cpu(resource.RUSAGE_CHILDREN) - before

    def write(file: int) -> None:
        for offset in range(0, size * count, PIECE):
            os.pwrite(file, content[: min(PIECE, size * count - offset)], offset)

    def read(file: int) -> None:
        for offset in range(0, size * count, PIECE):
            os.pread(file, min(PIECE, size * count - offset), offset)

    nothing = used(lambda file: None)
    return {"PUT": (used(write) - nothing) / count, "GET": (used(read) - nothing) / count}


@pytest.mark.skipif(not Path(ORIGINAL[0]).exists(), reason="Debian's s3backer is not installed: apt install s3backer")
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size >> 10} KiB")
def test_cpu_of_a_request(size: int, server: MinioServer, tmp_path: Path, report: Report) -> None:
    count = SIZES[size]
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    for number in range(ROUNDS):
        directory = tmp_path / str(number)
        directory.mkdir()
        rounds.append((ours(server, size, count), original(server, size, count, directory)))
    for what in ("PUT", "GET"):
        mine, theirs = ([one[side][what] for one in rounds] for side in (0, 1))
        ratios = [their / my for my, their in zip(mine, theirs, strict=True)]
        report.add(
            Ratio(
                f"CPU of a {what} of {size >> 10} KiB: {statistics.median(mine) * 1e3:.3f} ms",
                f"the original's whole daemon: {statistics.median(theirs) * 1e3:.3f} ms",
                statistics.median(theirs) / statistics.median(mine),
                min(ratios),
                max(ratios),
                1.0,
                "times as much",
            )
        )


def read_randomly(store: S3Store, reads: int, seed: int) -> list[float]:
    """Return the seconds of each of so many random reads, 16 in flight."""
    took: list[float] = []

    def work(caller: int) -> None:
        source = random.Random(f"{seed} {caller}")
        for _ in range(reads // 16):
            started = time.perf_counter()
            store.get(f"{source.randrange(100):08x}")
            took.append(time.perf_counter() - started)

    together(work, 16)
    return sorted(took)


def test_reads_with_a_heavy_tail(server: MinioServer, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = server.make_bucket()
    plain = S3Store(bucket, server.options())
    for number in range(100):
        plain.put(f"{number:08x}", os.urandom(4096))
    for hedged in (True, False):
        if not hedged:
            monkeypatch.setattr(Hedging, "allowed", lambda *_: False)
        with proxied(server, latency={"get": "0.02,0.2,0.01,10"}) as url:
            store = S3Store(bucket, replace(server.options(), endpoint_url=url, connections=32))
            took = read_randomly(store, 20_000, 1)
            store.close()
        median, tail = statistics.median(took), took[len(took) * 999 // 1000]
        report.add(
            Ratio(
                f"p99.9 of reads, 1 % take 10 s, {'asked twice' if hedged else 'asked once'}: {tail * 1e3:.0f} ms",
                f"their median: {median * 1e3:.1f} ms",
                tail / median,
                tail / median,
                tail / median,
                5.0 if hedged else None,
                "times as long (at most)",
            )
        )
        if hedged:
            extra = store.counters.hedges / 20_000
            report.add(Ratio("further GETs for that", "all GETs", extra, extra, extra, 0.05, "(at most)"))
    plain.close()


def test_a_general_slow_down_is_not_answered_with_more_requests(server: MinioServer, report: Report) -> None:
    bucket = server.make_bucket()
    plain = S3Store(bucket, server.options())
    for number in range(100):
        plain.put(f"{number:08x}", os.urandom(4096))
    plain.close()
    with (
        proxied(server, latency={"get": "0.02,0.2"}) as fast,
        proxied(server, latency={"get": "0.2,0.2"}) as slow,
    ):
        store = S3Store(bucket, replace(server.options(), endpoint_url=fast, connections=32))
        read_randomly(store, 2000, 1)
        before = store.counters.hedges
        slower = S3Store(bucket, replace(server.options(), endpoint_url=slow, connections=32))
        # What the one has learnt of the server the other believes.
        slower._engine._hedging = store._engine._hedging
        read_randomly(slower, 2000, 2)
        hedges = slower.counters.hedges
        store.close()
        slower.close()
    print(f"{before} before it")
    report.add(Ratio("GETs asked twice while everything is ten times as slow", "2000 GETs", hedges, hedges, hedges, 0))
