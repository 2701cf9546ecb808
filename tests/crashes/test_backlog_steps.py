"""The cache with a journal, moved by hand: what comes between a block that is left and its way into the bucket."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3backer._fast import DONE, Slab
from s3backer._journal import JOURNAL_BUSY, JOURNAL_FULL
from s3backer.backlog import Backlog
from s3backer.cache_calls import Fetch, Store, Sync, TouchRequest, WriteRequest
from s3backer.errors import CorruptObject, JournalError, StoreError
from s3backer.journal.replay import scan
from s3backer.opening import VolumeOptions
from s3backer.replaying import Replayer
from tests.support.power_loss import FaultyDisk
from tests.support.steps import BLOCK, VOLUME, Steps

#: A block that is left, in the tests.
X = 5


@pytest.fixture
def steps(tmp_path: Path) -> Iterator[Steps]:
    made = Steps(tmp_path)
    yield made
    made.journal.close()
    made.directory.close()


def test_a_fetch_that_was_overtaken_by_a_store_that_failed_keeps_the_block(steps: Steps) -> None:
    steps.write(X * BLOCK, b"a" * 512)
    steps.leave(X)
    steps.backlog.failed(X, steps.now)
    steps.read(X, 512, 512)
    steps.looks()
    fetch = next(job for job in steps.jobs if isinstance(job, Fetch))
    steps.write(X * BLOCK + 512, b"b" * 512)
    steps.core.sync()
    steps.tick(2.0)
    steps.do(next(job for job in steps.jobs if isinstance(job, Store)), away=True)
    steps.evict(X)
    steps.tick(2.0)
    steps.do(fetch)
    steps.run()
    flush = steps.flush()
    steps.run()
    assert steps.answered(flush) == [None]
    assert steps.layout.read(X) == b"a" * 512 + b"b" * 512


def test_a_fetch_brings_nothing_older_where_a_copy_had_no_memory(steps: Steps) -> None:
    """The block is left to the journal again while it is fetched, and leaves memory before that has ended."""
    steps.write(X * BLOCK, b"a" * 512)
    steps.leave(X)
    steps.backlog.failed(X, steps.now)
    steps.evict(X)
    steps.read(X, 512, 512)
    steps.looks()
    (fetch,) = [job for job in steps.jobs if job == Fetch(X, urgent=True)]
    steps.jobs.remove(fetch)
    older = steps.fetched(X)
    steps.write(X * BLOCK, b"b" * 512)
    steps.write(X * BLOCK + 512, b"c" * 512)
    steps.core.sync()
    steps.slab.lacks_memory = True
    steps.tick(2.0)
    assert steps.cache.counts.memory_errors
    steps.slab.lacks_memory = False
    steps.read_others()
    steps.end(fetch, older)
    request = steps.read(X)
    steps.run()
    assert bytes(request.filled()) == b"b" * 512 + b"c" * 512
    assert steps.layout.read(X) == b"b" * 512 + b"c" * 512


@pytest.mark.parametrize("failed", [False, True], ids=["not tried", "failed"])
def test_a_block_that_was_touched_stays_until_it_was_stored(tmp_path: Path, failed: bool) -> None:
    """The journal has its bytes, and not why it is to be stored: a resize stores block 0 with the new size."""
    steps = Steps(tmp_path, high_water=6)
    steps.write(0, b"s" * BLOCK)
    steps.cache.touch(TouchRequest(block=0), steps.now)
    steps.layout.size = 48 * BLOCK
    if failed:
        steps.flush()
        steps.do(next(job for job in steps.jobs if isinstance(job, Store)), away=True)
    # Nothing can be stored, and memory is full.
    steps.cache._write_back._held_until = 60.0
    for block in (1, 2, 3):
        steps.core.sync()
        steps.write(block * BLOCK, b"w" * BLOCK)
    assert steps.core.left
    flush = steps.flush()
    steps.write(0, b"S" * BLOCK)
    steps.run(0.1)
    assert steps.answered(flush) == [None]
    assert steps.store.get(steps.layout.key(0)).info.metadata["s3backer-filesize"] == str(48 * BLOCK)
    steps.journal.close()
    steps.directory.close()


def test_a_block_that_was_touched_and_needed_no_request_may_leave_memory(steps: Steps) -> None:
    steps.layout.survey(lambda: False)
    steps.layout.write(X, None)
    steps.read(X)
    steps.cache.touch(TouchRequest(block=X), steps.now)
    flush = steps.flush()
    assert steps.answered(flush) == [None]
    steps.write(X * BLOCK, b"a" * 512)
    steps.cache._write_back._held_until = 60.0
    for block in (1, 2, 3):
        steps.core.sync()
        steps.write(block * BLOCK, b"w" * BLOCK)
    assert steps.core.is_left(X)


def test_a_flush_does_not_wait_for_the_age_of_what_was_left(steps: Steps) -> None:
    """Its store fails, and somebody has written to it meanwhile, so that it stays in memory."""
    steps.write(X * BLOCK, b"a" * BLOCK)
    steps.leave(X)
    flush = steps.flush()
    store = next(job for job in steps.jobs if isinstance(job, Store | Fetch))
    if isinstance(store, Fetch):
        steps.do(store)
        store = next(job for job in steps.jobs if isinstance(job, Store))
    steps.write(X * BLOCK, b"c" * 512)
    steps.do(store, away=True)
    if not steps.answered(flush):
        steps.run(0.1)
    assert steps.answered(flush)
    again = steps.flush()
    steps.run(0.1)
    assert steps.answered(again) == [None]


@pytest.mark.parametrize("why", ["under way", "failed"])
def test_nothing_is_synced_over_and_over(steps: Steps, why: str) -> None:
    """Where nothing can leave memory although all is on the disk."""
    disk = FaultyDisk(steps.core)
    for block in (1, 2, 3):
        steps.write(block * BLOCK, b"x" * BLOCK)
    if why == "failed":
        disk.sync_error = errno.EIO
        with pytest.raises(JournalError):
            steps.core.sync()
        steps.cache.admit(steps.now)
    else:
        steps.core.sync()
        steps.flush()
    steps.cache._write_back._outage.failed(X, steps.now)
    waiting = steps.write(7 * BLOCK, b"y" * BLOCK)
    syncs = 0
    while (sync := next((job for job in steps.jobs if isinstance(job, Sync)), None)) is not None and syncs < 10:
        syncs += 1
        steps.jobs.remove(sync)
        if why != "failed":
            steps.core.sync()
        steps.cache.synced(steps.now)
        steps.take()
    assert syncs < 3
    assert steps.answered(waiting) in ([], [None])


def test_an_object_that_vanished_is_an_error_although_its_block_is_left(steps: Steps) -> None:
    steps.layout.survey(lambda: False)
    steps.store.delete(steps.layout.key(X))
    steps.write(X * BLOCK, b"a" * 512)
    steps.leave(X)
    with pytest.raises(StoreError, match="has vanished"):
        steps.fetched(X)


@pytest.mark.parametrize("rest_is_written", [True, False])
def test_who_reads_what_was_written_since_the_backlog_began_to_fetch_gets_it(
    steps: Steps, rest_is_written: bool
) -> None:
    """The rest of its block cannot be had, and is not needed any more. Who still needs it is told so."""
    steps.write(X * BLOCK, b"a" * 512)
    steps.leave(X)
    steps.evict(X)
    assert [job for job in steps.jobs if isinstance(job, Fetch)]
    if rest_is_written:
        steps.write(X * BLOCK + 512, b"b" * 512)
    request = steps.read(X)
    for _ in range(2):
        # First that of the backlog, then one for who reads.
        steps.looks()
        for fetch in [job for job in steps.jobs if isinstance(job, Fetch)]:
            steps.do(fetch, away=True)
    (error,) = steps.answered(request)
    assert (error is None) is rest_is_written
    if rest_is_written:
        assert bytes(request.filled()) == b"a" * 512 + b"b" * 512


def test_where_only_fetches_are_tried_writers_go_on_too(steps: Steps) -> None:
    """Of a block that is written in part, storing it begins with fetching the rest."""
    for block in range(1, 20):
        request = steps.write(block * BLOCK, b"a" * 512)
        for _ in range(20):
            if steps.answered(request):
                break
            for job in list(steps.jobs):
                steps.do(job, away=not isinstance(job, Sync))
            steps.tick(0.5)
        assert steps.answered(request) == [None], f"block {block}"
    assert steps.core.left > 10


def test_the_note_of_a_resize_stays_until_its_put_has_ended(tmp_path: Path) -> None:
    """However many files are written and given up meanwhile."""
    steps = Steps(tmp_path, delay=0.0)

    def go_on(turns: int) -> None:
        for turn in range(turns):
            steps.write((1 + turn % 20) * BLOCK, bytes([turn + 1]) * BLOCK)
            steps.run(0.1)
            steps.core.sync()
            while steps.journal.wait(0.0):
                steps.journal.prepare()

    assert steps.journal.note_resize(steps.slab.sequence)
    go_on(120)
    known = scan(steps.directory, VOLUME).known.get(0)
    assert known is not None and known.intent is not None
    # Its store began before the note.
    steps.journal.done(0, 0, '"older"')
    go_on(1)
    assert scan(steps.directory, VOLUME).files[0].number == 1
    steps.journal.done(0, steps.slab.sequence, '"new"')
    go_on(120)
    assert scan(steps.directory, VOLUME).files[0].number > 1
    steps.journal.close()
    steps.directory.close()


def test_what_is_left_again_and_again_takes_no_more_memory() -> None:
    """While the store is away a block may be written, and leave memory, a thousand times an hour."""
    left = set(range(100))
    backlog = Backlog(range(100), left.__contains__)
    for _ in range(1000):
        for block in range(100):
            backlog.add(block)
    assert len(backlog._blocks) < 3000
    left -= set(range(50))
    found = [found for _ in range(5000) if (found := backlog.next(0.0)) is not None]
    assert found[:50] == list(range(50, 100)) and set(found) == left
    assert backlog.next_wake(0.0) is None


def test_what_leaves_memory_while_that_is_short_is_stored_all_the_same(steps: Steps) -> None:
    """The list of what has left cannot grow when its turn comes; that is no reason to forget a block."""

    class Full(array):  # type: ignore[type-arg]
        def append(self, block: int) -> None:
            raise MemoryError(block)

    for block in (1, 2, 3):
        steps.write(block * BLOCK, b"x" * BLOCK)
    steps.core.sync()
    steps.cache._write_back._outage.failed(X, steps.now)
    steps.backlog._blocks = Full("Q")
    waiting = steps.write(7 * BLOCK, b"y" * BLOCK)
    assert steps.answered(waiting) == [None] and steps.core.left == 3
    flush = steps.flush()
    steps.run()
    assert steps.answered(flush) == [None] and steps.cache.unsaved == 0
    assert all(steps.layout.read(block) == b"x" * BLOCK for block in (1, 2, 3))


@pytest.mark.parametrize("present", [False, True])
def test_zeros_that_the_journal_had_no_room_for_are_not_passed_over_later(tmp_path: Path, present: bool) -> None:
    """Memory had taken them, and stored them, without a record of either: a crash would bring back what was before."""
    steps = Steps(tmp_path / "steps", delay=0.0)
    if not present:
        steps.store.delete(steps.layout.key(X))
    steps.layout.survey(lambda: False)
    steps.write(X * BLOCK, b"v" * BLOCK)
    steps.core.sync()
    disk = FaultyDisk(steps.core)
    disk.write_error = errno.ENOSPC
    zeros = WriteRequest(offset=X * BLOCK, length=BLOCK)
    steps.cache.write(zeros, steps.now)
    steps.take()
    steps.cache.admit(steps.now)
    steps.take()
    steps.tick(0.5)
    for job in [job for job in steps.jobs if isinstance(job, Store)]:
        steps.do(job)
    steps.evict(X)
    steps.tick(1.0)
    assert not steps.answered(zeros)
    disk.write_error = 0
    steps.cache.try_disk()
    steps.tick(1.0)
    assert steps.answered(zeros) == [None]
    steps.core.sync()
    steps.journal.close()
    with steps.directory:
        found = scan(steps.directory, VOLUME)
        assert [data for record, data in found.writes(None) if record.offset == X * BLOCK][-1:] in ([], [None])


@pytest.mark.parametrize("length", [BLOCK, 20])
def test_while_others_cannot_know_that_the_disk_was_full_writers_wait_for_the_journal_only(
    steps: Steps, length: int
) -> None:
    """The store is away, so nobody can be told, and before that nothing is stored. The disk has room again."""
    steps.slab.limit_patches(2)
    disk = FaultyDisk(steps.core)
    disk.write_error = errno.ENOSPC
    first = steps.write(BLOCK, b"f" * BLOCK)
    assert not steps.answered(first)
    disk.write_error = 0
    steps.cache.try_disk()
    steps.tick(1.0)
    assert steps.answered(first) == [None]
    for block in range(2, 12):
        steps.core.sync()
        waiting = steps.write(block * BLOCK + 500 * (length < BLOCK), b"w" * length)
        assert steps.answered(waiting) == [None] and not steps.jobs, f"block {block}"


@pytest.mark.parametrize("way", ["replay", "to a file"])
def test_a_replay_puts_nothing_over_what_was_stored_later(tmp_path: Path, way: str) -> None:
    """The note that zeros were stored stands for those that were passed over; the block was written again since."""
    steps = Steps(tmp_path / "steps", delay=0.0)
    steps.write(X * BLOCK, b"a" * BLOCK)
    steps.tick(0.0)
    for job in list(steps.jobs):
        steps.do(job)
    disk = FaultyDisk(steps.core)
    disk.write_error = errno.ENOSPC
    zeros = WriteRequest(offset=X * BLOCK, length=BLOCK)
    steps.cache.write(zeros, steps.now)
    steps.take()
    assert not steps.answered(zeros)
    disk.write_error = 0
    steps.cache.admit(steps.now)
    steps.take()
    steps.tick(0.1)
    # What memory had taken is stored, and that is noted.
    for job in list(steps.jobs):
        steps.do(job)
    steps.evict(X)
    steps.tick(2.0)
    assert steps.answered(zeros) == [None]
    for job in list(steps.jobs):
        steps.do(job)
    steps.write(X * BLOCK + 512, b"b" * 512)
    steps.core.sync()
    steps.journal.close()
    with steps.directory:
        found = scan(steps.directory, VOLUME)
        replayer = Replayer(found, lambda done, total: None)
        if way == "replay":
            options = VolumeOptions(memory=1 << 20, threads=2, size=24 * BLOCK, block_size=BLOCK)
            replayer.store(steps.store, steps.layout, options)
            content = steps.store.get(steps.layout.key(X)).body
        else:
            replayer.save(str(tmp_path / "file"), None)
            content = (tmp_path / "file").read_bytes()[X * BLOCK : (X + 1) * BLOCK]
    assert bytes(content) == bytes(512) + b"b" * 512


def test_readers_are_answered_where_there_is_no_memory_for_zeros(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.write(X * BLOCK, b"a" * 512)
    steps.leave(X)
    steps.evict(X)
    whole, part = steps.read(X), steps.read(X, 0, 512)

    def no_memory(size: int) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("s3backer.cache.bytes", no_memory, raising=False)
        steps.looks()
    assert steps.answered(part) == [None]
    steps.run()
    assert steps.answered(whole) == [None]


def test_who_writes_the_same_zeros_in_an_outage_keeps_no_other_block_from_being_tried(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "steps", high_water=0)
    steps.store.delete(steps.layout.key(X))
    steps.layout.survey(lambda: False)
    settle = steps.cache._settle

    def again(now: float) -> None:
        settle(now)
        steps.core.write_zeros(X * BLOCK, BLOCK, steps.now)

    steps.cache._settle = again  # type: ignore[method-assign]
    for block in (0, 1):
        steps.write(block * BLOCK, b"a" * BLOCK)
    tried: list[int] = []
    for _ in range(100):
        for job in [job for job in steps.jobs if isinstance(job, Store)]:
            tried.append(job.block)
            steps.do(job, away=True)
        steps.journal.prepare()
        steps.tick(10.0)
    assert min(tried.count(0), tried.count(1)) > 10
    steps.journal.close()
    steps.directory.close()


def test_many_zeros_that_need_no_request_cost_a_look_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where files are removed, and their blocks discarded, before they were stored."""
    steps = Steps(tmp_path / "steps", delay=0.0)
    blocks = range(3)
    for block in blocks:
        steps.store.delete(steps.layout.key(block))
    steps.layout.survey(lambda: False)
    for block in blocks:
        steps.core.write_zeros(block * BLOCK, BLOCK, steps.now)
    asked: list[int] = []
    dirty_blocks = Slab.dirty_blocks

    def counted(slab: Slab, count: int) -> list[tuple[int, int, float, bool]]:
        found = dirty_blocks(slab, count)
        asked.append(len(found))
        return found

    monkeypatch.setattr(type(steps.slab), "dirty_blocks", counted)
    room = steps.cache._write_back._room()
    # In one call, after many others of which none is dirty any more.
    assert len(steps.cache._write_back._due(steps.now, set(range(100, 200)))) == room < len(blocks) == steps.slab.dirty
    assert asked == [room]
    # Those that are dirty again are passed over.
    assert [block for block, _ in steps.cache._write_back._due(steps.now, {0, 1})] == [2]
    steps.journal.close()
    steps.directory.close()


