"""What was written can be read, also of blocks that have left memory, while the bucket says nothing."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from s3backer.cache_calls import Fetch, Job, Look, ReadRequest, Store
from s3backer.errors import S3backerError, StoreError, StoreUnreachable
from s3backer.journal.service import Part
from s3backer.layouts.classic import parse_block_name
from s3backer.stores.base import StoredObject
from s3backer.volume import Volume
from tests.support.places import BLOCK as LARGE
from tests.support.places import NEVER, SIZE, Place, Watched, opened, shortened
from tests.support.steps import BLOCK, Steps

#: Blocks that are written, in the worlds; and one of them.
BLOCKS, X = 4, 3
SECTOR = 512


class Oracle(Steps):
    """Steps of which it is known what each byte was at any time, and which bytes may be in the bucket only."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writes = 0
        #: For each byte what it was, the newest last: (number of the write, value).
        self.history = [[(0, block)] for block in range(BLOCKS) for _ in range(BLOCK)]
        #: Up to which write all of a block is in the bucket; and of what a Store under way has.
        self.stored = [0] * BLOCKS
        self.storing: dict[int, int] = {}
        #: Reads that wait, each with the number of the last write before it.
        self.reading: list[tuple[ReadRequest, int]] = []
        #: Whether the bucket says nothing.
        self.away = True
        #: Jobs under way: with what they have found, and whether they fail.
        self.begun: list[tuple[Job, bytes | None, Part | None, bool]] = []

    def take(self) -> None:
        before = len(self.jobs)
        super().take()
        for job in self.jobs[before:]:
            if isinstance(job, Store) and job.block < BLOCKS:
                self.storing[job.block] = self.writes

    def put(self, block: int, start: int, length: int) -> None:
        """Write bytes, if there is room; nothing of it is to follow later."""
        self.writes += 1
        start += block * BLOCK
        done, _ = self.core.write(start, bytes([self.writes % 255 + 1]) * length, self.now)
        for byte in range(start, start + done):
            self.history[byte].append((self.writes, self.writes % 255 + 1))

    def ask(self, block: int, start: int, length: int, *, waits: bool) -> None:
        """Read, and perhaps wait: where nothing of it is in the bucket only, it is answered before that is asked."""
        request = self.read(block, start, length)
        number = self.writes
        at = request.offset
        known = all(self.history[byte][-1][0] > self.stored[block] for byte in range(at, at + length))
        self.reading.append((request, number))
        if known and waits:
            self.looks()
            assert not request.pending, "it waits for the bucket"
            assert not request.failed
        self.check()

    def check(self) -> None:
        """See whether what was answered is no older than what was written before it was asked."""
        for request, number in list(self.reading):
            if request.pending:
                continue
            self.reading.remove((request, number))
            if request.failed:
                continue
            for byte, value in enumerate(request.filled(), request.offset):
                history = self.history[byte]
                oldest = max(at for at, (write, _) in enumerate(history) if write <= number)
                assert value in {value for _, value in history[oldest:]}, f"byte {byte} is older than it was"

    def begin(self, job: Job) -> None:
        """Let a job find what there is now; it ends later. A Store arrives when it ends."""
        body = self.fetched(job.block) if isinstance(job, Fetch) and not self.away else None
        part = self.journal.part(job.block) if isinstance(job, Look) else None
        self.begun.append((job, body, part, self.away and isinstance(job, Fetch | Store)))

    def leave(self, block: int) -> None:
        self.core.sync()
        if self.cache._write_back._leave(block):
            self.backlog.add(block)

    def finish(self, number: int) -> None:
        """End a job that has begun."""
        job, body, part, away = self.begun.pop(number)
        self.jobs.remove(job)
        self.end(job, body, away=away, part=part)
        if isinstance(job, Store) and job.block < BLOCKS and not away:
            self.stored[job.block] = self.storing[job.block]
        self.check()

    def looks(self) -> None:
        while looks := [job for job in self.jobs if isinstance(job, Look)]:
            if looks[0] in self.waiting:
                self.begin(looks[0])
            self.finish(next(number for number, begun in enumerate(self.begun) if begun[0] is looks[0]))

    @property
    def waiting(self) -> list[Job]:
        """Jobs that have not begun."""
        return [job for job in self.jobs if all(job is not begun[0] for begun in self.begun)]


def wander(world: Oracle, source: random.Random) -> None:
    """Do something."""
    block, start = source.randrange(BLOCKS), source.randrange(BLOCK)
    start -= start % SECTOR if source.random() < 0.5 else 0
    length = source.randint(1, BLOCK - start)
    if source.random() < 0.5:
        length = SECTOR - start % SECTOR
    kinds = ("write", "read", "leave", "evict", "all of that", "begin", "end", "tick", "away")
    match source.choices(kinds, (4, 6, 2, 1, 4, 3, 3, 1, 1))[0]:
        case "write":
            world.put(block, start, length)
        case "read":
            world.ask(block, start, length, waits=source.random() < 0.3)
        case "leave":
            world.leave(block)
        case "evict":
            world.read_others()
        case "all of that":
            world.put(block, start, length)
            world.leave(block)
            world.read_others()
        case "begin" if world.waiting:
            world.begin(source.choice(world.waiting))
        case "end" if world.begun:
            world.finish(source.randrange(len(world.begun)))
        case "tick":
            world.tick(source.choice((0.0, 1.0, 30.0)))
        case "away":
            world.away = source.random() < 0.6


