"""The slab against its plain twin: every answer, every byte, every counter, after any sequence of calls."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from s3backer import _fast
from tests.support.twins import PlainSlab

BLOCK = 2048
BLOCKS = 12
SLOTS = 6
LIMIT = 3
COUNTERS = (
    *("used", "clean", "dirty", "storing", "unsaved", "pinned", "kept", "ahead", "ghosts", "patches"),
    *("sequence", "read_hits", "read_misses", "write_hits", "write_misses", "evictions", "ghost_hits"),
)


class SlabMachine(RuleBasedStateMachine):
    """Runs both side by side; the twin has to foretell also which block goes."""

    def __init__(self) -> None:
        super().__init__()
        self.real = _fast.Slab(BLOCK, SLOTS, LIMIT)
        self.plain = PlainSlab(BLOCK, SLOTS, LIMIT)
        self.pins: list[tuple[int, int, list[memoryview], list[bytes]]] = []
        self.now = 0.0
        self.counter = 0

    def teardown(self) -> None:
        while self.pins:
            self.unpin(0)
        self.equal()
        assert (self.real.pinned, self.real.waiting) == (0, 0)

    def waits(self, first: int, last: int) -> bool:
        return any(self.plain.is_pinned(block) for block in range(first, last + 1))

    def both(self, name: str, *arguments: Any) -> Any:
        """Call both and compare answer or error."""
        outcomes = []
        for slab in (self.real, self.plain):
            try:
                outcomes.append(getattr(slab, name)(*arguments))
            except ValueError:
                outcomes.append("ValueError")
        assert outcomes[0] == outcomes[1], name
        return outcomes[0]

    @rule(offset=st.integers(0, BLOCKS * BLOCK - 1), length=st.integers(0, 2 * BLOCK + 700))
    def read(self, offset: int, length: int) -> None:
        real, plain = bytearray(b"?" * length), bytearray(b"?" * length)
        assert self.real.read(offset, real) == self.plain.read(offset, plain)
        assert real == plain

    @rule(
        offset=st.integers(0, BLOCKS * BLOCK - 1) | st.integers(0, BLOCKS * 4 - 1).map(lambda n: n * 512),
        length=st.integers(0, BLOCK) | st.sampled_from([64, 256, 512, 1024, BLOCK]),
        zero=st.booleans(),
    )
    def write(self, offset: int, length: int, zero: bool) -> None:
        self.counter += 1
        self.now += 1
        data = bytes(length) if zero else random.Random(self.counter).randbytes(length)
        self.change(offset, length, "write", offset, data, self.now)

    def change(self, offset: int, length: int, name: str, *arguments: Any) -> None:
        """Call what writes to a range; where it has to wait for pins, see it wait, and unpin."""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        if length and self.waits(first, last):
            self.pins_hold_up(first, last, name, *arguments)
        else:
            self.both(name, *arguments)

    def pins_hold_up(self, first: int, last: int, name: str, *arguments: Any) -> None:
        answers: list[Any] = []

        def call() -> None:
            try:
                answers.append(getattr(self.real, name)(*arguments))
            except ValueError:
                answers.append("ValueError")

        thread = threading.Thread(target=call)
        thread.start()
        deadline = time.monotonic() + 60
        while not self.real.waiting:
            assert not answers and time.monotonic() < deadline, "it does not wait for the pins"
        self.equal()
        # Nothing is pinned while it waits.
        assert self.real.pin(0, 0)[0] == _fast.BUSY
        while self.pins:
            assert not (answers and self.waits(first, last)), "it did not wait for all of them"
            self.unpin(0)
        thread.join(60)
        assert not thread.is_alive() and self.real.waiting == 0
        try:
            expected = getattr(self.plain, name)(*arguments)
        except ValueError:
            expected = "ValueError"
        assert answers == [expected], name

    @rule(block=st.integers(0, BLOCKS - 1), zero=st.booleans())
    def write_block(self, block: int, zero: bool) -> None:
        self.write(block * BLOCK, BLOCK, zero)

    @rule(offset=st.integers(0, BLOCKS * 4 - 1).map(lambda n: n * 512), length=st.sampled_from([100, 512, BLOCK]))
    def write_zeros(self, offset: int, length: int) -> None:
        self.now += 1
        self.change(offset, length, "write_zeros", offset, length, self.now)

    @rule(block=st.integers(0, BLOCKS - 1), byte=st.integers(0, 3), ahead=st.booleans())
    def fill(self, block: int, byte: int, ahead: bool) -> None:
        self.both("fill", block, bytes([byte]) * BLOCK if byte else None, ahead)

    @rule(first=st.integers(0, BLOCKS - 1), count=st.integers(1, SLOTS + 1), ahead=st.booleans())
    def stream(self, first: int, count: int, ahead: bool) -> None:
        """Many at once, so that long runs of evictions are reached."""
        for block in range(first, first + count):
            self.both("fill", block % BLOCKS, None, ahead)

    @rule(offset=st.integers(0, BLOCKS * BLOCK - 1), length=st.integers(0, 2 * BLOCK) | st.just(BLOCK))
    def pin(self, offset: int, length: int) -> None:
        reason, views = self.real.pin(offset, length)
        expected, pieces = self.plain.pin(offset, length)
        assert (reason, [bytes(view) for view in views]) == (expected, pieces)
        if reason == _fast.DONE:
            self.pins.append((offset, length, views, pieces))

    @rule(block=st.integers(0, BLOCKS - 1))
    def fill_and_pin(self, block: int) -> None:
        self.both("fill", block, b"7" * BLOCK)
        self.pin(block * BLOCK, BLOCK)

    @precondition(lambda self: self.pins)
    @rule(number=st.integers(0, 9), zero=st.booleans())
    def write_to_a_pinned_block(self, number: int, zero: bool) -> None:
        self.write(self.pins[number % len(self.pins)][0] // BLOCK * BLOCK, BLOCK, zero)

    @precondition(lambda self: self.pins and not self.real.unsaved)
    @rule(number=st.integers(0, 9))
    def drop_a_pinned_block(self, number: int) -> None:
        self.drop_from(self.pins[number % len(self.pins)][0] // BLOCK)

    @precondition(lambda self: self.pins)
    @rule(number=st.integers(0, 9))
    def unpin(self, number: int) -> None:
        offset, length, views, pieces = self.pins.pop(number % len(self.pins))
        assert [bytes(view) for view in views] == pieces, "what was pinned has changed"
        self.real.unpin(views)
        self.plain.unpin(offset, length)

    @rule(block=st.integers(0, BLOCKS - 1))
    def touch(self, block: int) -> None:
        self.now += 1
        self.both("touch", block, self.now)

    @rule(block=st.integers(0, BLOCKS - 1))
    def begin_store(self, block: int) -> None:
        self.both("begin_store", block)

    @rule(block=st.integers(0, BLOCKS - 1), stored=st.booleans())
    def end_store(self, block: int, stored: bool) -> None:
        self.both("end_store", block, stored)

    @precondition(lambda self: self.real.dirty)
    @rule(stored=st.booleans())
    def store_oldest(self, stored: bool) -> None:
        for block, _, _, whole in self.real.dirty_blocks(1):
            if not whole:
                self.both("fill", block, None)
            self.both("begin_store", block)
            self.both("end_store", block, stored)

    @rule(block=st.integers(0, BLOCKS))
    def drop_from(self, block: int) -> None:
        self.change(block * BLOCK, BLOCKS * BLOCK, "drop_from", block)

    @rule(block=st.integers(0, 2 * BLOCKS), length=st.integers(0, 4 * BLOCKS))
    def next_held(self, block: int, length: int) -> None:
        assert self.real.next_held(block, block + length) == self.plain.next_held(block, block + length)

    @rule(block=st.integers(0, BLOCKS - 1), start=st.integers(0, BLOCK), length=st.integers(0, BLOCK))
    def copy(self, block: int, start: int, length: int) -> None:
        length = min(length, BLOCK - start)
        for name in ("copy_out", "copy_run"):
            real, plain = bytearray(length), bytearray(length)
            assert getattr(self.real, name)(block, start, real) == getattr(self.plain, name)(block, start, plain), name
            assert real == plain

    @rule(block=st.integers(0, BLOCKS - 1), sector=st.integers(0, 3), pieces=st.integers(2, 9))
    def write_pieces(self, block: int, sector: int, pieces: int) -> None:
        """Write a sector piece by piece, the last one first."""
        for piece in range(pieces - 1, -1, -1):
            start, stop = 512 * piece // pieces, 512 * (piece + 1) // pieces
            self.write(block * BLOCK + sector * 512 + start, stop - start, False)

    @rule(limit=st.integers(-1, SLOTS + 1))
    def dirty_blocks(self, limit: int) -> None:
        real = self.real.dirty_blocks(limit)
        # Slots that became dirty in one call have no order among them.
        assert [entry[1] for entry in real] == [entry[1] for entry in self.plain.dirty_blocks(limit)]
        assert set(real) <= set(self.plain.dirty_blocks(SLOTS))

    @invariant()
    def equal(self) -> None:
        self.real.check_invariants()
        for name in COUNTERS:
            assert getattr(self.real, name) == getattr(self.plain, name), name
        assert self.real.oldest_dirty_sequence() == self.plain.oldest_dirty_sequence()
        for block in range(BLOCKS):
            assert self.real.contains(block) == self.plain.contains(block)
            assert self.real.fully_valid(block) == self.plain.fully_valid(block)
        for _, _, views, pieces in self.pins:
            assert [bytes(view) for view in views] == pieces, "what was pinned has changed"


TestSlab = SlabMachine.TestCase
TestSlab.settings = settings(max_examples=30, stateful_step_count=50, deadline=None)


@pytest.mark.soak
def test_slab_for_longer() -> None:
    run_state_machine_as_test(SlabMachine, settings=settings(max_examples=1000, stateful_step_count=50, deadline=None))


@pytest.mark.parametrize(
    ("block_size", "slots", "limit"), [(256, 4, 2), (513, 4, 2), (512, 0, 0), (512, 4, 0), (512, 4, 5), (-512, 4, 2)]
)
def test_impossible_geometries_are_refused(block_size: int, slots: int, limit: int) -> None:
    with pytest.raises(ValueError):
        _fast.Slab(block_size, slots, limit)


def test_no_memory_is_an_error() -> None:
    with pytest.raises(MemoryError):
        _fast.Slab(1 << 40, 1 << 22, 1)


def test_calls_with_impossible_ranges_are_refused() -> None:
    slab = _fast.Slab(512, 4, 2)
    for start, length in ((0, 513), (512, 1), (-1, 1)):
        with pytest.raises(ValueError):
            slab.copy_out(0, start, bytearray(length))
        with pytest.raises(ValueError):
            slab.copy_run(0, start, bytearray(length))
    with pytest.raises(ValueError):
        slab.fill(0, bytes(511))
    with pytest.raises(BufferError):
        slab.read(0, b"read only")  # type: ignore[arg-type]
    slab.check_invariants()


@pytest.mark.parametrize("block_size", [512, 4096, 131072])
def test_slot_bytes_covers_everything(block_size: int) -> None:
    assert (
        block_size
        < _fast.slot_bytes(block_size)
        <= block_size + 320 + 3 * block_size // 4096 + 72 * block_size // 16384
    )
