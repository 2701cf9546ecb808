"""The volume under calls that overlap: closing, opening, resizing, reading and writing at the same time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3backer import _fast
from s3backer.admin import create_volume, inspect_volume
from s3backer.cache_calls import Fetch, ReadRequest, WriteRequest
from s3backer.errors import StoreError, VolumeInUse
from s3backer.layouts.classic import ClassicLayout, block_name
from s3backer.layouts.presence import _PAGE_COST, PAGE_BLOCKS
from s3backer.opening import VolumeOptions
from s3backer.port import Call
from s3backer.stores.base import Body, ListPage, StoredObject
from s3backer.stores.bodies import pieces
from s3backer.stores.memory import MemoryStore
from s3backer.volume import Volume
from tests.support.slow_writer import Writer

BLOCK = 4096
BLOCKS = 64
SIZE = BLOCKS * BLOCK


class SlowStore(MemoryStore):
    """Takes ``delay`` seconds for each GET and PUT, fails PUTs of keys that end in ``bad``, calls ``before_token``."""

    delay = 0.0
    bad = "nothing"
    before_token: Any = None

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        time.sleep(self.delay)
        return super().get(key, at_most=at_most)

    def put(self, key: str, body: Body, **options: Any) -> str:
        if key.endswith("mounted") and self.before_token:
            before, self.before_token = self.before_token, None
            before()
        time.sleep(self.delay)
        if key.endswith(self.bad):
            raise StoreError("away")
        return super().put(key, body, **options)


@pytest.fixture
def store() -> SlowStore:
    made = SlowStore()
    create_volume(made, "", size=SIZE, block_size=BLOCK)
    return made


def options(**more: Any) -> VolumeOptions:
    return VolumeOptions(**{"memory": 1 << 20, "threads": 2, "write_delay": 60.0, **more})


def run(*works: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    return threads


def test_closing_stores_what_a_waiting_writer_was_told_is_written(store: SlowStore) -> None:
    volume = Volume.open(store, "", options(memory=20 * BLOCK))
    store.delay = 0.03
    taken: list[int] = []

    def write() -> None:
        try:
            for block in range(1, BLOCKS):
                volume.write(block * BLOCK, bytes([block]) * BLOCK)
                taken.append(block)
        except OSError:
            return

    (writer,) = run(write)
    while len(taken) < 10:
        time.sleep(0.01)
    volume.close()
    writer.join(20)
    assert 10 <= len(taken) < BLOCKS - 1
    assert volume.unsaved == 0
    for block in taken:
        assert store.get(f"{block:08x}").body == bytes([block]) * BLOCK


def test_closing_waits_for_readers_and_lets_nobody_in_afterwards(store: SlowStore) -> None:
    store.put(f"{7:08x}", b"7" * BLOCK)
    volume = Volume.open(store, "", options(list_blocks=False))
    store.delay = 0.3
    got: list[bytes] = []
    (reader,) = run(lambda: got.append(volume.read(7 * BLOCK, BLOCK)))
    while volume.facts()["cache_used"] == 0 and not got and not volume._calls._inside:
        time.sleep(0.01)
    volume.close()
    reader.join(20)
    assert got == [b"7" * BLOCK]
    for call in (lambda: volume.read(0, 1), lambda: volume.write(0, b"x"), volume.flush, lambda: volume.resize(BLOCK)):
        with pytest.raises(OSError, match="closed"):
            call()


def test_what_changed_before_the_token_was_ours_is_seen(store: SlowStore) -> None:
    def resized_by_another() -> None:
        with Volume.open(store, "", options()) as other:
            other.resize(2 * SIZE)
            other.write(SIZE + 5 * BLOCK, b"x" * BLOCK)

    store.before_token = resized_by_another
    with pytest.raises(VolumeInUse, match="changed by somebody else just now") as caught:
        Volume.open(store, "", options())
    assert caught.value.hint == "Try again."
    assert inspect_volume(store, "").token is None
    with Volume.open(store, "", options()) as volume:
        assert volume.size == 2 * SIZE


@pytest.mark.parametrize("new", [SIZE // 2, 2 * SIZE])
def test_a_resize_that_fails_at_its_end_leaves_one_size_for_all(
    new: int, store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another block's PUT fails after block 0 was stored with the new size."""
    volume = Volume.open(store, "", options(threads=4))
    touch = volume._driver.touch

    def write_and_touch(block: int, first: Callable[[], None] = lambda: None) -> None:
        volume._driver.write(3 * BLOCK, b"w" * BLOCK)
        store.bad = f"{3:08x}"
        touch(block, first)

    monkeypatch.setattr(volume._driver, "touch", write_and_touch)
    with pytest.raises(StoreError):
        volume.resize(new)
    monkeypatch.undo()
    store.bad = "nothing"
    size = volume.size
    volume.write(size - BLOCK, b"last" * (BLOCK // 4))
    volume.flush()
    assert inspect_volume(store, "").size == size
    volume.close()
    with Volume.open(store, "", options()) as again:
        assert again.size == size
        assert again.read(size - BLOCK, 4) == b"last"
        assert again.read(3 * BLOCK, 1) == b"w"


def test_readers_do_not_keep_a_flush_waiting() -> None:
    """A volume far larger than its cache, and readers enough to keep every worker busy."""
    store = SlowStore()
    create_volume(store, "", size=20000 * BLOCK, block_size=BLOCK)
    volume = Volume.open(store, "", options(threads=16, list_blocks=False, memory=2 << 20))
    stop, flushed = threading.Event(), threading.Event()
    store.delay = 0.005

    def read(seed: int) -> None:
        source = random.Random(seed)
        while not stop.is_set():
            volume.read(source.randrange(1, 19000) * BLOCK, 32 * BLOCK)

    def flush() -> None:
        volume.flush()
        flushed.set()

    def gets() -> int:
        return store.counters.snapshot()["get"].requests

    readers = run(*(lambda n=n: read(n) for n in range(8)))
    try:
        while gets() < 200:
            time.sleep(0.01)
        before = gets()
        volume.write(5 * BLOCK, b"x" * BLOCK)
        (flusher,) = run(flush)
        while not flushed.is_set() and gets() < before + 4000:
            time.sleep(0.001)
        served = gets() - before
    finally:
        stop.set()
        for thread in (*readers, flusher):
            thread.join()
        volume.close()
    assert served < 1000


def test_who_writes_the_same_zeros_all_the_time_keeps_no_caller_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They need no request, and are due again at once. A hit asks nobody, and comes between any two steps."""
    writer = Writer(delay=0.0)
    writer.layout.survey(lambda: False)
    start, writes = writer.cache._write_back._start_store, 0

    def started(block: int, sequence: int, now: float) -> bool:
        nonlocal writes
        requested = start(block, sequence, now)
        if writes < 1000:
            writes += 1
            assert writer.slab.write(7 * BLOCK, bytes(512), now)[0] == 512
        return requested

    monkeypatch.setattr(writer.cache._write_back, "_start_store", started)
    writer.cache.write(WriteRequest(offset=7 * BLOCK, data=bytes(512), length=512), 0.0)
    assert writes < 10
    # What is left has its turn at once.
    assert writer.cache.next_wake(0.0) == 0.0


class MeanSlab:
    """A slab that finds no memory for a copy, of what is to be stored or is written, ``failures`` times."""

    def __init__(self, slab: _fast.Slab, failures: int) -> None:
        self._slab = slab
        self.failures = failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slab, name)

    def begin_store(self, block: int) -> tuple[int, int, bytes | None]:
        if self.failures:
            self.failures -= 1
            raise MemoryError
        return self._slab.begin_store(block)

    def write(self, offset: int, data: bytes, now: float) -> tuple[int, int]:
        if self.failures:
            self.failures -= 1
            raise MemoryError
        return self._slab.write(offset, data, now)


def test_no_memory_for_a_copy_fails_the_flush_and_loses_nothing(
    store: SlowStore, caplog: pytest.LogCaptureFixture
) -> None:
    volume = Volume.open(store, "", options())
    slab: Any = MeanSlab(volume._slab, failures=3)
    volume._driver.cache._write_back._slab = slab
    for block in range(1, 10):
        volume.write(block * BLOCK, b"x" * BLOCK)
    with pytest.raises(StoreError, match="no memory for a copy of block"):
        volume.flush()
    volume.close()
    assert slab.failures == 0
    assert all(store.get(f"{block:08x}").body == b"x" * BLOCK for block in range(1, 10))
    assert "defect" not in caplog.text


def test_no_memory_for_a_write_that_had_to_wait_for_room_fails_it() -> None:
    writer = Writer(limit=10)
    blocks = iter(range(100))
    while writer.write(next(blocks)) is not None:
        pass
    first = writer.cache._parked[0]
    second = writer.begin(next(blocks))
    slab: Any = MeanSlab(writer.slab, failures=1)
    writer.cache._common.writer = slab
    while writer.stores:
        writer.end(writer.stores[0])
    (error,) = writer.answered(first)
    assert isinstance(error, StoreError) and "no memory" in str(error)
    assert writer.answered(second) == [None] and writer.cache.counts.memory_errors == 1


def test_what_is_read_lets_those_write_on_for_whose_parts_of_sectors_there_was_no_room(tmp_path: Path) -> None:
    """Nothing may be stored, and nothing else happens."""
    writer = Writer(tmp_path / "journal")
    writer.slab.limit_patches(2)
    writer.cache._write_back._held_until = 60.0
    requests = [WriteRequest(offset=block * BLOCK + 500, data=b"w" * 20, length=20) for block in (1, 2)]
    for request in requests:
        writer.cache.write(request, 0.0)
    reading = ReadRequest(offset=BLOCK, buffer=bytearray(BLOCK))
    writer.cache.read(reading, [1])
    (*others, fetch) = writer.cache.take_actions()
    assert fetch == Fetch(1, urgent=True) and len(others) == 2
    assert writer.cache.writers == "wait for room"
    writer.cache.fetched(1, b"o" * BLOCK, None, 0.0)
    writer.take()
    assert writer.answered(reading) == [None] and writer.answered(requests[1]) == [None]
    writer.close()


def test_no_memory_for_one_of_the_writes_that_wait_for_a_block_fails_that_one() -> None:
    writer = Writer()
    writer.slab.limit_patches(2)
    assert writer.slab.write(9 * BLOCK + 500, b"w" * 20, 0.0) == (20, _fast.DONE)
    requests = [WriteRequest(offset=at, data=b"x", length=1) for at in (5, 50)]
    for request in requests:
        writer.cache.write(request, 0.0)
    reading = ReadRequest(offset=900, buffer=bytearray(10))
    writer.cache.read(reading, [0])
    assert writer.cache.take_actions() == [Fetch(0, urgent=True)]
    slab: Any = MeanSlab(writer.slab, failures=1)
    writer.cache._common.writer = slab
    writer.cache.fetched(0, b"o" * BLOCK, None, 0.0)
    writer.take()
    assert [type(error) for request in requests for error in writer.answered(request)] == [StoreError, type(None)]
    assert writer.answered(reading) == [None]


@pytest.mark.parametrize("what", ["in the bucket", "in the bucket and in memory", "absent"])
def test_no_memory_for_a_read_fails_it_and_nobody_waits(
    store: SlowStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with Volume.open(store, "", options()) as volume:
        if what != "absent":
            volume.write(BLOCK, b"x" * 2 * BLOCK)
    answers: list[object] = []
    answered = threading.Event()

    def done(error: object, content: object) -> None:
        answers.append(error)
        answered.set()

    def no_memory(size: int) -> None:
        raise MemoryError(size)

    volume = Volume.open(store, "", options())
    if what == "in the bucket and in memory":
        volume.read(BLOCK, BLOCK)
    with monkeypatch.context() as patch:
        patch.setattr("s3backer.cache_calls.bytearray", no_memory, raising=False)
        assert volume.port.read(Call(0), BLOCK, 2 * BLOCK, done)
        assert answered.wait(20)
    assert volume.read(BLOCK, 2) == (b"\0\0" if what == "absent" else b"xx")
    volume.close()
    assert len(answers) == 1
    assert isinstance(answers[0], StoreError)
    assert "no memory" in str(answers[0])
    assert "defect" not in caplog.text


@pytest.mark.parametrize("what", ["read", "write", "zero", "flush"])
def test_a_call_that_met_a_defect_keeps_no_volume_open(
    store: SlowStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    volume = Volume.open(store, "", options())

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    answers: list[object] = []

    def done(error: object, *_: object) -> None:
        answers.append(error)

    ports: dict[str, Callable[[], object]] = {
        "read": lambda: volume.port.read(Call(0), 0, BLOCK, done),
        "write": lambda: volume.port.write(Call(0), 0, b"x", 0, done),
        "zero": lambda: volume.port.zero(Call(0), 0, BLOCK, done),
        "flush": lambda: volume.port.flush(Call(0), done),
    }
    with monkeypatch.context() as patch:
        patch.setattr(volume._driver.cache, "write" if what == "zero" else what, broken)
        if what == "zero":
            assert ports[what]()
            assert isinstance(answers[0], StoreError)
        else:
            with pytest.raises(RuntimeError, match="broken"):
                ports[what]()
    closing = threading.Thread(target=volume.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()


def test_a_synchronous_write_whose_flush_cannot_begin_is_answered(
    store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume.open(store, "", options())

    def broken(*_: object) -> None:
        raise MemoryError

    answers: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(volume._driver, "begin_flush", broken)
        data = b"x" * BLOCK
        assert volume.port.write(Call(0), 0, data, 0, lambda error, taken: answers.append(error), synced=True)
    assert [type(answer) for answer in answers] == [StoreError]
    closing = threading.Thread(target=volume.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()


@pytest.mark.parametrize("way", ["port", "library"])
@pytest.mark.parametrize("waits", [False, True])
def test_a_write_that_met_a_defect_is_answered_once_and_its_memory_left_alone(
    store: SlowStore, monkeypatch: pytest.MonkeyPatch, waits: bool, way: str
) -> None:
    with Volume.open(store, "", options()) as volume:
        volume.write(3 * BLOCK, b"o" * BLOCK)
    volume = Volume.open(store, "", options(memory=20 * BLOCK))
    block = 4
    # Else there is room for it at once.
    while waits and volume._slab.write(block * BLOCK, b"f" * BLOCK, 0.0)[1] == _fast.DONE:
        block += 1
    cache, data, answers = volume._driver.cache, bytearray(b"n" * BLOCK), []
    schedule = cache._schedule

    def fails(now: float) -> None:
        if threading.current_thread() is threading.main_thread():
            raise MemoryError
        schedule(now)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_schedule", fails)
        # A block that is written by a call of the library needs no step, if it does not wait.
        with pytest.raises(MemoryError) if way == "port" or waits else contextlib.nullcontext():
            if way == "port":
                volume.port.write(Call(0), 3 * BLOCK, data, 0, lambda *_: answers.append(1))
            else:
                volume.write(3 * BLOCK, data)
    # It is somebody else's by now.
    data[:] = b"!" * BLOCK
    volume.flush()
    found = volume.read(3 * BLOCK, BLOCK)
    volume.close()
    assert found in (b"o" * BLOCK, b"n" * BLOCK)
    assert store.get(f"{3:08x}").body == found
    assert not answers


class OneByOne(MemoryStore):
    """Lists one key a page, and holds PUTs back while ``gate`` is there."""

    gate: threading.Event | None = None
    inside = threading.Event()

    def put(self, key: str, body: Body, **more: Any) -> str:
        if b"".join(pieces(body))[:1] == b"F":
            raise StoreError("away")
        if self.gate:
            self.inside.set()
            self.gate.wait(20)
        return super().put(key, body, **more)

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
        return super().list(prefix, start_after=start_after, limit=1)


def test_a_page_forgotten_at_the_end_of_a_survey_is_not_taken_for_empty() -> None:
    store = OneByOne()

    def layout(pages: int) -> ClassicLayout:
        budget = pages * _PAGE_COST
        return ClassicLayout(store, "", block_size=512, size=4 * PAGE_BLOCKS * 512, hash_prefix=True, knowledge=budget)

    blocks = [0, 2 * PAGE_BLOCKS + 5, 3 * PAGE_BLOCKS + 7]
    for block in blocks:
        layout(100).write(block, b"D" * 512)
    # Three pages fit, those of the blocks. The write under way makes a fourth at the very end.
    tight = layout(3)
    writers: list[threading.Thread] = []

    def begin_write() -> bool:
        if store.gate is None and tight._unclear is not None:
            store.gate = threading.Event()
            writers.extend(run(lambda: tight.write(PAGE_BLOCKS + 9, b"W" * 512)))
            assert store.inside.wait(20)
        return False

    tight.survey(begin_write)
    assert store.gate is not None
    assert not tight.known_absent(PAGE_BLOCKS + 9)
    store.gate.set()
    writers[0].join(20)
    assert not any(tight.known_absent(block) for block in blocks)


@pytest.mark.parametrize("hash_prefix", [False, True])
def test_growing_while_the_survey_runs_makes_nothing_absent(hash_prefix: bool) -> None:
    """An earlier page told of objects beyond the end of that time; they are in the volume now."""

    class Held(MemoryStore):
        hold_at = 0
        lists = 0
        inside = threading.Event()
        go_on = threading.Event()

        def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
            self.lists += 1
            if self.lists == self.hold_at:
                self.inside.set()
                assert self.go_on.wait(20)
            return super().list(prefix, start_after=start_after, limit=1)

    store = Held()
    create_volume(store, "", size=SIZE, block_size=BLOCK, block_hash_prefix=hash_prefix)
    with Volume.open(store, "", options(block_hash_prefix=hash_prefix)) as volume:
        for block in range(20, BLOCKS):
            volume.write(block * BLOCK, b"D" * BLOCK)
    store.hold_at = store.lists + (BLOCKS - 20 if hash_prefix else 2)
    with Volume.open(store, "", options(block_hash_prefix=hash_prefix, size=16 * BLOCK, force=True)) as volume:
        assert store.inside.wait(20)
        volume.resize(SIZE)
        store.go_on.set()
        volume._survey.join()  # type: ignore[union-attr]
        for block in range(20, BLOCKS):
            volume.write(block * BLOCK, b"w" * 512)
    for block in range(20, BLOCKS):
        assert store.get(block_name(block, hash_prefix=hash_prefix)).body == b"w" * 512 + b"D" * (BLOCK - 512)


def test_progress_that_fails_keeps_nothing_from_being_stored(
    store: SlowStore, caplog: pytest.LogCaptureFixture
) -> None:
    volume = Volume.open(store, "", options())
    for block in range(1, BLOCKS):
        volume.write(block * BLOCK, b"x" * BLOCK)
    store.delay = 0.02
    calls: list[int] = []

    def hung_up(left: int, total: int) -> None:
        calls.append(left)
        raise OSError("the terminal has gone")

    volume.close(hung_up)
    assert len(calls) == 1 and "the terminal has gone" in caplog.text
    assert inspect_volume(store, "", count=True).objects == BLOCKS
    assert inspect_volume(store, "").token is None


def test_whoever_closes_waits_until_it_is_closed(store: SlowStore) -> None:
    volume = Volume.open(store, "", options())
    for block in range(1, BLOCKS):
        volume.write(block * BLOCK, b"x" * BLOCK)
    store.delay = 0.02
    left: list[int] = []

    def close() -> None:
        volume.close()
        left.append(volume.unsaved)

    for thread in run(close, close, close):
        thread.join(20)
    assert left == [0, 0, 0]


def test_the_timer_survives_a_lack_of_memory(store: SlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume.open(store, "", options(write_delay=0.1))
    wake, failures = volume._driver.cache.next_wake, [MemoryError()]

    def next_wake(now: float) -> float | None:
        if failures:
            raise failures.pop()
        return wake(now)

    monkeypatch.setattr(volume._driver.cache, "next_wake", next_wake)
    while failures:
        time.sleep(0.01)
    volume.write(BLOCK, b"x" * BLOCK)
    deadline = time.monotonic() + 20
    while volume.unsaved:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    volume.close()


def test_shrinking_while_the_store_is_away_fails_and_stops_nobody(store: SlowStore) -> None:
    volume = Volume.open(store, "", options(memory=20 * BLOCK))
    store.bad = ""

    def write() -> None:
        for block in range(BLOCKS):
            volume.write(block * BLOCK, b"x" * BLOCK)

    (writer,) = run(write)
    while not volume._writes._inside or volume.unsaved < volume._slab.dirty_limit:
        time.sleep(0.01)
    failures: list[StoreError] = []

    def shrink() -> None:
        try:
            volume.resize(SIZE // 2)
        except StoreError as error:
            failures.append(error)

    (resizer,) = run(shrink)
    resizer.join(20)
    answered = not resizer.is_alive()
    store.bad = "nothing"
    resizer.join(20)
    assert answered and [str(error) for error in failures] == ["away"]
    assert volume.size == SIZE
    writer.join(20)
    assert not writer.is_alive()
    volume.close()


def test_a_token_whose_answer_was_lost_is_not_left_behind(store: SlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put = store.put

    def lost(key: str, body: Body, **more: Any) -> str:
        put(key, body, **more)
        raise StoreError("the answer was lost")

    monkeypatch.setattr(store, "put", lost)
    with pytest.raises(StoreError, match="lost"):
        Volume.open(store, "", options())
    assert inspect_volume(store, "").token is None


def test_a_survey_remembers_no_more_than_its_budget() -> None:
    """With hashed names a survey speaks only at its end, however much was written meanwhile."""
    store = OneByOne()
    made = ClassicLayout(store, "", block_size=512, size=10**6 * 512, hash_prefix=True, knowledge=_PAGE_COST)
    for block in (0, 5, 6):
        made.write(block, b"D" * 512)
    layout = ClassicLayout(store, "", block_size=512, size=10**6 * 512, hash_prefix=True, knowledge=_PAGE_COST)
    asked = 0

    def write_meanwhile() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:
            for block in range(1000, 2000):
                layout.write(block, None)
                layout.write(block, b"W" * 512)
            with pytest.raises(StoreError):
                layout.write(70000, b"F" * 512)
        assert len(layout._unclear or ()) < 200
        return False

    assert layout.survey(write_meanwhile)
    assert not any(layout.known_absent(block) for block in (5, 6, 70000, *range(1000, 2000)))


def test_a_block_written_while_its_page_is_listed_is_not_taken_for_absent() -> None:
    """The listing is from before the write, and what the write said is forgotten for another page."""

    class Late(MemoryStore):
        def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
            found = super().list(prefix, start_after=start_after, limit=limit)
            for block in (7, PAGE_BLOCKS + 7):
                layout.write(block, b"W" * 512)
            return found

    layout = ClassicLayout(
        Late(), "", block_size=512, size=2 * PAGE_BLOCKS * 512, hash_prefix=False, knowledge=_PAGE_COST
    )
    layout.write(0, None)
    layout.survey(lambda: False)
    assert not layout.known_absent(7) and not layout.known_absent(PAGE_BLOCKS + 7)


def test_closing_needs_no_thread(store: SlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many processes run as may: who waits does not hear how far it is, that is all."""
    volume = Volume.open(store, "", options())
    volume.write(3 * BLOCK, b"x" * BLOCK)
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name == "s3backer-drain":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    volume.close()
    assert store.get(f"{3:08x}").body == b"x" * BLOCK