@pytest.mark.parametrize("seed", range(32))
def test_no_read_is_older_than_what_was_written_and_none_waits_for_what_it_needs_not(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    world = Oracle(tmp_path)
    for _ in range(200):
        wander(world, source)
    while world.begun:
        world.finish(0)
    flush = world.flush()
    world.run()
    assert world.answered(flush)
    flush = world.flush()
    world.run()
    assert world.answered(flush) == [None]
    world.check()
    assert not world.reading
    for byte in range(BLOCKS * BLOCK):
        stored = world.store.get(world.layout.key(byte // BLOCK)).body
        assert stored[byte % BLOCK] == world.history[byte][-1][1]
    world.journal.close()
    world.directory.close()


def test_a_fetch_that_is_under_way_keeps_nobody_waiting_for_what_the_journal_has(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    steps.write(X * BLOCK, b"a" * SECTOR)
    steps.leave(X)
    steps.evict(X)
    steps.tick(1.0)
    assert any(isinstance(job, Fetch) and job.block == X for job in steps.jobs)
    request, more = steps.read(X, 0, SECTOR), steps.read(X, 0, SECTOR + 1)
    steps.looks()
    assert steps.answered(request) == [None] and bytes(request.filled()) == b"a" * SECTOR
    assert not steps.answered(more)
    steps.run(0.1)
    assert steps.answered(more) == [None] and bytes(more.filled()) == b"a" * SECTOR + bytes([X])
    steps.journal.close()
    steps.directory.close()


def test_who_got_a_part_and_had_to_wait_reads_zeros_that_were_written_meanwhile(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    steps.layout.survey(lambda: False)
    steps.write(X * BLOCK, b"a" * SECTOR)
    steps.leave(X)
    steps.backlog.failed(X, steps.now)
    steps.evict(X)
    request = steps.read(X)
    steps.looks()
    (fetch,) = [job for job in steps.jobs if isinstance(job, Fetch)]
    older = steps.fetched(X)
    steps.core.write_zeros(X * BLOCK, BLOCK, steps.now)
    steps.flush()
    steps.do(next(job for job in steps.jobs if isinstance(job, Store)))
    assert steps.layout.known_absent(X)
    steps.evict(X)
    steps.jobs.remove(fetch)
    steps.end(fetch, older)
    assert steps.answered(request) == [None]
    assert bytes(request.filled()) == bytes(BLOCK)
    steps.journal.close()
    steps.directory.close()


class Away(Watched):
    """While it fails blocks cannot be read either; and while it ``hangs``, whoever reads one waits."""

    def __init__(self, place: Place, lasting: float = 0.0) -> None:
        super().__init__(place, lasting)
        self.goes_on = threading.Event()
        self.goes_on.set()

    def get(self, key: str, **more: Any) -> StoredObject:
        if parse_block_name(key) is not None:
            self.goes_on.wait()
            if self.failing:
                raise StoreUnreachable("it is away", hint="Wait.")
        return super().get(key, **more)


def write_all(volume: Volume, size: int, source: random.Random) -> dict[int, bytes]:
    """Write to so many blocks that most of them leave memory, and flush that."""
    content = {offset: source.randbytes(size) for offset in range(LARGE, SIZE // 2, LARGE)}
    for offset, data in content.items():
        volume.write(offset, data)
    volume.flush()
    return content


@pytest.mark.parametrize("size", [LARGE, SECTOR], ids=["whole", "part"])
def test_all_that_was_flushed_can_be_read_while_the_store_is_away(place: Place, size: int) -> None:
    store = Away(place)
    store.failing = True
    volume = opened(place, store, memory=1 << 20, journal=16 << 20, write_delay=0.0)
    try:
        content = write_all(volume, size, random.Random(size))
        for offset, data in content.items():
            assert volume.read(offset, size) == data
            assert volume.read(offset + 100, 300) == data[100:400]
        if size < LARGE:
            offset = next(offset for offset in content if not volume._slab.contains(offset // LARGE))
            with pytest.raises(StoreError, match="it is away"):
                volume.read(offset, size + 1)
    finally:
        store.failing = False
        volume.close()


def test_so_it_can_be_after_a_kill(place: Place) -> None:
    with place.killed() as volume:
        content = write_all(volume, SECTOR, random.Random(2))
        assert volume.unsaved == len(content)
    store = Away(place, NEVER)
    volume = opened(place, store)
    store.failing = True
    try:
        for offset, data in content.items():
            assert volume.read(offset, SECTOR) == data
    finally:
        store.failing = False
        shortened(volume).close()
    assert place.content(LARGE, SECTOR) == content[LARGE]


def test_whoever_waits_for_a_store_that_hangs_keeps_nobody_else_waiting(place: Place) -> None:
    store = Away(place)
    store.failing = True
    volume = opened(place, store, memory=1 << 20, journal=16 << 20)
    try:
        content = write_all(volume, SECTOR, random.Random(3))
        gone = [offset for offset in content if not volume._slab.contains(offset // LARGE)]
        store.goes_on.clear()
        ended: list[S3backerError | None] = []
        for offset in gone[:20]:
            volume._driver.begin_read(offset + SECTOR, SECTOR, lambda error, data: ended.append(error))
        for offset in gone:
            assert volume.read(offset, SECTOR) == content[offset]
        assert not ended
    finally:
        store.failing = False
        store.goes_on.set()
        volume.close()
