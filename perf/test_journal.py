"""The write journal beside what the disk itself does: appending, appending with fsync, and reading back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from perf.side_by_side import ROUNDS, Report, compare
from s3backer import _fast
from s3backer._journal import JOURNAL_BUSY, JOURNAL_FULL
from s3backer.journal.files import FILE_BYTES, JournalDirectory
from s3backer.journal.replay import scan
from s3backer.journal.service import Mount, WriteJournal

VOLUME = bytes(32)
MOUNT = Mount(VOLUME, bytes(16), 1, "s3://perf/journal")
SPACE = 8 << 20
BUDGET = 24 * FILE_BYTES


class Kept(WriteJournal):
    """A journal that gives no file up, so that the next round finds the same."""

    def _give_up_files(self) -> None:
        pass


class Bench:
    """A journal whose writes all go to a few blocks, and a plain file of the same size, both made before."""

    def __init__(self, path: Path, block_size: int) -> None:
        self.path = path / "journal"
        self.directory = JournalDirectory(self.path)
        blocks = SPACE // block_size
        self.slab = _fast.Slab(block_size, blocks + 1, blocks)
        for block in range(blocks):
            self.slab.fill(block, None)
        self.journal = WriteJournal(self.directory, self.slab, MOUNT, budget=BUDGET, capacity=1 << 19)
        self.core = self.journal.core
        self.plain = os.open(path / "plain", os.O_RDWR | os.O_CREAT)
        for position in range(0, FILE_BYTES, 1 << 20):
            os.pwrite(self.plain, bytes(1 << 20), position)
        os.fsync(self.plain)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._prepare)
        self.thread.start()

    def _prepare(self) -> None:
        while not self.stop.is_set():
            if self.journal.wait(0.05):
                self.journal.prepare()

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.journal.end(settled=True)
        self.journal.close()
        self.directory.close()
        os.close(self.plain)

    def append(self, length: int, count: int) -> None:
        data = os.urandom(length)
        for turn in range(count):
            offset, position = turn * length % SPACE, 0
            while position < length:
                done, reason = self.core.write(offset + position, data[position:], 0.0)
                position += done
                if reason in (JOURNAL_BUSY, JOURNAL_FULL):
                    self.make_room()

    def make_room(self) -> None:
        """Between the rounds there is room enough; where there is not, this is what a store would do."""
        for block in self.core.pending(1 << 19):
            self.core.stored(block, self.slab.sequence)
        self.core.sync()
        if not self.core.spares:
            self.journal.wait(0.01)

    def settle(self) -> None:
        """Leave nothing for the next contender to pay for."""
        self.make_room()
        os.fdatasync(self.plain)

    def plain_write(self, length: int, count: int) -> None:
        data = os.urandom(length)
        for turn in range(count):
            os.pwrite(self.plain, data, turn * length % FILE_BYTES)


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(tmp_path, request.param)
    yield made
    made.close()


def measure(contenders: Mapping[str, Callable[[], object]], settle: Callable[[], None]) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round, without what settles the disk before it."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name in sorted(contenders, reverse=bool(turn % 2)):
            settle()
            started = time.perf_counter()
            contenders[name]()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def together(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(("bench", "length"), [(4096, 4096), (131072, 4096), (131072, 131072)], indirect=["bench"])
def test_append(report: Report, bench: Bench, length: int) -> None:
    """40 MiB into the page cache, without fsync; ours goes into the slab as well, and has a CRC."""
    count = (40 << 20) // length
    ours = f"journal, {length >> 10} KiB in blocks of {bench.slab.block_size >> 10} KiB"
    times = measure(
        {ours: lambda: bench.append(length, count), "pwrite": lambda: bench.plain_write(length, count)}, bench.settle
    )
    report.add(compare(times, ours, ["pwrite"], None))


@pytest.mark.parametrize(("threads", "target"), [(1, 0.5), (16, None)])
@pytest.mark.parametrize("bench", [4096], indirect=True)
def test_append_and_sync(report: Report, bench: Bench, threads: int, target: float | None) -> None:
    """Writes of 4 KiB, each followed by its fsync; plain: pwrite and fdatasync on a file that was written before."""
    count = 400 // threads
    data = os.urandom(4096)

    def ours(number: int) -> None:
        for turn in range(count):
            while bench.core.write((number * count + turn) * 4096 % SPACE, data, 0.0)[0] < 4096:
                bench.make_room()
            bench.core.sync()

    def plain(number: int) -> None:
        for turn in range(count):
            os.pwrite(bench.plain, data, (number * count + turn) * 4096)
            os.fdatasync(bench.plain)

    name, yardstick = f"journal, fsync, {threads} threads", f"pwrite and fdatasync, {threads} threads"
    before = bench.core.syncs
    times = measure({name: lambda: together(threads, ours), yardstick: lambda: together(threads, plain)}, bench.settle)
    syncs = (bench.core.syncs - before) / (ROUNDS + 1)
    print(
        f"{syncs:.0f} fdatasyncs for {threads * count} writes, {threads * count / min(times[name]):.0f} writes a second"
    )
    report.add(compare(times, name, [yardstick], target))


def _filled(bench: Bench) -> tuple[Callable[[], None], Callable[[], None]]:
    """Write 1 GiB of records of a block each; return what lets the disk have them only, and what just reads them."""
    while bench.core.files < 16:
        bench.append(bench.slab.block_size, 1)
    bench.core.sync()
    numbers = bench.directory.numbers()[:16]

    def forget() -> None:
        for number in numbers:
            fd = bench.directory.open(number)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    def plain() -> None:
        buffer = bytearray(1 << 20)
        for number in numbers:
            fd = bench.directory.open(number)
            for position in range(0, FILE_BYTES, len(buffer)):
                os.preadv(fd, [buffer], position)
            os.close(fd)

    return forget, plain


@pytest.mark.parametrize("bench", [4096, 131072], indirect=True)
def test_scan(report: Report, bench: Bench) -> None:
    """1 GiB of records; plain: the same files in pieces of 1 MiB. Both from the disk."""
    forget, plain = _filled(bench)
    name = f"scan, blocks of {bench.slab.block_size >> 10} KiB"
    times = measure({name: lambda: scan(bench.directory, VOLUME), "reading": plain}, forget)
    print(f"{name}: {min(times[name]):.2f} s for 1 GiB")
    report.add(compare(times, name, ["reading"], 0.5))


@pytest.mark.parametrize("bench", [4096, 131072], indirect=True)
def test_going_on(report: Report, bench: Bench) -> None:
    """The same, until what 1 GiB of journal holds can be read, and the next write can be taken."""
    forget, plain = _filled(bench)
    bench.stop.set()
    bench.thread.join()

    def go_on() -> None:
        slab = _fast.Slab(bench.slab.block_size, bench.slab.slots, bench.slab.dirty_limit)
        found = scan(bench.directory, VOLUME)
        journal = Kept(bench.directory, slab, MOUNT, budget=BUDGET, capacity=1 << 19, recovered=found)
        assert journal.core.left
        journal.close()

    name = f"going on, blocks of {bench.slab.block_size >> 10} KiB"
    times = measure({name: go_on, "reading": plain}, forget)
    print(f"{name}: {min(times[name]):.2f} s for 1 GiB")
    report.add(compare(times, name, ["reading"], 0.5))