def test_only_zeros_are_remembered_as_not_noted(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "steps", delay=0.0)
    disk = FaultyDisk(steps.core)
    disk.write_error = errno.ENOSPC
    request = WriteRequest(offset=X * BLOCK, data=b"v" * BLOCK, length=BLOCK)
    steps.cache.write(request, steps.now)
    steps.take()
    steps.cache.admit(steps.now)
    steps.take()
    stores = [job for job in steps.jobs if isinstance(job, Store)]
    assert stores
    for job in stores:
        steps.do(job)
    assert not steps.cache._write_back.unnoted
    steps.journal.close()
    steps.directory.close()


@pytest.mark.parametrize("places", [1, 2])
def test_a_damaged_block_takes_no_place_from_those_that_are_left(tmp_path: Path, places: int) -> None:
    """With few workers: they fill the journal, and writers wait for them."""
    steps = Steps(tmp_path / "steps", delay=0.0)
    write_back = steps.cache._write_back
    write_back._policy = write_back._asked_policy = replace(write_back._policy, store_limit=places)
    write_back._held_until = 1.0
    steps.layout.size = 1000 * BLOCK
    damaged, waiting = 3, None
    steps.write(damaged * BLOCK, b"p" * 512)
    for block in range(5, 1000):
        data = bytes([block % 250 + 1]) * BLOCK
        while (written := steps.core.write(block * BLOCK, data, steps.now)) == (0, JOURNAL_BUSY):
            steps.journal.prepare()
        if written != (BLOCK, DONE):
            assert written[1] == JOURNAL_FULL
            waiting = WriteRequest(offset=block * BLOCK, data=data, length=BLOCK, position=written[0])
            steps.cache.write(waiting, steps.now)
            steps.take()
            break
        steps.leave(block)
    assert waiting is not None
    while steps.now < 600 and not steps.answered(waiting):
        steps.tick(1.0)
        for job in list(steps.jobs):
            if isinstance(job, Fetch) and job.block == damaged:
                steps.jobs.remove(job)
                steps.cache.fetched(damaged, None, CorruptObject("damaged", hint="Look."), steps.now)
                steps.take()
            else:
                steps.do(job)
        steps.journal.carry_blocks(steps.core.keepers())
        if steps.journal.wait(0.0):
            steps.journal.prepare()
        steps.cache.try_disk()
    assert steps.answered(waiting) == [None]


