"""Many threads write, sync, load, store and prepare at once: nothing is lost, nothing waits for ever."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from s3backer import _fast
from s3backer._journal import JOURNAL_BUSY, JOURNAL_FULL
from tests.support.journals import BLOCK, BLOCKS, SmallJournal, scan_path
from tests.support.power_loss import Calls

WRITERS = 8
SECONDS = 1.5


class Storm:
    """Each writer has blocks of its own and fills them with one number; ``acknowledged`` and ``synced`` by block."""

    def __init__(self, small: SmallJournal, seed: int) -> None:
        self.small, self.seed = small, seed
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.acknowledged: dict[int, int] = {}
        self.synced: dict[int, int] = {}
        self.loads = self.stores = 0

    def run(self, seconds: float) -> None:
        works = [(self.write, n) for n in range(WRITERS)] + [(self.prepare, 0), (self.store, 1), (self.load, 2)]
        threads = [threading.Thread(target=self.guard, args=work) for work in works]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.stop.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
        if self.failures:
            raise AssertionError(f"seed {self.seed}") from self.failures[0]

    def guard(self, work, number: int) -> None:
        try:
            while not self.stop.is_set() and not self.failures:
                work(random.Random(random.random()), number)
        except BaseException as error:
            self.failures.append(error)

    def write(self, source: random.Random, number: int) -> None:
        block = source.randrange(BLOCKS // WRITERS) * WRITERS + number
        value = self.acknowledged.get(block, 0) + 1
        body = value.to_bytes(8, "little") * (BLOCK // 8)
        position = 0
        while position < BLOCK and not self.stop.is_set():
            count, reason = self.small.core.write(block * BLOCK + position, body[position:], 0.0)
            position += count
            if reason in (JOURNAL_BUSY, JOURNAL_FULL):
                time.sleep(0.001)
            else:
                assert reason == _fast.DONE
        if position == BLOCK:
            self.acknowledged[block] = value
            if source.random() < 0.2:
                mine = {b: v for b, v in self.acknowledged.items() if b % WRITERS == number}
                self.small.core.sync()
                self.synced.update(mine)

    def prepare(self, source: random.Random, _: int) -> None:
        if self.small.journal.wait(0.01):
            self.small.journal.prepare()

    def store(self, source: random.Random, _: int) -> None:
        sequence = self.small.slab.sequence
        for block in self.small.core.pending(BLOCKS // 2):
            self.small.journal.intend(block, sequence, "", "sum")
            time.sleep(0)
            self.small.journal.done(block, sequence, '"e"')
            self.stores += 1

    def load(self, source: random.Random, _: int) -> None:
        block = source.randrange(BLOCKS)
        out = bytearray(BLOCK)
        self.small.core.load(block, out)
        assert out == out[:8] * (BLOCK // 8), f"block {block} is a mixture"
        self.loads += 1


def newest(path: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for record, data in scan_path(path)[1]:
        assert data is not None and data == data[:8] * (BLOCK // 8)
        found[record.offset // BLOCK] = int.from_bytes(data[:8], "little")
    return found


@pytest.mark.parametrize("seed", [1])
def test_a_storm(tmp_path: Path, seed: int) -> None:
    random.seed(seed)
    with SmallJournal(tmp_path / "j", files=8) as small:
        storm = Storm(small, seed)
        storm.run(SECONDS)
        core = small.core
        assert (core.waiting, core.loading) == (0, 0)
        assert core.failure is None
        assert storm.loads and storm.stores and storm.synced
        pending = set(core.pending(BLOCKS))
        for block in pending:
            out = bytearray(BLOCK)
            core.load(block, out)
            # A write may have been taken that was not acknowledged any more.
            assert int.from_bytes(out[:8], "little") - storm.acknowledged.get(block, 0) in (0, 1)
    # Nobody synced at the end: it was a process that ended.
    found = newest(tmp_path / "j")
    assert pending <= set(found)
    for block in pending:
        assert found[block] >= storm.acknowledged.get(block, 0) >= storm.synced.get(block, 0)
    with SmallJournal(tmp_path / "j", files=8) as small:
        # Where there was no room for the note that a block was stored it is stored once more.
        assert set(small.core.pending(BLOCKS)) >= pending
        small.store_all()
        small.journal.prepare()
        assert (small.core.entries, small.core.blocks) == (0, 0)


def test_a_buffer_that_changes_while_it_is_written(tmp_path: Path) -> None:
    """Between the CRC and the write, say."""
    data = bytearray(b"a" * BLOCK)

    def change() -> None:
        data[:] = b"b" * BLOCK

    with SmallJournal(tmp_path / "j") as small:
        calls = Calls(lambda fd, raw, at: os.pwrite(fd, raw, at), lambda fd: None, before=change)
        calls.interpose(small.core)
        small.write(0, data)
    assert [found for _, found in scan_path(tmp_path / "j")[1]] == [b"a" * BLOCK]


def test_writers_are_not_held_up_by_a_busy_interpreter(tmp_path: Path) -> None:
    """Syncs of many threads go on while one of them never lets go of the GIL on its own."""
    with SmallJournal(tmp_path / "j", files=8) as small:
        stop = threading.Event()

        def spin() -> None:
            while not stop.is_set():
                pass

        spinner = threading.Thread(target=spin)
        spinner.start()
        try:
            threads = [threading.Thread(target=lambda n=n: self_sync(small, n)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        finally:
            stop.set()
            spinner.join()
        assert small.core.waiting == 0
        assert small.core.durable == small.slab.sequence


def self_sync(small: SmallJournal, number: int) -> None:
    for _ in range(5):
        small.core.write(number * BLOCK, b"x" * 64, 0.0)
        small.core.sync()
