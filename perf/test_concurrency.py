"""How many requests are let go at once, found by itself: servers 1 ms and 350 ms away, beside fixed numbers.

64 callers read objects of 16 KiB; who found the number by itself began as it does after a mount, with 8. Reported is
the number at the end and the rate of the second half, in which it does not change much any more.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from dataclasses import dataclass, replace

import pytest

from perf.side_by_side import Ratio, Report
from s3backer.s3.concurrency import Limiter
from s3backer.stores.s3 import S3Store
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.proxied import proxied
from tests.support.servers import MinioServer

CALLERS = 64
FIXED = (8, 64)
OBJECTS = 200
SECONDS = 6.0
ROUNDS = 3

pytestmark = pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT)


@dataclass(frozen=True)
class Found:
    """The number in the end, and requests a second in the first and in the second half."""

    level: int
    first: float
    second: float


def readings(server: MinioServer, url: str, bucket: str, level: int | None) -> Found:
    """Read for a while, with a fixed number of requests at once or with one that is found."""
    store = S3Store(bucket, replace(server.options(), endpoint_url=url, connections=CALLERS))
    if level is not None:
        store._engine.limiter = Limiter(level, least=level)
    begun = time.monotonic()
    ends: list[float] = []

    def work(caller: int) -> None:
        source = random.Random(caller)
        while time.monotonic() < begun + SECONDS:
            store.get(f"{source.randrange(OBJECTS):08x}")
            ends.append(time.monotonic())

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store._engine.limiter.allowed
    store.close()
    half = SECONDS / 2
    first = sum(end < begun + half for end in ends)
    second = sum(begun + half <= end < begun + SECONDS for end in ends)
    return Found(found, first / half, second / half)


@pytest.mark.parametrize("latency", ["0.001", "0.35"])
def test_the_number_found(latency: str, report: Report) -> None:
    away = f"{float(latency) * 1e3:.0f} ms away"
    found: dict[int | None, list[Found]] = {level: [] for level in (None, *FIXED)}
    with MinioServer() as server, proxied(server, latency={"*": latency}) as url:
        bucket = server.make_bucket()
        plain = S3Store(bucket, server.options())
        for number in range(OBJECTS):
            plain.put(f"{number:08x}", os.urandom(16 << 10))
        plain.close()
        for number in range(ROUNDS):
            for level in list(found)[number:] + list(found)[:number]:
                found[level].append(readings(server, url, bucket, level))
    levels = [one.level for one in found[None]]
    rates = {level: statistics.median(one.second for one in some) for level, some in found.items()}
    starts = statistics.median(one.first for one in found[None])
    print(f"{away}: found {levels}; {starts:.0f} requests/s while it was found")
    for level in FIXED:
        ratios = [mine.second / other.second for mine, other in zip(found[None], found[level], strict=True)]
        report.add(
            Ratio(
                f"requests at once, {away}: {statistics.median(levels):.0f} found, {rates[None]:.0f} requests/s",
                f"{level} fixed: {rates[level]:.0f} requests/s",
                rates[None] / rates[level],
                min(ratios),
                max(ratios),
                None,
            )
        )
