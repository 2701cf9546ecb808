"""Sixteen threads on one slab: no reader ever sees a torn sector, and every counter returns to zero.

Every sector says which block and sector it is and which write it comes from, three times over: at its beginning, in
the middle and at its end. A sector that mixes two writes, or that belongs elsewhere, shows it.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from s3backer import _fast

SECTOR = 512
SECTORS = 8
SIZE = SECTOR * SECTORS
THREADS = 16
BLOCKS = 96
#: From here on blocks are dropped now and then, and never written.
DROPPED = 64
SLOTS = 48
LIMIT = 24
SECONDS = 2.0


def sector(block: int, number: int, version: int) -> bytes:
    label = b"%08x%02x%012x" % (block, number, version)
    return label.ljust(240, b".") + label.ljust(250, b"-") + label


def body(block: int, version: int) -> bytes:
    return b"".join(sector(block, number, version) for number in range(SECTORS))


def check(data: bytes | bytearray, block: int, first: int) -> None:
    """Whole sectors of a block, from sector ``first`` on, are what somebody wrote there, or zero."""
    for number in range(len(data) // SECTOR):
        found = bytes(data[number * SECTOR : (number + 1) * SECTOR])
        if any(found):
            version = int(found[10:22], 16)
            assert found == sector(block, first + number, version), f"torn: block {block}, sector {first + number}"


@contextmanager
def quick_switches() -> Iterator[None]:
    """Let threads take turns more often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Storm:
    """The slab and what the threads do to it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.slab = _fast.Slab(SIZE, SLOTS, LIMIT)
        self.failures: list[BaseException] = []
        self.stop = threading.Event()
        self.done: dict[str, int] = {}

    def run(self, seconds: float) -> None:
        threads = [
            threading.Thread(target=self._work, args=(random.Random(self.seed * THREADS + n), n), name=f"storm-{n}")
            for n in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.failures:
            self.slab.check_invariants()
            time.sleep(0.01)
        self.stop.set()
        for thread in threads:
            thread.join(60)
        assert not [thread.name for thread in threads if thread.is_alive()], "a thread waits for ever"
        if self.failures:
            raise AssertionError(f"seed {self.seed}") from self.failures[0]

    def _work(self, source: random.Random, number: int) -> None:
        calls = (self._read, self._pin, self._write, self._write_part, self._fill, self._store, self._drop)
        weights = (6, 6, 3, 3, 4, 6, 1)
        version = number
        try:
            while not self.stop.is_set():
                call = source.choices(calls, weights)[0]
                version += THREADS
                call(source, version)
                self.done[call.__name__] = self.done.get(call.__name__, 0) + 1
        except BaseException as error:
            self.failures.append(error)

    def _read(self, source: random.Random, _: int) -> None:
        first, count = source.randrange(BLOCKS - 3), source.randrange(1, 4)
        out = bytearray(count * SIZE)
        missing = self.slab.read(first * SIZE, out)
        for block in range(first, first + count):
            piece = out[(block - first) * SIZE : (block - first + 1) * SIZE]
            if block in missing:
                assert not any(piece), "a read that missed left something"
            else:
                check(piece, block, 0)

    def _pin(self, source: random.Random, _: int) -> None:
        first, count = source.randrange(BLOCKS - 3), source.randrange(1, 4)
        reason, views = self.slab.pin(first * SIZE, count * SIZE)
        if reason == _fast.DONE:
            before = [bytes(view) for view in views]
            for _ in range(source.randrange(4)):
                time.sleep(0)
            after = [bytes(view) for view in views]
            self.slab.unpin(views)
            assert before == after, f"pinned blocks {first} to {first + count - 1} have changed"
            for number, piece in enumerate(before):
                check(piece, first + number, 0)
        else:
            assert reason in (_fast.MISSING, _fast.BUSY)

    def _write(self, source: random.Random, version: int) -> None:
        first, count = source.randrange(DROPPED - 2), source.randrange(1, 3)
        self.slab.write(first * SIZE, b"".join(body(first + n, version) for n in range(count)), 0.0)

    def _write_part(self, source: random.Random, version: int) -> None:
        block, first = source.randrange(DROPPED), source.randrange(SECTORS)
        count = source.randrange(1, SECTORS - first + 1)
        data = b"".join(sector(block, first + n, version) for n in range(count))
        self.slab.write(block * SIZE + first * SECTOR, data, 0.0)

    def _fill(self, source: random.Random, version: int) -> None:
        block = source.randrange(BLOCKS)
        self.slab.fill(block, None if source.random() < 0.1 else body(block, version), source.random() < 0.3)

    def _store(self, source: random.Random, version: int) -> None:
        for block, _, _, whole in self.slab.dirty_blocks(4):
            if not whole:
                self.slab.fill(block, body(block, version))
            try:
                _, _, stored = self.slab.begin_store(block)
            except ValueError:
                continue  # Another thread stores it.
            if stored is not None:
                check(stored, block, 0)
            time.sleep(0)
            self.slab.end_store(block, source.random() < 0.8)

    def _drop(self, source: random.Random, _: int) -> None:
        self.slab.drop_from(source.randrange(DROPPED, BLOCKS))


@pytest.mark.parametrize("seed", [1])
def test_sixteen_threads(seed: int) -> None:
    storm = Storm(seed)
    with quick_switches():
        storm.run(SECONDS)
    slab = storm.slab
    assert all(storm.done.values())
    assert (slab.pinned, slab.waiting, slab.storing) == (0, 0, 0)
    slab.check_invariants()
    while slab.dirty:
        for block, _, _, whole in slab.dirty_blocks(SLOTS):
            if not whole:
                slab.fill(block, None)
            slab.begin_store(block)
            slab.end_store(block, True)
    assert (slab.dirty, slab.storing, slab.unsaved, slab.clean) == (0, 0, 0, slab.used)
    for block in range(BLOCKS):
        slab.read(block * SIZE, bytearray(SIZE))
    assert slab.ahead == 0
    slab.drop_from(0)
    slab.check_invariants()
    assert (slab.used, slab.clean, slab.kept, slab.pinned, slab.waiting) == (0, 0, 0, 0, 0)
    # It was a storm: blocks went, came back, and writers met pins.
    assert slab.evictions
    assert slab.ghost_hits
    assert slab.waits


def test_threads_never_see_half_a_write() -> None:
    """Each writer fills a whole block with one byte value; whatever a reader gets must be one value too."""
    size = 65536
    slab = _fast.Slab(size, 4, 4)
    slab.fill(0, bytes(size))
    stop = threading.Event()
    torn: list[bytes] = []

    def read() -> None:
        out = bytearray(size)
        while not stop.is_set():
            assert slab.read(0, out) == []
            if out.count(out[0]) != size:
                torn.append(bytes(out))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in readers:
        thread.start()
    try:
        for round_number in range(1000):
            assert slab.write(0, bytes([1 + round_number % 255]) * size, 0.0) == (size, _fast.DONE)
    finally:
        stop.set()
        for thread in readers:
            thread.join()
    assert not torn
