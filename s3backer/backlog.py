"""The backlog: blocks of which only the journal has what is not in the bucket.

They are of an earlier mount, or had to make room in memory while nothing could be stored. It says which of them comes
into memory next, to be stored. The oldest come first, so that files of the journal become free; what could not be
fetched comes again when all others had their turn.

Never waits, reads no clock: ``now`` is passed in, as to the cache.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable

from s3backer.cache_calls import retry_pause

#: Blocks that are added before it looks which of them are in it twice.
_MOST_ADDED = 1024
#: Seconds until it goes on after a failure, at first.
_RETRY = 1.0


class Backlog:
    """``blocks``: all that were left, oldest first; ``is_left``: of which something is in the journal only, still."""

    def __init__(self, blocks: Iterable[int], is_left: Callable[[int], bool]) -> None:
        self._blocks = array("Q", blocks)
        self._position = 0
        self._tidy_at = 2 * len(self._blocks) + _MOST_ADDED
        self._is_left = is_left
        self._failed: deque[int] = deque()
        #: When it goes on, and since when it fails.
        self._retry_at = 0.0
        self._failing_since: float | None = None

    def add(self, block: int) -> None:
        """Let a block be brought into memory after all others that wait for it."""
        try:
            if len(self._blocks) >= self._tidy_at:
                # A block that is written again and again comes as often.
                waiting = dict.fromkeys(self._blocks[self._position :])
                self._blocks, self._position = array("Q", filter(self._is_left, waiting)), 0
                self._tidy_at = 2 * len(self._blocks) + _MOST_ADDED
            self._blocks.append(block)
        except MemoryError:
            # That list grows by little at a time.
            self._failed.append(block)

    def next(self, now: float) -> int | None:
        """Return the block that is next, and not again unless that fails; None if there is none now."""
        if now < self._retry_at:
            return None
        while self._position < len(self._blocks):
            block = self._blocks[self._position]
            self._position += 1
            if self._is_left(block):
                return block
        while self._failed:
            block = self._failed.popleft()
            if self._is_left(block):
                return block
        return None

    def failed(self, block: int, now: float) -> None:
        """Hear that a block could not be fetched, or stored: it comes again later, and so does all else."""
        self._failed.append(block)
        if self._failing_since is None:
            self._failing_since = now
        self._retry_at = now + retry_pause(_RETRY, now - self._failing_since)

    def succeeded(self) -> None:
        """Hear that something was stored."""
        self._failing_since = None

    def hurry(self) -> None:
        """Go on at once: somebody waits for it."""
        self._retry_at = 0.0

    def next_wake(self, now: float) -> float | None:
        """Return when ``next`` is worth being asked; None if never again."""
        return max(now, self._retry_at) if self._position < len(self._blocks) or self._failed else None
