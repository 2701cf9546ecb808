"""What the block cache remembers of what is under way: fetches, attempts to store, those that wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from s3backer import _fast, _journal
from s3backer.cache_calls import (
    Action,
    CacheCounts,
    FlushRequest,
    ReadRequest,
    Reply,
    Request,
    TouchRequest,
    WriteRequest,
    retry_pause,
)
from s3backer.errors import S3backerError
from s3backer.journal.service import WriteJournal
from s3backer.layouts.base import Layout

#: Seconds without the end of an attempt after which nothing seems to get stored, and a fetch seems to hang.
_SILENT = 5.0


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
    """A block on its way into the bucket: the newest write in it, and how many flushes had been asked before.

    ``touched``: it was to be stored whether or not it was written.
    """

    sequence: int
    flushes: int
    touched: bool = False


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
    # The first write that waits for this fetch to be stored, and since when; 0 if only callers wait.
    store_sequence: int = 0
    since: float = 0.0
    #: The backlog waits for it; and it began for that alone.
    left: bool = False
    unasked: bool = False

    @property
    def for_nobody(self) -> bool:
        """Whether nobody waited when it began: who came later gets an attempt of their own if it fails."""
        return self.ahead or self.unasked

    @property
    def stores(self) -> bool:
        """Whether it is under way because the block is to be stored."""
        return self.store_sequence > 0 or self.left

    def hangs(self, now: float) -> bool:
        """Return whether a block in memory waits for it for so long that it may never end."""
        return self.store_sequence > 0 and now - self.since > _SILENT


@dataclass(slots=True, eq=False)
class PendingLook:
    """What the journal has of a block is on its way into memory; and who waits for it."""

    readers: list[ReadRequest] = field(default_factory=list)
    stale: bool = False


class Outage:
    """What attempts to store blocks say of the store. ``enough``: blocks after whose failures nothing seems to work.

    While it lasts one block is tried at a time, so that an outage, or a refusal, costs little, and what is unsaved then
    needs no looking through for each call.
    """

    def __init__(self, enough: int, retry_delay: float) -> None:
        self._enough = enough
        self._retry_delay = retry_delay
        self._failed: set[int] = set()
        self._since = 0.0
        #: Whether the last attempt has failed, and when one ended last, or began with no other under way.
        self._refused = False
        self._moved_at = 0.0
        #: When the next block is to be tried, while it lasts.
        self.next_try = 0.0

    @property
    def lasts(self) -> bool:
        """Whether many blocks were tried since one was stored."""
        return len(self._failed) >= self._enough

    def away(self, now: float, *, busy: bool) -> bool:
        """Whether nothing seems to get stored: the last attempt has failed, or those under way do not end."""
        return self._refused or (busy and now - self._moved_at > _SILENT)

    def begin(self, now: float, *, busy: bool) -> None:
        """Hear that an attempt begins; ``busy``: others are under way."""
        if not busy:
            self._moved_at = now

    def failed(self, block: int, now: float) -> None:
        """Hear that the store did not take a block."""
        self._refused, self._moved_at = True, now
        if not self._failed:
            self._since = now
        if not self.lasts:
            self._failed.add(block)

    def pause(self, now: float) -> None:
        """Let some time pass before the next attempt, whyever the last one has failed."""
        self.next_try = now + retry_pause(self._retry_delay, now - self._since)

    def over(self, now: float) -> None:
        """Hear that something was stored."""
        self._refused, self._moved_at = False, now
        self._failed.clear()

    def hurry(self) -> None:
        """Try one at once: somebody waits for it."""
        self.next_try = 0.0


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


class Common:
    """What the parts of the cache have in common: what they work on, what they ask for, and who waits."""

    def __init__(self, slab: _fast.Slab, layout: Layout, journal: WriteJournal | None) -> None:
        self.slab = slab
        self.layout = layout
        self.journal = journal
        #: What is to be done, in order.
        self.actions: list[Action] = []
        self.counts = CacheCounts()
        self.flushes = Flushes()
        #: Who takes writes.
        self.writer: _fast.Slab | _journal.Journal = slab if journal is None else journal.core
        #: Those for which there was no room.
        self.parked: deque[WriteRequest | TouchRequest] = deque()
        #: Whether who was parked last waits until something was stored, and not for a file of the journal only.
        self.lacks_room = True

    def is_left(self, block: int) -> bool:
        """Whether something of a block is left to the journal."""
        return self.journal is not None and self.journal.core.is_left(block)

    def reply(self, request: Request, error: S3backerError | None) -> None:
        """Let a request be answered."""
        self.actions.append(Reply(request, error))
