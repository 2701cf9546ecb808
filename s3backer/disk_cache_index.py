"""Which slot of the disk cache holds which block, and which one goes: numbers in memory, no file, thread or clock.

    free ──place──► moving ──settle──► held ──place (of another block)──► moving
     ▲                │release           │drop
     └────────────────┴──────────────────┘      of a slot that is being read, only when that has ended

    place    a free slot, else a new one at the end while that fits the limit, else that of a victim
    victim   New copies stand in a queue. At its head, while it is a tenth of all or more, one that was used moves to
             the others, one that was not goes, and its block is remembered: if it comes back soon it is no new one.
             Among the others a hand goes round; what was used is spared and has one use less, of three at most.
    cut      while the copies take more than the limit, the slots at the end go, so that the file can become shorter

Guarantees
  * A slot that is being read or written is nobody's else: what a reader gets from it is what was written there.
  * Memory: ``INDEX_BYTES`` for each of ``capacity`` slots, and a little for those in use at the moment.
  * Every call takes a bounded number of steps, apart from ``cut``, which takes one for each slot that goes.

This is S3-FIFO (docs/cache.md) with slots that stay where they are, and one use is enough to leave the queue: memory
has answered the others. ``python -m perf.disk_cache`` measures it. Not thread-safe.
"""

from __future__ import annotations

from array import array

#: Bytes of memory for one slot: block, size, uses, 1.5 places in the table, one in the list of free slots and one in
#: the queue of new copies, a remembered block.
INDEX_BYTES = 4 + 4 + 1 + 6 + 4 + 4 + 2
#: In a slot's byte of uses: how many, and whether it stands in the queue.
_MOST_USES = 3
_QUEUED = 0x80
#: One of so many copies may be new.
_NEW_SHARE = 10
#: Slots that are looked at for a victim before the next one is taken, used or not.
_LONGEST_SEARCH = 128
_SCATTER = 0x9E3779B1  # 2^32 divided by the golden ratio: neighbours come to lie far apart


def _numbers(count: int) -> memoryview:
    # Zeros of the system: memory that is not used yet is not taken.
    return memoryview(bytearray(4 * count)).cast("I")


