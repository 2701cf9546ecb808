"""Plain Python twins of ``s3backer._fast``: the same answers, written for reading and not for speed.

A difference that no caller may depend on: the order of slots that became dirty in the same call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from s3backer._fast import BUSY, DONE, MISSING, NO_PATCH, NO_SLOT, ZERO_BLOCK
from s3backer.stores.base import Buffer

SECTOR = 512


def is_zero(data: Buffer) -> bool:
    return not any(bytes(data))


def split(offset: int, length: int, block_size: int) -> list[tuple[int, int, int]]:
    pieces = []
    end = offset + length
    while offset < end:
        block, start = divmod(offset, block_size)
        stop = min(block_size, start + end - offset)
        pieces.append((block, start, stop))
        offset += stop - start
    return pieces


def bits(bitmap: Buffer) -> list[bool]:
    return [bool(byte >> bit & 1) for byte in bytes(bitmap) for bit in range(8)]


def pack(values: list[bool]) -> bytearray:
    packed = bytearray(len(values) // 8)
    for i, value in enumerate(values):
        packed[i // 8] |= value << i % 8
    return packed


def next_of(values: list[bool], start: int, stop: int, wanted: bool) -> int:
    return next((i for i in range(start, stop) if values[i] == wanted), stop)


@dataclass
class PlainSlot:
    """One cached block; the sets hold sector numbers."""

    data: bytearray
    valid: set[int] = field(default_factory=set)
    dirty: set[int] = field(default_factory=set)
    storing: set[int] = field(default_factory=set)
    #: Which bytes of a sector that is not valid were written, as places in the block.
    patches: dict[int, set[int]] = field(default_factory=dict)
    first_sequence: int = 0
    dirty_since: float = 0.0
    storing_sequence: int = 0
    storing_since: float = 0.0
    pins: int = 0
    # For the eviction.
    hits: int = 0
    main: bool = False
    ahead: bool = False
    counted: int = 0

    @property
    def unsaved(self) -> bool:
        return bool(self.dirty or self.storing)


class PlainEviction:
    """Which clean block goes: two queues of block numbers, oldest first, and a ring of ghosts."""

    PATIENCE = 128

    def __init__(self, slots: int, sectors_per_block: int, found: dict[int, PlainSlot]) -> None:
        self.slots, self.found = slots, found
        self.small: list[int] = []
        self.main: list[int] = []
        self.ring: list[int | None] = [None] * slots
        self.turn = self.moved = self.evictions = self.ghost_hits = 0
        self._sectors = sectors_per_block
        self._burst = sectors_per_block * min(16, 1 + slots // 64)

    def queue(self, slot: PlainSlot) -> list[int]:
        return self.main if slot.main else self.small

    def take_ghost(self, block: int) -> bool:
        if block not in self.ring:
            return False
        self.ring[self.ring.index(block)] = None
        self.ghost_hits += 1
        return True

    def use(self, block: int, count: int) -> None:
        """A number of the block's sectors are read or written."""
        slot = self.found[block]
        self.moved += count
        if slot.ahead:
            slot.ahead, slot.counted = False, self.moved
            if self.take_ghost(block):
                slot.hits = 2
        elif self.moved - slot.counted > self._burst:
            slot.hits, slot.counted = min(3, slot.hits + 1), self.moved

    def welcome(self, block: int, ahead: bool, known: bool) -> None:
        self.moved += self._sectors
        slot = self.found[block]
        slot.counted, slot.ahead, slot.main = self.moved, ahead, known
        self.queue(slot).append(block)

    def make_room(self) -> bool:
        """Evict a block; False if there is none to evict."""
        block = self._victim()
        if block is None:
            return False
        slot = self.found.pop(block)
        self.queue(slot).remove(block)
        if not slot.main and not slot.ahead:
            self.ring[self.turn] = block
            self.turn = (self.turn + 1) % self.slots
        self.evictions += 1
        return True

    def _preferred(self) -> list[int]:
        ahead = min(sum(slot.ahead for slot in self.found.values()), self.slots // 4)
        clean = len(self.small) + len(self.main)
        large = len(self.small) - ahead > max(clean // 10, min(clean // 2, 32))
        return self.small if large or not self.main else self.main

    def _victim(self) -> int | None:
        for _ in range(self.PATIENCE):
            queue = self._preferred()
            if not queue:
                return None
            slot = self.found[queue[0]]
            if not slot.pins:
                if slot.hits < (1 if slot.main else 2):
                    return queue[0]
                slot.hits, slot.main = slot.hits - 1 if slot.main else 0, True
            self.queue(slot).append(queue.pop(0))
        queue = self._preferred()
        other = self.small if queue is self.main else self.main
        return next((block for block in queue + other if not self.found[block].pins), None)


class PlainSlab:
    """The slab. A call that would wait for a pinned block raises AssertionError instead."""

    def __init__(self, block_size: int, slots: int, dirty_limit: int) -> None:
        self.block_size, self.slots, self.dirty_limit = block_size, slots, dirty_limit
        self.sequence = self.read_hits = self.read_misses = self.write_hits = self.write_misses = 0
        self.found: dict[int, PlainSlot] = {}
        self._sectors = block_size // SECTOR
        self.eviction = PlainEviction(slots, self._sectors, self.found)

    @property
    def used(self) -> int:
        return len(self.found)

    @property
    def clean(self) -> int:
        return self.used - self.unsaved

    @property
    def kept(self) -> int:
        return len(self.eviction.main)

    @property
    def pinned(self) -> int:
        return sum(bool(slot.pins) for slot in self.found.values())

    @property
    def ahead(self) -> int:
        return sum(slot.ahead for slot in self.found.values())

    @property
    def patches(self) -> int:
        return sum(len(slot.patches) for slot in self.found.values())

    @property
    def ghosts(self) -> int:
        return sum(block is not None for block in self.eviction.ring)

    @property
    def evictions(self) -> int:
        return self.eviction.evictions

    @property
    def ghost_hits(self) -> int:
        return self.eviction.ghost_hits

    @property
    def dirty(self) -> int:
        return sum(bool(slot.dirty) for slot in self.found.values())

    @property
    def storing(self) -> int:
        return sum(bool(slot.storing) for slot in self.found.values())

    @property
    def unsaved(self) -> int:
        return sum(slot.unsaved for slot in self.found.values())

    def read(self, offset: int, out: bytearray | memoryview) -> list[int]:
        missing, position = [], 0
        for block, start, stop in split(offset, len(out), self.block_size):
            if self.copy_out(block, start, memoryview(out)[position : position + stop - start]):
                self.read_hits += 1
            else:
                self.read_misses += 1
                missing.append(block)
            position += stop - start
        return missing

    def write(self, offset: int, data: Buffer, now: float) -> tuple[int, int]:
        return self._write(offset, bytes(data), now, is_data=True)

    def write_zeros(self, offset: int, length: int, now: float) -> tuple[int, int]:
        return self._write(offset, bytes(length), now, is_data=False)

    def _write(self, offset: int, data: bytes, now: float, *, is_data: bool) -> tuple[int, int]:
        position, changed = 0, False
        pieces = split(offset, len(data), self.block_size)
        assert not any(self.is_pinned(block) for block, _, _ in pieces), "it would wait"
        for block, start, stop in pieces:
            piece = data[position : position + stop - start]
            slot = self.found.get(block)
            edges = {at // SECTOR for at in (start, stop) if at % SECTOR}
            if slot is None and is_data and len(piece) == self.block_size and is_zero(piece):
                return position, ZERO_BLOCK
            if (slot is None or not slot.unsaved) and self.unsaved >= self.dirty_limit:
                return position, NO_SLOT
            fresh = edges if slot is None else edges - slot.valid - set(slot.patches)
            if self.patches + len(fresh) > max(2, self.slots * (1 + self._sectors // 32)):
                return position, NO_PATCH
            if slot is None:
                slot = self._allocate(block, ahead=False)
                if slot is None:
                    return position, NO_SLOT
                self.write_misses += 1
            else:
                self.write_hits += 1
            if not changed:
                changed = True
                self.sequence += 1
            slot.data[start:stop] = piece
            self.eviction.use(block, len(sectors(start, stop)))
            for sector in sectors(start, stop):
                self._learn(slot, sector, set(range(start, stop)))
            self._mark_dirty(block, sectors(start, stop), now)
            position += stop - start
        return position, DONE

    def _allocate(self, block: int, *, ahead: bool) -> PlainSlot | None:
        if len(self.found) == self.slots:
            if all(slot.unsaved or slot.pins for slot in self.found.values()):
                # The search for a victim passes pinned slots all the same.
                self.eviction._victim()
                return None
            known = not ahead and self.eviction.take_ghost(block)
            assert self.eviction.make_room()
        else:
            known = not ahead and self.eviction.take_ghost(block)
        slot = self.found[block] = PlainSlot(bytearray(self.block_size))
        self.eviction.welcome(block, ahead, known)
        return slot

    def _mark_dirty(self, block: int, written: set[int], now: float) -> None:
        slot = self.found[block]
        if not slot.unsaved:
            self.eviction.queue(slot).remove(block)
        if not slot.dirty:
            slot.first_sequence, slot.dirty_since = self.sequence, now
        slot.dirty |= written

    def _learn(self, slot: PlainSlot, sector: int, written: set[int]) -> None:
        """Note that some bytes of the block were written."""
        whole = set(range(sector * SECTOR, (sector + 1) * SECTOR))
        known = slot.patches.pop(sector, set()) | written & whole
        if sector in slot.valid or known == whole:
            slot.valid.add(sector)
        else:
            slot.patches[sector] = known

    def _knows(self, slot: PlainSlot, at: int) -> bool:
        return at // SECTOR in slot.valid or at in slot.patches.get(at // SECTOR, ())

    def next_held(self, block: int, stop: int) -> int:
        return next((one for one in range(block, stop) if self.contains(one)), stop)

    def contains(self, block: int) -> bool:
        return block in self.found

    def fully_valid(self, block: int) -> bool:
        return block in self.found and len(self.found[block].valid) == self._sectors

    def copy_out(self, block: int, start: int, out: bytearray | memoryview) -> bool:
        slot = self.found.get(block)
        if slot is None or not all(self._knows(slot, at) for at in range(start, start + len(out))):
            return False
        out[:] = slot.data[start : start + len(out)]
        self.eviction.use(block, len(sectors(start, start + len(out))))
        return True

    def copy_run(self, block: int, start: int, out: bytearray | memoryview) -> tuple[int, bool]:
        slot = self.found.get(block)
        if slot is None:
            return len(out), False
        known = [self._knows(slot, at) for at in range(start, start + len(out))]
        count = next_of(known, 0, len(known), not known[0]) if known else 0
        if not known or not known[0]:
            return count, False
        self.copy_out(block, start, memoryview(out)[:count])
        return count, True

    def fill(self, block: int, body: Buffer | None, ahead: bool = False) -> bool:
        slot = self.found.get(block)
        if slot is None:
            slot = self._allocate(block, ahead=ahead)
        elif not ahead:
            self.eviction.use(block, self._sectors)
        if slot is None:
            return False
        data = bytes(self.block_size) if body is None else bytes(body)
        for at in range(self.block_size):
            if not self._knows(slot, at):
                slot.data[at] = data[at]
        slot.valid, slot.patches = set(range(self._sectors)), {}
        return True

    def touch(self, block: int, now: float) -> bool:
        if not self.fully_valid(block):
            return False
        self.sequence += 1
        self.eviction.use(block, 1)
        self._mark_dirty(block, {0}, now)
        return True

    def dirty_blocks(self, limit: int) -> list[tuple[int, int, float, bool]]:
        return list(self._dirty_in_order())[: max(limit, 0)]

    def _dirty_in_order(self) -> Iterator[tuple[int, int, float, bool]]:
        for block, slot in sorted(self.found.items(), key=lambda item: item[1].first_sequence):
            if slot.dirty and not slot.storing:
                yield block, slot.first_sequence, slot.dirty_since, self.fully_valid(block)

    def oldest_dirty_sequence(self) -> int:
        return min((slot.first_sequence for slot in self.found.values() if slot.dirty), default=0)

    def begin_store(self, block: int) -> tuple[int, int, bytes | None]:
        slot = self.found.get(block)
        if slot is None or not slot.dirty or slot.storing or not self.fully_valid(block):
            raise ValueError(block)
        slot.storing, slot.dirty = slot.dirty, set()
        slot.storing_sequence, slot.storing_since = slot.first_sequence, slot.dirty_since
        return slot.storing_sequence, self.sequence, None if is_zero(slot.data) else bytes(slot.data)

    def end_store(self, block: int, stored: bool) -> None:
        slot = self.found.get(block)
        if slot is None or not slot.storing:
            raise ValueError(block)
        if not stored:
            slot.dirty |= slot.storing
            slot.first_sequence, slot.dirty_since = slot.storing_sequence, slot.storing_since
        slot.storing = set()
        if not slot.unsaved:
            self.eviction.queue(slot).append(block)

    def drop_from(self, block: int) -> int:
        dropped = [number for number in self.found if number >= block]
        assert not any(self.is_pinned(number) for number in dropped), "it would wait"
        if any(self.found[number].unsaved for number in dropped):
            raise ValueError(block)
        for number in dropped:
            self.eviction.queue(self.found[number]).remove(number)
            del self.found[number]
        return len(dropped)

    def is_pinned(self, block: int) -> bool:
        return block in self.found and self.found[block].pins > 0

    def pin(self, offset: int, length: int) -> tuple[int, list[bytes]]:
        """Pin, and return copies of what the views would show."""
        pieces = split(offset, length, self.block_size)
        fresh = 0
        for block, start, stop in pieces:
            slot = self.found.get(block)
            if slot is None or sectors(start, stop) - slot.valid:
                return MISSING, []
            fresh += not slot.pins
            if slot.pins == 255 or self.pinned + fresh > self.slots - self.dirty_limit - 1:
                return BUSY, []
        for block, start, stop in pieces:
            self.found[block].pins += 1
            self.eviction.use(block, -(-(stop - start) // SECTOR))
            self.read_hits += 1
        return DONE, [bytes(self.found[block].data[start:stop]) for block, start, stop in pieces]

    def unpin(self, offset: int, length: int) -> None:
        for block, _, _ in split(offset, length, self.block_size):
            self.found[block].pins -= 1


def sectors(start: int, stop: int) -> set[int]:
    """The sectors that bytes [start, stop) of a block touch."""
    return set(range(start // SECTOR, -(-stop // SECTOR)))


# ── read-ahead ───────────────────────────────────────────────────────────────────────────────────────────────────

_STREAMS = 16
_FIRST_WINDOW = 4
_READS_BEFORE = 2
_GAP_BLOCKS = 2
_BEHIND_BLOCKS = 8


@dataclass(slots=True)
class _Stream:
    """``expected``: offset of the next read. ``reached``: first block that has not been asked for."""

    expected: int
    reached: int
    reads: int = 1
    window: int = 0


class PlainReadAhead:
    """Twin of ``s3backer._readahead.ReadAhead``."""

    def __init__(self, block_size: int, most: int) -> None:
        self._block_size = block_size
        self._most = most
        self._streams: deque[_Stream] = deque(maxlen=_STREAMS)

    def read(self, offset: int, length: int) -> range:
        """Take notice of a read, in bytes, and return the blocks to fetch beside it; they may lie beyond the end."""
        if self._most < 1 or length < 1:
            return range(0)
        stream = self._find(offset)
        end = offset + length
        if stream is None:
            self._streams.append(_Stream(end, -(-end // self._block_size)))
            return range(0)
        if end <= stream.expected:
            return range(0)
        stream.expected = end
        stream.reads += 1
        if stream.reads <= _READS_BEFORE:
            return range(0)
        # Small reads within a block are no reason to go faster.
        here = -(-end // self._block_size)
        if here + stream.window // 2 < stream.reached:
            return range(0)
        stream.window = min(self._most, max(_FIRST_WINDOW, 2 * stream.window))
        start, stream.reached = max(here, stream.reached), here + stream.window
        return range(start, stream.reached)

    def _find(self, offset: int) -> _Stream | None:
        """Return the stream that a read at this offset belongs to, and remember that it was used last."""
        gap, behind = _GAP_BLOCKS * self._block_size, _BEHIND_BLOCKS * self._block_size
        for stream in self._streams:
            if stream.expected - behind <= offset <= stream.expected + gap:
                self._streams.remove(stream)
                self._streams.append(stream)
                return stream
        return None
