"""What the policies of eviction are tried on: invented access patterns, and traces of file systems."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from perf.trace_files import DIRECTORY, Access, load

PAGE = 4096
LARGE = 131072
LENGTH = 40_000
#: Block sizes at which the recorded traces are replayed: the default of ``create`` and the original's.
RECORDED = (LARGE, PAGE)


class Workload(NamedTuple):
    """Accesses to a disk in blocks of that size, bytes."""

    name: str
    block_size: int
    accesses: list[Access]


def workloads() -> Iterator[Workload]:
    """Yield all of them."""
    for name, (block_size, make) in INVENTED.items():
        yield Workload(name, block_size, list(itertools.islice(make(random.Random(name)), LENGTH)))
    for path in sorted(DIRECTORY.glob("*.trace")):
        for block_size in RECORDED:
            yield Workload(f"{path.stem}, {block_size >> 10} KiB", block_size, load(path))


def _zipf(source: random.Random, count: int, exponent: float, base: int = 0) -> Callable[[], int]:
    """Return what draws numbers from base on, the first ones most often, in a fixed shuffled order."""
    sums = list(itertools.accumulate(1 / (n + 1) ** exponent for n in range(count)))
    order = list(range(base, base + count))
    source.shuffle(order)
    return lambda: order[bisect.bisect_left(sums, source.random() * sums[-1])]


def _page(number: int, write: bool = False) -> Access:
    return Access(number * PAGE, PAGE, write)


def _popular(source: random.Random) -> Iterator[Access]:
    draw = _zipf(source, 10_000, 0.9)
    while True:
        yield _page(draw(), source.random() < 0.2)


def _hot_and_scans(source: random.Random) -> Iterator[Access]:
    """A hot set, and every now and then something large is read once."""
    draw, start = _zipf(source, 2000, 0.7), 100_000
    while True:
        for _ in range(6000):
            yield _page(draw())
        for number in range(start, start + 4000):
            yield _page(number)
            if source.random() < 0.3:
                yield _page(draw())
        start += 4000


def _loop(source: random.Random) -> Iterator[Access]:
    """The same file again and again, beside a little else."""
    while True:
        for number in range(4000):
            yield _page(number)
            if source.random() < 0.02:
                yield _page(source.randrange(10_000, 10_400))


def _streams(source: random.Random) -> Iterator[Access]:
    """Six sequential readers in small pieces, and popular blocks between them."""
    draw = _zipf(source, 600, 0.8)
    at = [(1 + n) << 36 for n in range(6)]
    while True:
        stream = source.randrange(6)
        for _ in range(source.randrange(1, 8)):
            yield Access(at[stream], 16384, False)
            at[stream] += 16384
        yield Access(draw() * LARGE + source.randrange(32) * PAGE, PAGE, source.random() < 0.2)


def _shifting(source: random.Random) -> Iterator[Access]:
    """What is popular changes."""
    for start in itertools.count(0, 3000):
        draw = _zipf(source, 4000, 0.8, start)
        for _ in range(10_000):
            yield _page(draw())


def _database(source: random.Random) -> Iterator[Access]:
    """A tree of pages with few upper ones, a log written in a circle, checkpoints, and a scan of a table at times."""
    leaf = _zipf(source, 8000, 0.8, 1000)
    for step in itertools.count():
        yield _page(0)
        page = leaf()
        yield _page(1 + page % 60)
        yield _page(page)
        if source.random() < 0.3:
            yield _page(page, write=True)
            yield _page(20_000 + step % 1000, write=True)
        if step % 4000 == 3999:
            for number in range(1000, 4000):
                yield _page(number)


INVENTED: dict[str, tuple[int, Callable[[random.Random], Iterator[Access]]]] = {
    "popular": (PAGE, _popular),
    "hot and scans": (PAGE, _hot_and_scans),
    "loop": (PAGE, _loop),
    "streams": (LARGE, _streams),
    "shifting": (PAGE, _shifting),
    "database": (PAGE, _database),
}
