"""The volume as the fast lane sees it: calls that return at once and are finished later, by whoever has the answer.

A call's ``done`` is called exactly once, by any thread, without a lock, with an error or what it returns; it must
neither wait nor raise. A call that cannot begin now (the size is being changed) returns False and is made again.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable

from s3backer._fast import Slab
from s3backer._journal import Journal
from s3backer._readahead import ReadAhead
from s3backer.cache_calls import LESS_MEMORY, Request
from s3backer.driver import Driver
from s3backer.errors import DEFECT, Interrupted, ReadOnlyVolume, S3backerError, StoreError
from s3backer.gate import Gate
from s3backer.journal.keeper import Keeper
from s3backer.stores.base import Buffer

log = logging.getLogger(__name__)

Error = S3backerError | OSError | None


class Call:
    """One call under way, so that it can be called off. ``kind`` is whatever the caller wants to know of it.

    ``requests`` are those of the driver's that it waits for or has waited for, in any order: one that is begun by the
    end of another may be known before it.
    """

    __slots__ = ("cancelled", "kind", "requests")

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.requests: list[Request] = []
        self.cancelled = False


class Port:
    """What a Volume lends to the fast lane. ``end`` returns what callers may reach, in bytes."""

    def __init__(
        self,
        name: str,
        driver: Driver,
        slab: Slab,
        keeper: Keeper | None,
        gates: tuple[Gate, Gate],
        end: Callable[[], int],
        *,
        read_only: bool,
        write_through: bool,
    ) -> None:
        self.name = name
        self.slab = slab
        self.end = end
        #: What writes go to besides the slab.
        self.journal: Journal | None = None if keeper is None else keeper.journal.core
        self._driver = driver
        self._keeper = keeper
        self._calls, self._writes = gates
        #: Why no write is taken; empty: it is.
        self._refused = "was opened read-only" if read_only else ""
        self._write_through = write_through
        #: Called, and waited for, when what callers may reach has changed.
        self.on_end: Callable[[int], None] = lambda end: None
        #: Called, and waited for, when no write may be taken any more.
        self.on_lost: Callable[[], None] = lambda: None

    @property
    def read_ahead(self) -> ReadAhead:
        """Who recognises sequential readers."""
        return self._driver.read_ahead

    @property
    def pressure(self) -> int:
        """Unsaved blocks from which on ``wake`` is to be called."""
        return self._driver.high_water

    @property
    def slow_writes(self) -> bool:
        """Whether no write may be taken by the slab alone."""
        return bool(self._refused) or self._write_through

    def lose(self) -> None:
        """Take no write any more: the volume is somebody else's. When it returns, none is under way in the slab."""
        self._refused = "is somebody else's now"
        self.on_lost()

    def refusal(self) -> ReadOnlyVolume | None:
        """Return what a writer is told where no write is taken, None where it is."""
        return ReadOnlyVolume(f"{self.name} {self._refused}") if self._refused else None

    def prefetch(self, blocks: range) -> None:
        """Fetch blocks before they are asked for."""
        self._driver.prefetch(blocks)

    def wake(self) -> None:
        """Say that much is unsaved."""
        self._driver.wake()

    def read(self, call: Call, offset: int, length: int, done: Callable[[Error, Buffer], None]) -> bool:
        """Read up to ``length`` bytes: fewer at the end of the volume."""
        stay = self._enter(self._calls)
        if stay is None:
            return False

        def finish(error: S3backerError | None, content: Buffer) -> None:
            if stay.leave():
                done(error, content)

        length = min(length, self.end() - offset)
        with stay:
            if length > 0:
                self._wait_for(call, self._driver.begin_read(offset, length, finish))
            else:
                finish(None, b"")
        return True

    def write(
        self,
        call: Call,
        offset: int,
        data: Buffer,
        position: int,
        done: Callable[[Error, int], None],
        *,
        synced: bool = False,
    ) -> bool:
        """Write data, the first ``position`` bytes of which the slab has; ``done`` gets the bytes taken.

        ``synced``: when it survives, as after ``flush``.
        """
        stay = self._enter(self._calls, self._writes)
        if stay is None:
            return False
        room = self.end() - offset
        if self._refused or room <= 0 < len(data):
            stay.leave()
            done(self.refusal() or _no_space(), 0)
            return True
        taken = min(len(data), max(room, 0))

        def finish(error: S3backerError | None) -> None:
            if error is not None or not (synced or self._write_through):
                through(error)
                return
            try:
                if self._write_through:
                    self._wait_for(call, self._driver.begin_flush(through))
                else:
                    self._begin_flush(call, through)
            except Exception as failure:
                # Nobody else would answer.
                through(StoreError(f"the flush of a write cannot begin: {failure!r}", hint=LESS_MEMORY))

        def through(error: S3backerError | None) -> None:
            if stay.leave():
                done(error, taken)

        with stay:
            self._wait_for(call, self._driver.begin_write(offset, memoryview(data)[:taken], finish, position=position))
        return True

    def zero(self, call: Call, offset: int, length: int, done: Callable[[Error], None]) -> bool:
        """Make a range zeros; whole blocks of it cease to be objects. It must lie inside the volume."""
        stay = self._enter(self._calls, self._writes)
        if stay is None:
            return False
        if self._refused or offset + length > self.end():
            stay.leave()
            done(self.refusal() or _no_space())
            return True

        def finish(error: Error) -> None:
            if stay.leave():
                done(error)

        with stay:
            _Zeroing(self._driver, call, offset, length, finish, flush=self._write_through).go_on(None)
        return True

    def flush(self, call: Call, done: Callable[[Error], None]) -> bool:
        """Answer when everything written before survives: in the journal, without one in the bucket."""
        stay = self._enter(self._calls)
        if stay is None:
            return False

        def finish(error: S3backerError | None) -> None:
            if stay.leave():
                done(error)

        with stay:
            self._begin_flush(call, finish)
        return True

    def _begin_flush(self, call: Call, done: Callable[[S3backerError | None], None]) -> None:
        def in_bucket(done: Callable[[S3backerError | None], None]) -> None:
            self._wait_for(call, self._driver.begin_flush(done))

        if self._keeper is None:
            in_bucket(done)
        else:
            self._keeper.begin(done, in_bucket)

    def cancel(self, call: Call) -> None:
        """Call off what still waits; ``done`` gets Interrupted."""
        call.cancelled = True
        for request in call.requests:
            self._driver.cancel(request, Interrupted())

    def _wait_for(self, call: Call, request: Request) -> None:
        call.requests.append(request)
        if call.cancelled:
            self._driver.cancel(request, Interrupted())

    def _enter(self, *gates: Gate) -> _Stay | None:
        """Enter all of the gates; None, and none entered, while one is shut."""
        stay = _Stay()
        with stay:
            for gate in gates:
                if not gate.try_enter():
                    stay.leave()
                    return None
                stay.gates.append(gate)
        return stay


