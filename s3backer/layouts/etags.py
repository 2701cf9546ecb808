"""The ETags of a volume's objects, as far as they fit a byte budget: what conditional writes are made with.

    page     1024 blocks; 16 bytes each for an ETag of 32 hex digits (zeros: not known), any other one beside it

What does not fit is forgotten, the page used longest ago first: it costs a HEAD before the block's next write, never
correctness. All methods may be called from any thread and answer from memory.
"""

from __future__ import annotations

import re
import threading

_PAGE_BLOCKS = 1024
_ETAG_BYTES = 16
_PAGE_COST = _PAGE_BLOCKS * _ETAG_BYTES + 300
_NONE = bytes(_ETAG_BYTES)
_HEX = re.compile(r'"[0-9a-f]{32}"')


class _Page:
    def __init__(self) -> None:
        self.plain = bytearray(_PAGE_BLOCKS * _ETAG_BYTES)
        self.others: dict[int, str] = {}


class ETags:
    """ETags by block, bounded by ``budget`` bytes. Those that are no 32 hex digits are rare, and not counted."""

    def __init__(self, budget: int) -> None:
        self._lock = threading.Lock()
        #: In the order in which they were last written to.
        self._pages: dict[int, _Page] = {}
        self._most = max(1, budget // _PAGE_COST)

    def get(self, block: int) -> str | None:
        """Return the ETag of a block's object, None if it is not known."""
        number, place = divmod(block, _PAGE_BLOCKS)
        with self._lock:
            page = self._pages.get(number)
            if page is None:
                return None
            if place in page.others:
                return page.others[place]
            plain = page.plain[place * _ETAG_BYTES : (place + 1) * _ETAG_BYTES]
            return None if plain == _NONE else f'"{plain.hex()}"'

    def set(self, block: int, etag: str | None) -> None:
        """Record an ETag, or that it is not known; an empty one, as some listings have, says nothing."""
        etag = etag or None
        number, place = divmod(block, _PAGE_BLOCKS)
        with self._lock:
            page = self._pages.pop(number, None)
            if page is None:
                if etag is None:
                    return
                if len(self._pages) >= self._most:
                    del self._pages[next(iter(self._pages))]
                page = _Page()
            self._pages[number] = page
            page.others.pop(place, None)
            plain = _NONE
            if etag is not None and _HEX.fullmatch(etag):
                plain = bytes.fromhex(etag[1:-1])
            if etag is not None and plain == _NONE:
                page.others[place] = etag
            page.plain[place * _ETAG_BYTES : (place + 1) * _ETAG_BYTES] = plain
