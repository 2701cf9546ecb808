"""The cache in an outage: it costs little, hides nothing, keeps nobody waiting for long, then ends at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s3backer.errors import CorruptObject, ObjectVanished, S3backerError, StoreError
from tests.support.slow_writer import BLOCK, STORES, Writer

AWAY = StoreError("away", hint="Wait.")


@pytest.fixture
def writer() -> Writer:
    return Writer(limit=1000, delay=1.0)


@pytest.fixture
def journaled(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path / "journal", limit=20, delay=1.0)
    yield made
    made.close()


def write(writer: Writer, blocks: range) -> None:
    for block in blocks:
        assert writer.write(block) == 0.0


def pass_time(writer: Writer, seconds: float) -> list[int]:
    """Let time pass while every attempt fails at once; return the blocks that were tried."""
    tried, until = [], writer.now + seconds
    while writer.now < until:
        wake = writer.cache.next_wake(writer.now)
        writer.tick(min(until - writer.now, 0.5 if wake is None else max(wake - writer.now, 0.01)))
        tried += writer.fail_stores()
    return tried


def test_it_is_asked_about_by_one_block_at_a_time(writer: Writer) -> None:
    write(writer, range(400))
    tried = pass_time(writer, 3600.0)
    # Some at once, then ever more seldom, at least twice a minute.
    assert 3600 / 30 <= len(tried) <= STORES + 200
    assert len(set(tried)) == len(tried)


def test_whoever_writes_in_it_does_not_look_through_all_that_is_unsaved(writer: Writer) -> None:
    write(writer, range(400))
    pass_time(writer, 600.0)
    writer.slab.looked = 0
    for block in range(400, 500):
        writer.begin(block)
        writer.cache.next_wake(writer.now)
        writer.tick(0.0)
    # Each time at the first one, and once or twice at all of them.
    assert writer.slab.looked <= 1500
    assert pass_time(writer, 1200.0)


def test_when_it_is_over_what_was_not_tried_is_stored_at_once_and_the_rest_soon(writer: Writer) -> None:
    write(writer, range(400))
    tried = pass_time(writer, 3600.0)
    while not writer.stores:
        writer.tick(1.0)
    began = writer.now
    while writer.stores:
        writer.end(writer.stores[0])
    assert writer.slab.unsaved <= len(tried)
    while writer.slab.unsaved:
        writer.tick(1.0)
        while writer.stores:
            writer.end(writer.stores[0])
    assert writer.now - began <= 31


def test_blocks_that_are_refused_for_ever_keep_no_other_from_being_stored(writer: Writer) -> None:
    refused = range(3 * STORES)
    write(writer, refused)
    pass_time(writer, 600.0)
    write(writer, range(100, 200))
    until = writer.now + 600.0
    while writer.now < until and writer.slab.unsaved > len(refused):
        writer.tick(0.5)
        for store in list(writer.stores):
            writer.end(store, AWAY if store.block in refused else None)
    assert writer.slab.unsaved == len(refused)
    assert [block for block, *_ in writer.slab.dirty_blocks(100)] == list(refused)


def test_flushes_try_all_of_them_in_turn(writer: Writer) -> None:
    """Otherwise one that is refused for ever would be the only one that is tried."""
    write(writer, range(10))
    pass_time(writer, 60.0)
    tried = []
    for _ in range(30):
        flush = writer.flush()
        (block,) = writer.fail_stores()
        assert [type(error) for error in writer.answered(flush)] == [StoreError]
        tried.append(block)
        writer.tick(0.1)
    assert sorted(tried) == sorted(list(range(10)) * 3)


def test_each_flush_has_an_attempt_of_its_own_at_once(writer: Writer) -> None:
    write(writer, range(40))
    pass_time(writer, 3600.0)
    first = writer.flush()
    (attempt,) = writer.stores
    second = writer.flush()
    writer.end(attempt, AWAY)
    assert writer.answered(first) == [AWAY] and not writer.answered(second)
    (attempt,) = writer.stores
    writer.end(attempt, AWAY)
    assert writer.answered(second) == [AWAY]
    third = writer.flush()
    while writer.stores:
        writer.end(writer.stores[0])
    assert writer.answered(third) == [None]


def test_a_flush_is_answered_although_others_write_on(writer: Writer) -> None:
    """Attempts take 10 s; those of blocks that were written after the flush say nothing to it."""
    write(writer, range(10))
    pass_time(writer, 600.0)
    while not writer.stores:
        writer.tick(1.0)
    flush, began, block, since = writer.flush(), writer.now, 100, writer.now
    while not writer.answered(flush) and writer.now - began < 600:
        writer.begin(block)
        block += 1
        writer.tick(1.0)
        if writer.now - since >= 10:
            writer.fail_stores()
            since = writer.now
    assert writer.answered(flush) and writer.now - began <= 40


@pytest.mark.parametrize("refused", ["left", "written"])
def test_blocks_that_are_left_and_those_in_memory_take_turns(journaled: Writer, refused: str) -> None:
    """Where all of one kind are refused for ever, those of the other are stored."""
    assert journaled.journal is not None and journaled.cache._write_back._backlog is not None
    write(journaled, range(12))
    journaled.journal.core.sync()
    for block in range(12):
        assert journaled.journal.core.spill(block)
        journaled.cache._write_back._backlog.add(block)
        if refused == "left" or block != 7:
            journaled.unreadable[block] = AWAY
    assert journaled.slab.drop_from(0) == 12
    pass_time(journaled, 600.0)
    for block in range(100, 110):
        journaled.begin(block)
    journaled.cache._write_back._left_first = refused == "left"
    stored: set[int] = set()
    until = journaled.now + 600.0
    while journaled.now < until:
        journaled.tick(0.5)
        while journaled.stores:
            fails = refused == "written" and journaled.stores[0].block >= 100
            stored |= set() if fails else {journaled.stores[0].block}
            journaled.end(journaled.stores[0], AWAY if fails else None)
    assert stored == (set(range(100, 110)) if refused == "left" else {7})


def test_what_is_damaged_is_not_asked_for_all_the_time_in_an_outage(journaled: Writer) -> None:
    for block in range(STORES):
        # They have nothing to be stored any more.
        journaled.cache._write_back._outage.failed(block, journaled.now)
    for block in range(20, 24):
        # The rest of it is to be read before it can be stored.
        journaled.unreadable[block] = CorruptObject("damaged", hint="Look.")
        assert journaled.cache.writer.write(block * BLOCK + 512, b"x" * 512, journaled.now)[0] == 512
    pass_time(journaled, 600.0)
    assert 1 <= journaled.fetches < 100


@pytest.mark.parametrize("lost", [CorruptObject("damaged", hint="Look."), ObjectVanished("vanished", hint="Look.")])
def test_what_is_lost_for_ever_makes_no_outage(journaled: Writer, lost: S3backerError) -> None:
    """However many blocks of that kind there are, others are stored as always."""
    for block in range(20, 20 + 2 * STORES):
        journaled.unreadable[block] = lost
        assert journaled.cache.writer.write(block * BLOCK + 512, b"x" * 512, journaled.now)[0] == 512
    pass_time(journaled, 60.0)
    write(journaled, range(40, 40 + STORES))
    journaled.tick(1.0)
    assert len(journaled.stores) == STORES


def test_a_store_that_says_nothing_keeps_writers_waiting_for_a_moment_only(journaled: Writer) -> None:
    """Requests that hang for minutes before they fail: what the journal has leaves memory meanwhile."""
    journaled.tick(3600.0)
    waited, block = 0.0, 0
    for block in range(150):
        request, began = journaled.begin(block), journaled.now
        while not journaled.answered(request):
            journaled.tick(0.5)
            assert journaled.now - began < 10
        waited = max(waited, journaled.now - began)
    assert journaled.stores and waited <= 6.0
    assert journaled.now < 3600 + 20


class BusyWriter(Writer):
    """Somebody writes to blocks again and again: also while the journal is synced."""

    busy = range(0)
    syncs = 0

    def sync(self) -> None:
        super().sync()
        self.syncs += 1
        for block in self.busy:
            assert self.cache.writer.write(block * BLOCK, b"b" * 16, self.now)[0] == 16


@pytest.mark.parametrize("busy", [0, 64, 200])
def test_blocks_that_are_written_all_the_time_keep_no_others_in_memory(tmp_path: Path, busy: int) -> None:
    """They never are on the disk as they are, and the oldest; the journal has room for all."""
    writer = BusyWriter(tmp_path / "journal", limit=256, delay=1.0)
    for block in range(256):
        assert writer.cache.writer.write(block * BLOCK, b"a" * 512, 0.0)[0] == 512
        writer.slab.fill(block, None)
        assert writer.journal is not None
        writer.journal.prepare()
    pass_time(writer, 10.0)
    writer.busy, writer.syncs, writer.slab.looked = range(busy), 0, 0
    for block in range(1000, 1020):
        request, began = writer.begin(block), writer.now
        while not writer.answered(request):
            writer.tick(0.1)
            writer.fail_stores()
            assert writer.now - began < 1.0, f"{block - 1000} were written"
    assert writer.slab.looked < 256 * (writer.syncs + 1), f"{writer.syncs} syncs"
    writer.close()


def test_hours_of_it_fill_the_journal_and_lose_nothing(journaled: Writer) -> None:
    """Writers go on while there is room, ever slower, then wait; when it is over they go on and all is stored."""
    content: dict[int, bytes] = {}
    block, waiting = 0, None
    while waiting is None:
        request = journaled.begin(block)
        until = journaled.now + 60.0
        while not journaled.answered(request) and journaled.now < until:
            journaled.tick(0.5)
            journaled.fail_stores()
        if journaled.answered(request):
            content[block] = bytes(request.data or b"")
            block += 1
        else:
            waiting = request
    assert journaled.journal is not None and journaled.journal.core.fill > 0.95
    assert block > 150 and journaled.slab.unsaved <= 20
    tried = pass_time(journaled, 10 * 3600.0)
    # One of those in memory and one of those that left it, twice a minute.
    assert len(tried) <= 2 * (10 * 3600 / 30 + 20)
    assert not journaled.answered(waiting) and journaled.cache.writers == "wait for room"
    stored: dict[int, bytes | None] = {}
    until = journaled.now + 600.0
    while (journaled.cache.unsaved or not journaled.answered(waiting)) and journaled.now < until:
        for job in list(journaled.stores):
            stored[job.block] = job.body
            journaled.end(job)
        journaled.tick(0.5)
    assert journaled.answered(waiting) == [None]
    content[block] = bytes(waiting.data or b"")
    assert stored == content