def test_parts_of_more_sectors_than_can_be_remembered_are_left_to_the_journal(steps: Steps) -> None:
    """Nothing can be stored; who writes waits for nothing, and what was written is read and stored as it was."""
    steps.slab.limit_patches(2)
    steps.cache._write_back._held_until = 60.0
    content = {block: bytearray(bytes([block]) * BLOCK) for block in range(2, 12)}
    for block, body in content.items():
        request = steps.write(block * BLOCK + 500, b"w" * 20)
        body[500:520] = b"w" * 20
        # For what the disk does not have yet.
        while not steps.answered(request):
            steps.do(next(job for job in steps.jobs if isinstance(job, Sync)))
        assert steps.slab.patches == 2
    assert steps.core.left == len(content) - 1 and not any(isinstance(job, Fetch) for job in steps.jobs)
    for block in content:
        piece = steps.read(block, 503, 10)
        steps.looks()
        assert steps.answered(piece) == [None] and bytes(piece.filled()) == b"w" * 10
    flush = steps.flush()
    steps.run()
    assert steps.answered(flush) == [None]
    for block, body in content.items():
        assert steps.layout.read(block) == bytes(body)


@pytest.mark.parametrize("away", [False, True])
def test_a_fetch_that_hangs_keeps_no_writer_waiting_that_has_parts_of_sectors(steps: Steps, away: bool) -> None:
    """What is to be stored first is all that could be left to the journal: it is, and comes again after that."""
    steps.slab.limit_patches(2)
    content = {block: bytearray(bytes([block]) * BLOCK) for block in (2, 3)}
    for block, body in content.items():
        waiting = steps.write(block * BLOCK + 500, b"w" * 20)
        body[500:520] = b"w" * 20
        steps.core.sync()
    assert steps.jobs == [Fetch(2, urgent=False)] and not steps.answered(waiting)
    (hangs,) = steps.jobs
    # Nothing has ended for a while.
    steps.tick(6.0)
    assert steps.answered(waiting) == [None] and steps.core.is_left(2)
    # The other one is stored meanwhile, and the backlog passes over this one.
    flush = steps.flush()
    while others := [job for job in steps.jobs if job is not hangs]:
        steps.do(others[0])
    assert not steps.slab.unsaved and not steps.answered(flush)
    steps.do(hangs, away=away)
    steps.run()
    assert steps.answered(flush) == [None]
    for block, body in content.items():
        assert steps.layout.read(block) == bytes(body)


