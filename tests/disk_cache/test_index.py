"""Which slot holds which block: the shipped index against plain sets and dictionaries, and which copies it keeps."""

from __future__ import annotations

import tracemalloc

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from s3backer.disk_cache_index import INDEX_BYTES, CopyIndex

SIZE = 10
BLOCKS = st.integers(0, 40) | st.sampled_from([2**32 - 2, 2**31])


class Index(RuleBasedStateMachine):
    """The oracle knows where each block was put; victims are read off the index, and have to be sensible."""

    def __init__(self) -> None:
        super().__init__()
        self.index = CopyIndex(12, 80)
        self.held: dict[int, int] = {}
        self.pinned: list[tuple[int, int]] = []

    def settle(self, block: int, size: int, *, whole: bool) -> None:
        self.drop(block)
        pinned = {slot for slot, _ in self.pinned}
        before = self.index.count
        slot = self.index.place(size)
        if slot is None:
            fits = self.index.used + size <= self.index.limit and before < 12
            assert size > self.index.limit or (set(range(before)) <= pinned and not fits)
            return
        assert slot not in pinned, "somebody reads it"
        gone = [other for other, place in self.held.items() if place == slot]
        for other in gone:
            del self.held[other]
        if gone:
            assert before == 12 or self.index.used + size > self.index.limit, "there was room"
        if whole:
            self.index.settle(block, size)
            self.held[block] = slot
        else:
            self.index.release(size)

    @rule(block=BLOCKS, size=st.sampled_from([SIZE, SIZE // 2]), whole=st.booleans())
    def keep(self, block: int, size: int, whole: bool) -> None:
        self.settle(block, size, whole=whole)

    @rule(block=BLOCKS)
    def use(self, block: int) -> None:
        self.index.use(block)

    @rule(block=BLOCKS)
    def drop(self, block: int) -> None:
        assert self.index.drop(block) == (self.held.pop(block, None) is not None)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.held)))
        self.index.pin(self.held[block])
        self.pinned.append((self.held[block], block))

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        slot, block = data.draw(st.sampled_from(self.pinned))
        self.pinned.remove((slot, block))
        self.index.unpin(slot)

    @rule(limit=st.sampled_from([0, 5, 30, 80, 1000]))
    def limit(self, limit: int) -> None:
        self.index.limit = limit
        before = self.index.count
        assert self.index.cut() == (self.index.count < before)
        assert self.index.used <= limit or self.index.count - 1 in {slot for slot, _ in self.pinned}
        self.held = {block: slot for block, slot in self.held.items() if slot < self.index.count}

    @invariant()
    def agrees(self) -> None:
        self.index.check_invariants()
        assert self.index.held == len(self.held)
        for block in range(42):
            assert self.index.find(block) == self.held.get(block)


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def keep(index: CopyIndex, block: int) -> bool:
    """Read a block through the cache; return whether it was there."""
    if index.find(block) is not None:
        index.use(block)
        return True
    assert index.place(SIZE) is not None
    index.settle(block, SIZE)
    return False


def test_a_scan_does_not_drive_out_what_is_used_again() -> None:
    index = CopyIndex(100, 100 * SIZE)
    for _ in range(3):
        for block in range(50):
            keep(index, block)
    for block in range(1000, 2000):
        keep(index, block)
    assert sum(index.find(block) is not None for block in range(50)) == 50


def test_what_is_new_has_time_to_be_used_again() -> None:
    index = CopyIndex(100, 100 * SIZE)
    for _ in range(2):
        for block in range(100):
            keep(index, block)
    for block in range(1000, 1100):
        keep(index, block)
        assert all(index.find(other) is not None for other in range(max(1000, block - 8), block))
    assert sum(index.find(block) is not None for block in range(100)) >= 88


def test_of_a_loop_that_does_not_fit_a_part_stays() -> None:
    index = CopyIndex(100, 100 * SIZE)
    hits = [sum(keep(index, block) for block in range(130)) for _ in range(12)]
    assert hits[0] == 0 and hits[-1] > 20


def test_what_was_loaded_is_found_and_the_last_copy_of_a_block_counts() -> None:
    index = CopyIndex(10, 10 * SIZE)
    for slot, block in ((0, 7), (3, 8), (4, 7)):
        index.load(slot, block, SIZE)
    index.check_invariants()
    assert (index.find(7), index.find(8), index.count, index.held) == (4, 3, 5, 2)


def test_memory_is_what_it_is_counted_as() -> None:
    tracemalloc.start()
    try:
        capacity = 1 << 12
        before = tracemalloc.get_traced_memory()[0]
        index = CopyIndex(capacity, capacity * SIZE)
        for block in range(0, 26 * capacity, 13):
            keep(index, block)
        for slot in range(capacity):
            index.drop(index._blocks[slot] - 1)
        assert tracemalloc.get_traced_memory()[1] - before <= INDEX_BYTES * capacity * 1.05
    finally:
        tracemalloc.stop()
