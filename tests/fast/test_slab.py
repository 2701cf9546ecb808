"""The slab against its plain twin: every answer, every byte, every counter, after any sequence of calls."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from s3backer import _fast
from tests.support.twins import PlainSlab

BLOCK = 2048
BLOCKS = 12
SLOTS = 5
LIMIT = 4


class SlabMachine(RuleBasedStateMachine):
    """Runs both side by side. The twin is told afterwards which clean block the real one evicted."""

    def __init__(self) -> None:
        super().__init__()
        self.real = _fast.Slab(BLOCK, SLOTS, LIMIT)
        self.plain = PlainSlab(BLOCK, SLOTS, LIMIT, self.follow)
        self.now = 0.0
        self.counter = 0

    def follow(self, clean: list[int]) -> int:
        gone = [block for block in clean if not self.real.contains(block)]
        assert gone, "the real slab evicted something that is not clean"
        return gone[0]

    def one_eviction(self, offset: int, length: int) -> int:
        """Return a length with which a write evicts at most one block, so that the twin can follow.

        Of two evictions in one call the first may be the block that the second makes room for.
        """
        room = SLOTS - self.real.used
        return length if room >= 2 else min(length, BLOCK - offset % BLOCK)

    def both(self, name: str, *arguments: Any) -> Any:
        """Call both and compare answer or error. The real one goes first, so that the twin can follow it."""
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
        length=st.integers(0, BLOCK) | st.sampled_from([512, 1024, BLOCK]),
        zero=st.booleans(),
    )
    def write(self, offset: int, length: int, zero: bool) -> None:
        self.counter += 1
        self.now += 1
        length = self.one_eviction(offset, length)
        data = bytes(length) if zero else random.Random(self.counter).randbytes(length)
        self.both("write", offset, data, self.now)

    @rule(block=st.integers(0, BLOCKS - 1), zero=st.booleans())
    def write_block(self, block: int, zero: bool) -> None:
        self.write(block * BLOCK, BLOCK, zero)

    @rule(offset=st.integers(0, BLOCKS * 4 - 1).map(lambda n: n * 512), length=st.sampled_from([100, 512, BLOCK]))
    def write_zeros(self, offset: int, length: int) -> None:
        self.now += 1
        self.both("write_zeros", offset, self.one_eviction(offset, length), self.now)

    @rule(block=st.integers(0, BLOCKS - 1), byte=st.integers(0, 3))
    def fill(self, block: int, byte: int) -> None:
        self.both("fill", block, bytes([byte]) * BLOCK if byte else None)

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
        self.both("drop_from", block)

    @rule(block=st.integers(0, BLOCKS - 1), start=st.integers(0, BLOCK), length=st.integers(0, BLOCK))
    def copy_out(self, block: int, start: int, length: int) -> None:
        length = min(length, BLOCK - start)
        real, plain = bytearray(length), bytearray(length)
        assert self.real.copy_out(block, start, real) == self.plain.copy_out(block, start, plain)
        assert real == plain

    @rule(limit=st.integers(-1, SLOTS + 1))
    def dirty_blocks(self, limit: int) -> None:
        real = self.real.dirty_blocks(limit)
        # Slots that became dirty in one call have no order among them.
        assert [entry[1] for entry in real] == [entry[1] for entry in self.plain.dirty_blocks(limit)]
        assert set(real) <= set(self.plain.dirty_blocks(SLOTS))

    @invariant()
    def equal(self) -> None:
        self.real.check_invariants()
        for name in ("used", "dirty", "storing", "unsaved", "sequence", "read_hits", "read_misses"):
            assert getattr(self.real, name) == getattr(self.plain, name), name
        assert (self.real.write_hits, self.real.write_misses) == (self.plain.write_hits, self.plain.write_misses)
        assert self.real.oldest_dirty_sequence() == self.plain.oldest_dirty_sequence()
        for block in range(BLOCKS):
            assert self.real.contains(block) == self.plain.contains(block)
            assert self.real.fully_valid(block) == self.plain.fully_valid(block)


TestSlab = SlabMachine.TestCase
TestSlab.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


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
        slab.fill(0, bytes(511))
    with pytest.raises(BufferError):
        slab.read(0, b"read only")  # type: ignore[arg-type]
    slab.check_invariants()


def test_second_chance_spares_what_is_read() -> None:
    slab = _fast.Slab(512, 4, 2)
    for block in range(4):
        slab.fill(block, bytes([block + 1]) * 512)
    slab.fill(4, None)  # Everything was used just now: one of them goes, the marks of the others with it.
    kept = [block for block in range(4) if slab.contains(block)]
    assert len(kept) == 3
    slab.read(kept[0] * 512, bytearray(512))
    slab.fill(5, None)
    assert slab.contains(kept[0])


@pytest.mark.parametrize("block_size", [512, 4096, 131072])
def test_slot_bytes_covers_everything(block_size: int) -> None:
    assert block_size < _fast.slot_bytes(block_size) <= block_size + 256 + 3 * block_size // 4096


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


def test_threads_leave_the_slab_in_order() -> None:
    """Writers, readers, fillers and a storer on the same blocks: the counters agree afterwards and return to zero."""
    slab = _fast.Slab(1024, 16, 12)
    failures: list[BaseException] = []

    def worker(seed: int) -> None:
        source = random.Random(seed)
        try:
            for _ in range(3000):
                block = source.randrange(24)
                match source.randrange(5):
                    case 0:
                        slab.write(block * 1024, source.randbytes(1024), 0.0)
                    case 1:
                        slab.write(block * 1024 + 512, source.randbytes(512), 0.0)
                    case 2:
                        slab.read(block * 1024, bytearray(4096))
                    case 3:
                        slab.fill(block, None)
                    case 4:
                        slab.write_zeros(block * 1024, 2048, 0.0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=worker, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or slab.dirty:
        for block, _, _, whole in slab.dirty_blocks(4):
            if not whole:
                slab.fill(block, None)
            slab.begin_store(block)
            slab.end_store(block, True)
        slab.check_invariants()
    for thread in threads:
        thread.join()
    assert not failures
    slab.check_invariants()
    assert (slab.dirty, slab.storing, slab.unsaved) == (0, 0, 0)