class _Stay:
    """A call's stay inside gates, and who may answer it: whoever ends the stay, nobody else.

    As a context: a call that meets a defect while it begins has left them, and raises it unless it was answered.
    """

    def __init__(self) -> None:
        self.gates: list[Gate] = []
        self._here = [True]

    def leave(self) -> bool:
        """Leave the gates; True for the one who does, False for whoever comes later."""
        try:
            self._here.pop()
        except IndexError:
            return False
        for gate in self.gates:
            gate.leave()
        return True

    def __enter__(self) -> None:
        """Begin the call."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> bool:
        if kind is None or self.leave():
            return False
        log.error("a call met a defect after it was answered: %r", error)
        return True


class _Zeroing:
    """Zeroing of a range, piece by piece. Pieces that end at once are done in a loop and not in each other."""

    def __init__(
        self, driver: Driver, call: Call, offset: int, length: int, done: Callable[[Error], None], *, flush: bool
    ) -> None:
        self._driver, self._call, self._done, self._flush = driver, call, done, flush
        self._offset, self._stop = offset, offset + length
        self._lock = threading.Lock()
        self._running = False
        self._ended = 0
        self._error: S3backerError | None = None

    def go_on(self, error: S3backerError | None) -> None:
        """Begin, or hear that a piece has ended."""
        with self._lock:
            self._error = error
            self._ended += 1
            if self._running:
                return
            self._running = True
        while True:
            with self._lock:
                if not self._ended:
                    self._running = False
                    return
                self._ended -= 1
            if self._error is not None or (self._offset == self._stop and not self._flush):
                self._done(self._error)
                return
            if self._call.cancelled:
                self._done(Interrupted())
                return
            try:
                request = self._begin_piece()
            except Exception as defect:
                # It may be that nobody else is here who could answer.
                log.exception("zeroing met a defect")
                self._done(StoreError(f"zeroing failed: {defect!r}", hint=DEFECT))
                return
            self._call.requests = [request]
            if self._call.cancelled:
                self._driver.cancel(request, Interrupted())

    def _begin_piece(self) -> Request:
        if self._offset == self._stop:
            self._flush = False
            return self._driver.begin_flush(self.go_on)
        length = min(self._driver.zero_step, self._stop - self._offset)
        self._offset += length
        return self._driver.begin_zero(self._offset - length, length, self.go_on)


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
