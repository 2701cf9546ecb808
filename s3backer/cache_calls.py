"""What goes into the block cache and comes out of it: calls, and the actions that they lead to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from s3backer.errors import S3backerError, StoreError
from s3backer.stores.base import Buffer

log = logging.getLogger(__name__)

#: Told how a call ended; None: well. Called by any thread, without a lock; must neither wait nor raise.
Done = Callable[[S3backerError | None], None]
#: Seconds after which what has failed is tried again at the latest.
_LONGEST_RETRY = 30.0
#: What to try when there is no memory.
LESS_MEMORY = "Use a smaller --memory."


def retry_pause(least: float, lasting: float) -> float:
    """Return the seconds until something is tried again that has failed for ``lasting`` seconds."""
    # A refusal costs money as well, and an outage may take days.
    return min(max(least, lasting / 10), _LONGEST_RETRY)


def answer(done: Done, error: S3backerError | None) -> None:
    """Tell somebody how it ended. A defect there keeps nobody else from being answered."""
    try:
        done(error)
    except Exception:
        log.exception("an answer met a defect")


@dataclass(slots=True, eq=False)
class Request:
    """One call that may have to wait. ``context`` belongs to the driver, which calls it with how it ended."""

    context: Done | None = None

    def disarm(self) -> None:
        """See to it that the caller's memory is not touched any more, wherever the request waits."""


@dataclass(slots=True, eq=False)
class ReadRequest(Request):
    """Fill ``buffer`` with ``length`` bytes from ``offset``.

    The buffer is all zero at the start, or empty: then it is made when there is something to put into it.
    """

    offset: int = 0
    buffer: bytearray = field(default_factory=bytearray)
    length: int = 0
    pending: int = 0
    failed: bool = False

    def __post_init__(self) -> None:
        self.length = self.length or len(self.buffer)

    def disarm(self) -> None:
        """Fill nothing any more."""
        self.failed = True

    def filled(self) -> bytearray:
        """Return the buffer, made if need be; StoreError if there is no memory for it."""
        if len(self.buffer) < self.length:
            try:
                self.buffer = bytearray(self.length)
            except MemoryError:
                raise StoreError(f"no memory for the {self.length} bytes of a read", hint=LESS_MEMORY) from None
        return self.buffer


@dataclass(slots=True, eq=False)
class WriteRequest(Request):
    """Write ``data`` at ``offset``, or ``length`` zero bytes where data is None."""

    offset: int = 0
    data: Buffer | None = None
    length: int = 0
    position: int = 0

    def disarm(self) -> None:
        """Write nothing any more."""
        self.position = self.length


@dataclass(slots=True, eq=False)
class TouchRequest(Request):
    """Make a block dirty without changing it, so that it is stored again."""

    block: int = 0


@dataclass(slots=True, eq=False)
class FlushRequest(Request):
    """Wait until everything written so far is in the bucket."""

    sequence: int = 0
    #: Flushes asked up to this one.
    number: int = 0


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read a block from the layout, then call ``fetched``.

    ``urgent``: somebody waits for it. ``ahead``: perhaps somebody soon will; otherwise it is part of a store.
    """

    block: int
    urgent: bool
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """Read what the journal has of a block that is left, then call ``looked``. Somebody waits for it."""

    block: int


@dataclass(frozen=True, slots=True)
class Hurry:
    """Somebody waits for a Fetch that was handed out as ``ahead``."""

    block: int


@dataclass(frozen=True, slots=True)
class Store:
    """Write a block to the layout (None: zeros), let the journal know, then call ``stored``.

    ``as_of``: every write up to this sequence is in the body.
    """

    block: int
    body: bytes | None
    as_of: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Sync the journal, then call ``synced``, whether or not that failed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The request is finished; ``error`` is None on success."""

    request: Request
    error: S3backerError | None


#: What takes its time.
Job = Fetch | Look | Store | Sync
Action = Job | Hurry | Reply


@dataclass(slots=True)
class CacheCounts:
    """Totals since the start, in blocks."""

    blocks_read: int = 0
    #: Blocks that had no object.
    zero_blocks_read: int = 0
    fetch_errors: int = 0
    blocks_written: int = 0
    #: Blocks whose object was removed.
    zero_blocks_written: int = 0
    store_errors: int = 0
    #: Reads, and writes of zeros, that needed no request because the block was known to have no object.
    zeros_read: int = 0
    zeros_skipped: int = 0
    memory_errors: int = 0