class CopyIndex:
    """Slots 0 … ``count - 1``, at most ``capacity``. Sizes in bytes of the file. ``limit`` may change at any time."""

    def __init__(self, capacity: int, limit: int) -> None:
        self.capacity = capacity
        self.limit = limit
        self.count = 0
        #: Bytes that the slots take, and how many of them hold a copy.
        self.used = 0
        self.held = 0
        #: By slot: block + 1, 0 for none; bytes that it takes; uses.
        self._blocks = _numbers(capacity)
        self._sizes = _numbers(capacity)
        self._uses = bytearray(capacity)
        #: Slot + 1 by block, at the first place that was free from the block's own on.
        self._table = _numbers(capacity + capacity // 2 + 1)
        #: A ring of slots: where its head is, and how many there are. One may be free, or hold what came later.
        self._queue = _numbers(capacity)
        self._head = self._queued = 0
        #: By block, as far as no other came there later: 16 bits that tell what was new and has gone.
        self._ghosts = memoryview(bytearray(2 * capacity)).cast("H")
        self._free = array("I")
        self._moving: int | None = None
        self._readers: dict[int, int] = {}
        self._hand = 0

    def find(self, block: int) -> int | None:
        """Return the slot that holds a block."""
        place = self._find(block)
        return None if place is None else self._table[place] - 1

    def size(self, slot: int) -> int:
        """Return the bytes that a slot takes."""
        return self._sizes[slot]

    def use(self, block: int) -> None:
        """Take notice of a use."""
        slot = self.find(block)
        if slot is not None and self._uses[slot] & ~_QUEUED < _MOST_USES:
            self._uses[slot] += 1

    def pin(self, slot: int) -> None:
        """Let a slot be as it is until ``unpin``."""
        self._readers[slot] = self._readers.get(slot, 0) + 1

    def unpin(self, slot: int) -> None:
        """End what ``pin`` began."""
        self._readers[slot] -= 1
        if not self._readers[slot]:
            del self._readers[slot]
            if not self._blocks[slot]:
                self._free.append(slot)

    @property
    def empty(self) -> list[int]:
        """The slots that hold nothing, though what the file says of them may be what they held."""
        return list(self._free)

    def load(self, slot: int, block: int, size: int) -> None:
        """Take what a file says, slot by slot in order; of two copies of a block the last one counts."""
        while self.count < slot:
            self._free.append(self._grow())
        self._grow()
        self.drop(block)
        self._take(slot, block, size)

    def place(self, size: int) -> int | None:
        """Return an empty slot for a copy of that size, None if there is none; until ``settle`` or ``release``."""
        assert self._moving is None
        slot = None
        if size > self.limit:
            pass
        elif self._free:
            slot = self._free.pop()
        elif self.count < self.capacity and self.used + size <= self.limit:
            slot = self._grow()
        else:
            slot = self._victim()
        self._moving = slot
        return slot

    def settle(self, block: int, size: int) -> None:
        """The slot that was placed holds this block now, and takes so many bytes."""
        assert self._moving is not None
        slot, self._moving = self._moving, None
        self.drop(block)
        self._take(slot, block, size)

    def release(self, size: int) -> None:
        """The slot that was placed holds nothing; it takes so many bytes."""
        assert self._moving is not None
        slot, self._moving = self._moving, None
        self._resize(slot, size)
        self._free.append(slot)

    def drop(self, block: int) -> bool:
        """Forget a block; return whether it was there."""
        place = self._find(block)
        if place is None:
            return False
        slot = self._table[place] - 1
        self._forget(place)
        if slot not in self._readers:
            self._free.append(slot)
        return True

    def cut(self) -> bool:
        """Let slots at the end go as long as they take too much; return whether any went."""
        before = self.count
        while self.count and self.used > self.limit:
            slot = self.count - 1
            if slot == self._moving or slot in self._readers:
                break
            if self._blocks[slot]:
                place = self._find(self._blocks[slot] - 1)
                assert place is not None
                self._forget(place)
            self._resize(slot, 0)
            self.count = slot
        if self.count == before:
            return False
        self._free = array("I", (slot for slot in self._free if slot < self.count))
        for _ in range(self._queued):
            slot = self._unqueue()
            if slot < self.count:
                self._enqueue(slot)
        self._hand = min(self._hand, max(0, self.count - 1))
        return True

    def check_invariants(self) -> None:
        """Raise AssertionError if anything contradicts anything else: for tests."""
        held = {slot: self._blocks[slot] - 1 for slot in range(self.count) if self._blocks[slot]}
        assert len(set(held.values())) == len(held) == self.held
        assert all(self.find(block) == slot for slot, block in held.items())
        assert sum(map(bool, self._table)) == len(held)
        assert self.used == sum(self._sizes[: self.count]) and not any(self._sizes[self.count :])
        queued = {self._queue[(self._head + n) % self.capacity] for n in range(self._queued)}
        assert len(queued) == self._queued
        assert queued == {slot for slot in range(self.capacity) if self._uses[slot] & _QUEUED}
        assert all(slot < self.count for slot in queued)
        free = set(self._free)
        assert len(free) == len(self._free) and not free & held.keys() and self._moving not in free
        resting = {slot for slot in self._readers if not self._blocks[slot]}
        everything = held.keys() | free | resting | ({self._moving} - {None})
        assert everything == set(range(self.count))

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _own_place(self, block: int) -> int:
        return (block * _SCATTER & 0xFFFFFFFF) % len(self._table)

    def _find(self, block: int) -> int | None:
        """Return the place in the table of a block that is held."""
        table, blocks = self._table, self._blocks
        place = self._own_place(block)
        while table[place]:
            if blocks[table[place] - 1] == block + 1:
                return place
            place = place + 1 if place + 1 < len(table) else 0
        return None

    def _grow(self) -> int:
        self.count += 1
        return self.count - 1

    def _resize(self, slot: int, size: int) -> None:
        self.used += size - self._sizes[slot]
        self._sizes[slot] = size

    def _take(self, slot: int, block: int, size: int) -> None:
        self._resize(slot, size)
        self._blocks[slot] = block + 1
        # A slot in the queue keeps its place there.
        queued = self._uses[slot] & _QUEUED
        self._uses[slot] = queued
        if not self._came_back(block) and not queued:
            self._enqueue(slot)
        self.held += 1
        table = self._table
        place = self._own_place(block)
        while table[place]:
            place = place + 1 if place + 1 < len(table) else 0
        table[place] = slot + 1

    def _forget(self, place: int) -> None:
        """Take an entry out of the table, so that what lies behind it is still found."""
        table, length = self._table, len(self._table)
        self._blocks[table[place] - 1] = 0
        self.held -= 1
        hole = place
        while True:
            place = place + 1 if place + 1 < length else 0
            if not table[place]:
                break
            own = self._own_place(self._blocks[table[place] - 1] - 1)
            # It may move into the hole unless its own place lies behind that.
            if (place - own) % length >= (place - hole) % length:
                table[hole] = table[place]
                hole = place
        table[hole] = 0

    def _victim(self) -> int | None:
        """Take its slot from the block that is to go."""
        for step in range(_LONGEST_SEARCH + len(self._readers) + 1 if self.count else 0):
            hurry = step >= _LONGEST_SEARCH
            new = not hurry and self._queued * _NEW_SHARE >= self.count
            if new:
                slot = self._unqueue()
            else:
                slot, self._hand = self._hand, self._hand + 1 if self._hand + 1 < self.count else 0
            if not self._blocks[slot]:
                continue
            if slot in self._readers:
                if new:
                    self._enqueue(slot)
                continue
            uses = self._uses[slot]
            if not hurry and uses & _QUEUED:
                # Its turn comes in the queue.
                pass
            elif not hurry and uses:
                self._uses[slot] = 0 if new else uses - 1
            else:
                block = self._blocks[slot] - 1
                if new:
                    self._remember(block)
                place = self._find(block)
                assert place is not None
                self._forget(place)
                return slot
        return None

    def _enqueue(self, slot: int) -> None:
        self._queue[(self._head + self._queued) % self.capacity] = slot
        self._queued += 1
        self._uses[slot] |= _QUEUED

    def _unqueue(self) -> int:
        slot = self._queue[self._head]
        self._head = (self._head + 1) % self.capacity
        self._queued -= 1
        self._uses[slot] &= ~_QUEUED
        return slot

    def _ghost(self, block: int) -> tuple[int, int]:
        """Return where a block is remembered, and as what."""
        return self._own_place(block) % self.capacity, (block * _SCATTER >> 7 & 0xFFFF) | 1

    def _remember(self, block: int) -> None:
        place, mark = self._ghost(block)
        self._ghosts[place] = mark

    def _came_back(self, block: int) -> bool:
        place, mark = self._ghost(block)
        if self._ghosts[place] != mark:
            return False
        self._ghosts[place] = 0
        return True
