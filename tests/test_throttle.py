"""Writers are slowed down gradually before they have to wait, and no more than has to be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer.cache_calls import WriteRequest
from s3backer.errors import Interrupted, StoreError
from s3backer.throttle import SECONDS, Throttle
from tests.support.slow_writer import BLOCK, Writer

# ── the throttle alone ───────────────────────────────────────────────────────────────────────────────────────


def held(throttle: Throttle, now: float) -> float:
    """Seconds for which a write of now is held back."""
    request = WriteRequest()
    if not throttle.hold(request, now):
        return 0.0
    due = throttle.next_due
    assert due is not None and throttle.take(lambda other, _: other is request) == [request]
    return due - now


@given(st.lists(st.floats(0.001, 0.5), min_size=1, max_size=200))
def test_the_level_rises_as_slowly_whatever_the_writes_are_like(rises: list[float]) -> None:
    """Each rise takes a share of what is left; between two of them the writer waits as long as it is told to."""
    throttle, now, level = Throttle(), 0.0, 0.0
    for rise in rises:
        level += (1 - level) * rise
        if level > 0.99:
            break
        throttle.note(level, now)
        now += held(throttle, now)
        assert -SECONDS * math.log(1 - level) == pytest.approx(now)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.3), st.integers(0, 2)), max_size=100))
def test_it_holds_back_in_order_never_for_long_and_nobody_where_there_is_room(
    steps: list[tuple[float, float, int]],
) -> None:
    throttle, now, asked = Throttle(), 0.0, 0
    waiting: list[tuple[WriteRequest, float]] = []
    for level, passed, writes in steps:
        now += passed
        throttle.note(level, now)
        for _ in range(writes):
            request, asked = WriteRequest(), asked + 1
            if throttle.hold(request, now):
                waiting.append((request, now))
        released = throttle.take(lambda _, due: due <= now)  # noqa: B023
        assert released == [request for request, _ in waiting[: len(released)]]
        waiting = waiting[len(released) :]
        assert not waiting or level > 0
        assert all(now < began + SECONDS for _, began in waiting)
        assert len(throttle) == len(waiting) and throttle.level == min(level, 0.999)
    assert throttle.count <= asked


@given(st.floats(0.1, 0.9), st.lists(st.floats(0.0, 0.01), max_size=100))
def test_what_is_stored_pays_for_as_much(level: float, steps: list[float]) -> None:
    """Whoever writes no faster than is stored goes on."""
    throttle = Throttle()
    throttle.note(level, 0.0)
    now = 10.0
    for step in steps:
        throttle.note(level * (1 - step), now)
        throttle.note(level, now)
        assert held(throttle, now) == 0.0


# ── in the cache ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["memory", "journal"])
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Writer]:
    """Where what is unsaved fills memory, or the journal first."""
    made = Writer() if request.param == "memory" else Writer(tmp_path / "journal", limit=3000)
    yield made
    made.close()


def test_writes_take_longer_the_less_room_there_is_then_wait(writer: Writer) -> None:
    waits: list[float] = []
    while (wait := writer.write(len(waits))) is not None:
        waits.append(wait)
    quick = next(index for index, wait in enumerate(waits) if wait)
    slow = waits[quick:]
    assert quick > len(waits) * 0.6 and len(slow) > 10
    assert max(slow) <= SECONDS
    # Five parts of the last stretch, each slower than the one before.
    part = len(slow) // 5
    means = [sum(slow[start : start + part]) / part for start in range(0, part * 5, part)]
    assert means == sorted(means) and means[-1] > 5 * means[0]
    assert writer.now >= 2 * SECONDS
    assert writer.cache.writers == "wait for room" and writer.cache.slowed == sum(wait > 0 for wait in slow)


def test_what_is_stored_lets_writers_go_on(writer: Writer) -> None:
    blocks = iter(range(4000))
    while writer.write(next(blocks)) == 0.0:
        pass
    # Those that were held back are answered as soon as there is room again, without a word of the clock.
    late = [writer.begin(next(blocks)) for _ in range(20)]
    assert not all(writer.answered(request) for request in late)
    assert writer.cache.writers == "are slowed down"
    for _ in range(200):
        if all(writer.answered(request) for request in late):
            break
        writer.end(writer.stores[0])
    assert [writer.answered(request) for request in late] == [[None]] * 20
    assert writer.cache.next_release is None


def test_an_outage_fills_the_journal_and_not_memory(tmp_path: Path) -> None:
    """What leaves memory for the journal slows nobody down."""
    writer = Writer(tmp_path / "journal", limit=20)
    try:
        blocks = iter(range(4000))
        for _ in range(10):
            writer.write(next(blocks))
        writer.tick(4000.0)
        writer.fail_stores()
        waits = [writer.write(next(blocks)) for _ in range(100)]
        assert writer.journal is not None and writer.journal.core.fill < 0.75
        assert waits == [0.0] * 100 and writer.cache.slowed == 0
    finally:
        writer.close()


@pytest.mark.parametrize("end", ["cancelled", "lost"])
def test_a_write_that_is_held_back_has_been_made(writer: Writer, end: str) -> None:
    """Called off, it is answered so; it survives nothing where the volume is lost, and is told that."""
    blocks = iter(range(4000))
    while writer.write(next(blocks)) == 0.0:
        pass
    held_back: list[Any] = []
    while not held_back or writer.answered(held_back[-1]):
        held_back.append(writer.begin(next(blocks)))
    request = held_back[-1]
    if end == "cancelled":
        writer.cache.cancel(request, Interrupted(), writer.now)
    else:
        writer.cache.give_up(StoreError("lost", hint="Go."))
    writer.take()
    (answer,) = writer.answered(request)
    assert (answer is None) == (end == "cancelled")
    assert writer.cache.next_release is None
    found = bytearray(BLOCK)
    assert not writer.slab.read(request.offset, found) and found == request.data


def test_a_flush_does_not_wait_for_writes_that_are_held_back(writer: Writer) -> None:
    """Nobody was told that they were made; and they are in what is stored anyhow."""
    blocks = iter(range(4000))
    while writer.write(next(blocks)) == 0.0:
        pass
    writer.begin(next(blocks))
    flush = writer.flush()
    for _ in range(4000):
        if writer.answered(flush):
            break
        writer.end(writer.stores[0])
    assert writer.answered(flush) == [None] and writer.now < 3600
