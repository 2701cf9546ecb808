"""What is known about which blocks have an object: unknown, absent or present.

Knowledge saves requests: a block known to be absent is read and zeroed without one. It is never needed
for correctness, so whatever does not fit the byte budget is forgotten and counts as unknown again.

    page     32,768 blocks; one of
               (no entry)   nothing is known
               None         every block is known to be absent: costs nothing however large the volume
               (K, P)       two bitmaps of 4 KiB: K = known, P = present (a subset of K)

All methods may be called from any thread and answer from memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Set

from s3backer import _fast

PAGE_BLOCKS = 32768
_PAGE_BYTES = PAGE_BLOCKS // 8
#: Two bitmaps and their Python objects.
_PAGE_COST = 2 * _PAGE_BYTES + 400

_Page = tuple[bytearray, bytearray]


class PresenceMap:
    """Knowledge about blocks, bounded by ``budget`` bytes."""

    def __init__(self, budget: int) -> None:
        self._lock = threading.Lock()
        self._pages: dict[int, _Page | None] = {}
        self._detailed = 0
        self._max_detailed = max(1, budget // _PAGE_COST)
        self._forgotten = 0

    @property
    def forgotten_pages(self) -> int:
        """How many pages were given up for the budget so far."""
        return self._forgotten

    def get(self, block: int) -> bool | None:
        """Return True for present, False for absent, None for unknown."""
        number, bit = divmod(block, PAGE_BLOCKS)
        with self._lock:
            if number not in self._pages:
                return None
            page = self._pages[number]
            if page is None:
                return False
            known, present = page
            if not known[bit >> 3] >> (bit & 7) & 1:
                return None
            return bool(present[bit >> 3] >> (bit & 7) & 1)

    def set(self, block: int, present: bool | None) -> None:
        """Record what is known about one block; None forgets it."""
        number, bit = divmod(block, PAGE_BLOCKS)
        mask = 1 << (bit & 7)
        with self._lock:
            if number in self._pages:
                if self._pages[number] is None and present is False:
                    return
            elif present is None:
                return
            known, present_bits = self._detail(number)
            if present is None:
                known[bit >> 3] &= ~mask
                present_bits[bit >> 3] &= ~mask
                return
            known[bit >> 3] |= mask
            if present:
                present_bits[bit >> 3] |= mask
            else:
                present_bits[bit >> 3] &= ~mask

    def learn(
        self,
        start: int,
        stop: int,
        present: Iterable[int],
        except_for: Set[int],
        *,
        unless_forgotten: int | None = None,
    ) -> None:
        """Take a listing of blocks [start, stop), in which ``present`` have objects and all others none.

        Only what is unknown is filled in; blocks in ``except_for`` stay as they are. Where the objects were told
        before, and not by ``present``, the listing is worth nothing once a page was forgotten:
        ``unless_forgotten`` is the number of forgotten pages up to which it holds.
        """
        found: dict[int, list[int]] = {}
        for block in present:
            found.setdefault(block // PAGE_BLOCKS, []).append(block % PAGE_BLOCKS)
        skipped: dict[int, list[int]] = {}
        for block in except_for:
            skipped.setdefault(block // PAGE_BLOCKS, []).append(block % PAGE_BLOCKS)
        for number in range(start // PAGE_BLOCKS, -(-stop // PAGE_BLOCKS)):
            base = number * PAGE_BLOCKS
            first, last = max(start - base, 0), min(stop - base, PAGE_BLOCKS)
            with self._lock:
                if unless_forgotten is not None and self._forgotten != unless_forgotten:
                    return
                self._learn_page(number, first, last, found.get(number, ()), skipped.get(number, ()))

    def _learn_page(self, number: int, first: int, last: int, present: Iterable[int], skipped: Iterable[int]) -> None:
        if number in self._pages and self._pages[number] is None:
            return
        listed, skip = _bits(present), _bits(skipped)
        whole = first == 0 and last == PAGE_BLOCKS
        if number not in self._pages and whole and not listed and not skip:
            self._pages[number] = None
            return
        known_bits, present_bits = self._detail(number)
        known = int.from_bytes(known_bits, "little")
        new = ((1 << last) - (1 << first)) & ~known & ~skip
        known |= new
        have = int.from_bytes(present_bits, "little") | (listed & new)
        if known == (1 << PAGE_BLOCKS) - 1 and not have:
            self._pages[number] = None
            self._detailed -= 1
            return
        known_bits[:] = known.to_bytes(_PAGE_BYTES, "little")
        present_bits[:] = have.to_bytes(_PAGE_BYTES, "little")

    def next_possibly_present(self, block: int, stop: int) -> int:
        """Return the first block in [block, stop) that is not known to be absent, else stop."""
        while block < stop:
            number, bit = divmod(block, PAGE_BLOCKS)
            base = number * PAGE_BLOCKS
            last = min(stop - base, PAGE_BLOCKS)
            with self._lock:
                if number not in self._pages:
                    return block
                page = self._pages[number]
                if page is not None:
                    known, present = page
                    candidate = min(
                        _fast.bitmap_next_clear(known, bit, last), _fast.bitmap_next_set(present, bit, last)
                    )
                    if candidate < last:
                        return base + candidate
            block = base + last
        return stop

    def count_present(self) -> int:
        """Return how many blocks are known to be present."""
        with self._lock:
            return sum(_fast.bitmap_count(page[1], 0, PAGE_BLOCKS) for page in self._pages.values() if page is not None)

    def count_absent(self) -> int:
        """Return how many blocks are known to be absent."""
        with self._lock:
            return sum(
                PAGE_BLOCKS
                if page is None
                else _fast.bitmap_count(page[0], 0, PAGE_BLOCKS) - _fast.bitmap_count(page[1], 0, PAGE_BLOCKS)
                for page in self._pages.values()
            )

    def _detail(self, number: int) -> _Page:
        """Return the page's bitmaps, making them (and room for them) as needed. The lock is held."""
        page = self._pages.get(number)
        if page is not None:
            return page
        if self._detailed >= self._max_detailed:
            victim = next(n for n, p in self._pages.items() if p is not None)
            del self._pages[victim]
            self._detailed -= 1
            self._forgotten += 1
        known = b"\xff" * _PAGE_BYTES if number in self._pages else bytes(_PAGE_BYTES)
        page = (bytearray(known), bytearray(_PAGE_BYTES))
        # A new place in the order: the page made longest ago is forgotten first.
        self._pages.pop(number, None)
        self._pages[number] = page
        self._detailed += 1
        return page


def _bits(positions: Iterable[int]) -> int:
    bitmap = bytearray(_PAGE_BYTES)
    for position in positions:
        bitmap[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(bitmap, "little")
