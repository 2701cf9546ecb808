"""What the block cache remembers of what is under way: fetches, attempts to store, and the flushes that wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from s3backer.cache_calls import FlushRequest, ReadRequest, TouchRequest, WriteRequest


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """When blocks are written back.

    ``delay``: seconds a block may stay dirty. ``store_limit``: blocks stored at once. ``high_water``: unsaved
    blocks above which the oldest go out without waiting for their age. ``retry_delay``: seconds before a block
    whose store failed is tried again; a tenth of the time for which it has failed, where that is more.
    """

    delay: float
    store_limit: int
    high_water: int
    retry_delay: float = 1.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """A block on its way into the bucket: the newest write in it, and how many flushes had been asked before."""

    sequence: int
    flushes: int


@dataclass(slots=True, eq=False)
class PendingFetch:
    """A block on its way into memory, and who waits for it. ``flushes``: how many had been asked before."""

    flushes: int
    #: It began before anybody asked for the block.
    ahead: bool = False
    hurried: bool = False
    readers: list[ReadRequest] = field(default_factory=list)
    writers: list[WriteRequest | TouchRequest] = field(default_factory=list)
    stale: bool = False
    # The first write that waits for this fetch to be stored; 0 if only callers wait.
    store_sequence: int = 0
    #: The backlog waits for it; and it began for that alone.
    left: bool = False
    unasked: bool = False

    @property
    def stores(self) -> bool:
        """Whether it is under way because the block is to be stored."""
        return self.store_sequence > 0 or self.left


class Flushes:
    """The flushes that wait, in the order in which they were asked. ``asked``: how many there were at all."""

    def __init__(self) -> None:
        self._waiting: list[FlushRequest] = []
        self.asked = 0

    def __iter__(self) -> Iterator[FlushRequest]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def sequence(self) -> int:
        """Up to which write somebody waits; 0 if nobody does."""
        return max((flush.sequence for flush in self._waiting), default=0)

    def ask(self, request: FlushRequest, sequence: int) -> None:
        """Number a flush of all writes up to a sequence."""
        self.asked += 1
        request.sequence, request.number = sequence, self.asked

    def add(self, request: FlushRequest) -> None:
        """Let it wait."""
        self._waiting.append(request)

    def take(self, which: Callable[[FlushRequest], bool] = lambda flush: True) -> list[FlushRequest]:
        """Let some of them wait no longer, and return them."""
        taken: list[FlushRequest] = []
        kept: list[FlushRequest] = []
        for flush in self._waiting:
            (taken if which(flush) else kept).append(flush)
        self._waiting = kept
        return taken

    def fail(self, attempt: Attempt) -> tuple[list[FlushRequest], bool]:
        """Take those that were asked before an attempt that failed; return them, and whether later ones wait for it."""
        failed = self.take(lambda flush: flush.sequence >= attempt.sequence and flush.number <= attempt.flushes)
        return failed, any(flush.sequence >= attempt.sequence for flush in self._waiting)