def test_a_fetch_that_hangs_while_others_are_stored_keeps_no_writer_waiting(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "steps", delay=0.0)
    steps.slab.limit_patches(2)
    content = {block: bytearray(bytes([block]) * BLOCK) for block in (2, 3)}
    for block, body in content.items():
        waiting = steps.write(block * BLOCK + 500, b"w" * 20)
        body[500:520] = b"w" * 20
        steps.tick(0.0)
    hangs = Fetch(2, urgent=False)
    assert hangs in steps.jobs and not steps.answered(waiting)
    for other in range(4, 14):
        assert steps.answered(steps.write(other * BLOCK, b"o" * BLOCK)) == [None]
        steps.tick(1.0)
        while others := [job for job in steps.jobs if job != hangs]:
            steps.do(others[0])
    assert steps.answered(waiting) == [None] and steps.layout.read(13) == b"o" * BLOCK
    steps.run()
    assert not steps.cache.unsaved
    for block, body in content.items():
        assert steps.layout.read(block) == bytes(body)
    steps.journal.close()
    steps.directory.close()


def test_parts_of_sectors_of_a_damaged_block_keep_no_writer_waiting(steps: Steps) -> None:
    steps.slab.limit_patches(2)
    content = {block: bytearray(bytes([block]) * BLOCK) for block in (2, 3)}
    damaged = steps.write(BLOCK + 500, b"d" * 20)
    assert steps.answered(damaged) == [None] and steps.slab.patches == 2
    waiting = []
    for block, body in content.items():
        waiting.append(steps.write(block * BLOCK + 500, b"w" * 20))
        body[500:520] = b"w" * 20
    while steps.now < 600 and not all(steps.answered(request) for request in waiting):
        steps.tick(1.0)
        for job in list(steps.jobs):
            if job == Fetch(1, urgent=False):
                steps.jobs.remove(job)
                steps.cache.fetched(1, None, CorruptObject("damaged", hint="Look."), steps.now)
                steps.take()
            else:
                steps.do(job)
    assert [steps.answered(request) for request in waiting] == [[None], [None]]
    # What was written to it is still there.
    assert steps.journal.part(1).ranges == [(500, 520)]
    piece = steps.read(1, 503, 10)
    steps.looks()
    assert steps.answered(piece) == [None] and bytes(piece.filled()) == b"d" * 10
