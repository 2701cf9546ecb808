"""The threads around the block cache: the only place below the front ends that waits.

    callers ──► slab (hit: no lock of ours) ──► state machine under one lock ──► jobs ──► workers ──► layout, journal
                                                        ▲                                   │
                                                        └──────────── completions ──────────┘

Guarantees
  * No thread waits for the network while it holds the lock; a hit never waits for a miss.
  * Every call ends: the layout's requests end, with a result or an error, and each ends the calls that need it.
  * Neither starves the other: stores never take all workers, and of four workers one takes stores first. What is read
    ahead comes after both: see ``job_queue``.
  * What the journal has is read by a thread of its own: no request that hangs keeps that waiting.
  * ``close`` returns when everything is in the bucket and every thread has ended. While the store is away it
    waits; it gives nothing up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from s3backer import _fast
from s3backer._readahead import ReadAhead
from s3backer.backlog import Backlog
from s3backer.cache import BlockCache
from s3backer.cache_calls import (
    Action,
    Done,
    Fetch,
    FlushRequest,
    Hurry,
    Look,
    ReadRequest,
    Reply,
    Request,
    Store,
    Sync,
    TouchRequest,
    WriteRequest,
    answer,
)
from s3backer.cache_state import WritePolicy
from s3backer.clocks import Unchanged
from s3backer.errors import S3backerError, StoreError
from s3backer.failing import Failing
from s3backer.job_queue import JobQueue
from s3backer.journal.service import WriteJournal
from s3backer.layouts.base import Layout
from s3backer.stores.base import Buffer
from s3backer.work import Work

log = logging.getLogger(__name__)

#: Longest sleep of the timer in seconds. A write on the hot path wakes nobody, so age is seen this late at most.
_TICK = 0.5
#: Pause in seconds between two attempts of ``close`` to write everything back.
_CLOSE_RETRY = 1.0
#: Seconds without a block stored after which ``close`` leaves to the journal what cannot be stored as it is.
_STUCK = 20.0
#: One of so many workers takes stores before fetches: with all of them at fetches first, eight readers that miss
#: kept a flush of one block waiting for 11 s; with all at stores first, writers would do the same to readers.
_STORE_SHARE = 4
#: What a reader reads in order at most, in bytes a second, and the share of the newest figure in an average.
_FAST_READER = 1e9
_NEW_SHARE = 0.1
#: Blocks of a window that read-ahead may always have.
_LEAST_WINDOW = 8
#: Blocks zeroed by one request.
_ZERO_CHUNK = 4096


class Waiter:
    """What a caller waits on."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._error: S3backerError | None = None

    def done(self, error: S3backerError | None) -> None:
        """Let the caller go on."""
        self._error = error
        self._ended.set()

    def ended(self, seconds: float) -> bool:
        """Return whether the request has ended, having waited so long for it."""
        return self._ended.wait(seconds)

    def wait(self) -> None:
        """Return when the request has ended, or raise its error."""
        self._ended.wait()
        if self._error is not None:
            raise self._error


class Driver:
    """Runs one BlockCache with ``threads`` workers and one timer thread.

    ``stretch`` is asked now and then by what the write delay is to be multiplied. ``backlog``, ``held_until`` (on the
    clock): see the cache.
    """

    def __init__(
        self,
        slab: _fast.Slab,
        layout: Layout,
        *,
        threads: int,
        write_delay: float,
        stretch: Callable[[], float] = lambda: 1.0,
        clock: Callable[[], float] = time.monotonic,
        journal: WriteJournal | None = None,
        backlog: Backlog | None = None,
        held_until: float = 0.0,
    ) -> None:
        store_limit = max(1, threads * 3 // 4)
        policy = WritePolicy(delay=write_delay, store_limit=store_limit, high_water=slab.dirty_limit // 2)
        self.cache = BlockCache(slab, layout, policy, journal, backlog=backlog, held_until=held_until)
        self._journal = journal
        self._slab = slab
        self._clock = clock
        #: Unsaved blocks from which on the timer is to be woken.
        self.high_water = policy.high_water
        #: Bytes that one request makes zeros, so that the lock is never held for long.
        self.zero_step = _ZERO_CHUNK * slab.block_size
        self._lock = threading.Lock()
        #: None: no more will come.
        self._looks: SimpleQueue[Look | None] = SimpleQueue()
        # Some workers are always left to others than read-ahead.
        most_ahead = threads * 7 // 8
        self._jobs = JobQueue(most_ahead)
        # Blocks come out of order and a window grows when half of it was read, so twice as many as can be under way.
        # No more than a quarter of the cache, so that what is read ahead is still there when it is read.
        self._widest = min(2 * most_ahead, slab.slots // 4)
        #: Who recognises sequential readers.
        self.read_ahead = ReadAhead(slab.block_size, self._widest)
        #: Seconds that reading a block takes, a moving average.
        self._latency: float | None = None
        #: Whether workers take turns with taking stores first, as they are few.
        self._takes_turns = threads < _STORE_SHARE
        self._stretch = stretch
        self._wake = threading.Event()
        #: Why something was not stored that the journal has; set by ``close``.
        self.stuck: S3backerError | None = None
        #: What was unsaved when ``refuse_stuck`` last looked.
        self._left = Unchanged()
        self._failing = Failing(lambda: self.unsaved, self.cache.fails)
        self._work = Work(
            self.cache,
            layout,
            journal,
            self._failing,
            clock=clock,
            tell=self._call,
            fetched_in=self._learn_latency,
        )
        self._threads = [
            threading.Thread(target=self._run_worker, args=(n,), name=f"s3backer-worker-{n}", daemon=True)
            for n in range(threads)
        ]
        self._threads.append(threading.Thread(target=self._keep_time, name="s3backer-timer", daemon=True))
        if journal is not None:
            self._threads.append(
                threading.Thread(target=self._read_journal, name="s3backer-journal-reader", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────

    def read(self, offset: int, length: int) -> bytearray:
        """Return ``length`` bytes from ``offset``; both lie inside the volume."""
        buffer = bytearray(length)
        missing = self._slab.read(offset, buffer)
        ahead = self.read_ahead.read(offset, length)
        if missing:
            request = ReadRequest(offset=offset, buffer=buffer)

            def step(now: float) -> None:
                self.cache.read(request, missing)
                self.cache.prefetch(ahead)

            self._perform(request, step)
        elif ahead:
            self.prefetch(ahead)
        return buffer

    def prefetch(self, blocks: range) -> None:
        """Fetch blocks before they are asked for."""
        self._call(lambda now: self.cache.prefetch(blocks))

    def wake(self) -> None:
        """Let the timer look at once: much is unsaved."""
        self._wake.set()

    def go_on(self) -> None:
        """Let writers that wait for the journal try again: it has room, or its disk may have."""
        with self._lock:
            self.cache.try_disk()
        self.wake()

    def write(self, offset: int, data: Buffer) -> None:
        """Take ``data`` into the cache, slowed down while much is unsaved, and waiting while too much is."""
        count, reason = self.cache.writer.write(offset, data, self._clock())
        if reason == _fast.DONE and not self.cache.crowded:
            if self._slab.unsaved > self.high_water:
                self.wake()
            return
        request = WriteRequest(offset=offset, data=data, length=len(data), position=count)
        self._perform(request, partial(self.cache.write, request))

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros, without a request where it is known to be zeros already."""
        for start in range(offset, offset + length, self.zero_step):
            request = WriteRequest(offset=start, length=min(self.zero_step, offset + length - start))
            self._perform(request, partial(self.cache.write, request))

    def touch(self, block: int, first: Callable[[], None] = lambda: None) -> None:
        """Make a block dirty without changing it; call ``first`` before, while no store can begin."""
        request = TouchRequest(block=block)

        def step(now: float) -> None:
            first()
            self.cache.touch(request, now)

        self._perform(request, step)

    def flush(self) -> None:
        """Return when everything written before is in the bucket; raise if storing some of it failed."""
        request = FlushRequest()
        self._perform(request, partial(self.cache.flush, request))

    # ── calls that return at once ────────────────────────────────────────────────────────────────────

    def begin_read(self, offset: int, length: int, done: Callable[[S3backerError | None, Buffer], None]) -> Request:
        """Read ``length`` bytes from ``offset``; both lie inside the volume."""
        request = ReadRequest(offset=offset, length=length)

        def finish(error: S3backerError | None) -> None:
            content: Buffer = b""
            try:
                content = b"" if error else request.filled()
            except StoreError as failure:
                error = failure
            done(error, content)

        request.context = finish
        size = self._slab.block_size
        blocks = list(range(offset // size, -(-(offset + length) // size)))
        self._begin(request, lambda now: self.cache.read(request, blocks))
        return request

    def begin_write(self, offset: int, data: Buffer, done: Done, *, position: int = 0) -> Request:
        """Write data, of which the slab has the first ``position`` bytes. It stays as it is until it is done."""
        request = WriteRequest(done, offset=offset, data=data, length=len(data), position=position)
        self._begin(request, partial(self.cache.write, request))
        return request

    def begin_zero(self, offset: int, length: int, done: Done) -> Request:
        """Make a range of at most ``zero_step`` bytes zeros."""
        request = WriteRequest(done, offset=offset, length=length)
        self._begin(request, partial(self.cache.write, request))
        return request

    def begin_flush(self, done: Done) -> Request:
        """Flush; see ``flush``."""
        request = FlushRequest(done)
        self._begin(request, partial(self.cache.flush, request))
        return request

    def cancel(self, request: Request, error: S3backerError) -> None:
        """End a request that still waits with this error; one that has ended stays as it is."""
        self._call(lambda now: self.cache.cancel(request, error, now))

    def admit(self, tell: Callable[[], None]) -> None:
        """Let more be stored than the journal has, which has failed, once ``tell`` has let others know that.

        What it raises is raised, and the flushes that were waiting for it when it began get it, too.
        """
        asked = self.cache.flushes_asked
        try:
            tell()
        except S3backerError as error:
            failure = error
            self._call(lambda now: self.cache.not_admitted(asked, failure))
            raise
        self._call(self.cache.admit)

    def give_up(self, error: S3backerError) -> None:
        """Store nothing any more: whoever waits for that, and whoever comes, gets the error."""
        if self._journal is not None:
            # Nobody will replay it: a flush that the journal answers would promise what is not so.
            self._journal.core.give_up()
        self._call(lambda now: self.cache.give_up(error))

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def failure(self) -> S3backerError | None:
        """Why nothing, or some block, cannot be stored; None while write-back works."""
        return self.cache.given_up or self._failing.error

    @property
    def unsaved(self) -> int:
        """Blocks that are not in the bucket as written."""
        return self.cache.unsaved

    def close(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Write everything back, however long it takes, and end all threads. Once it was given up it only ends them.

        What cannot be stored because what the bucket has of it, or the journal, is damaged stays in the journal where
        there is one (``stuck``).
        ``progress`` is called with (blocks left, blocks at the start) now and then, and must not raise.
        """
        total = self.unsaved
        finished = threading.Event()
        flusher = threading.Thread(target=self._drain, args=(finished,), name="s3backer-drain", daemon=True)
        try:
            flusher.start()
        except (RuntimeError, MemoryError):
            # Without a thread for it nobody hears how far it is.
            self._drain(finished)
        else:
            while not finished.wait(0.2):
                if progress:
                    progress(self.unsaved, total)
            flusher.join()
        if progress:
            progress(0, total)
        self.abandon()

    def refuse_stuck(self) -> None:
        """Refuse the writers that wait for what can never be stored. For who waits for their end, again and again."""
        lasting, failure = self._left.lasts(self.unsaved, self._clock()), self._hopeless()
        if lasting >= _STUCK and failure is not None:
            self._call(lambda now: self.cache.refuse(failure))

    def abandon(self) -> None:
        """End all threads without writing anything back: only for a volume that was never written."""
        self._jobs.stop()
        self._looks.put(None)
        self._wake.set()
        for thread in self._threads:
            thread.join()

    def _drain(self, finished: threading.Event) -> None:
        left = Unchanged()
        try:
            # Once it is stuck nobody may work any more who could answer a flush.
            while self.cache.given_up is None and self.stuck is None:
                try:
                    self.flush()
                except Exception as error:
                    if not isinstance(error, (S3backerError, MemoryError)):
                        # What is not stored is not to be taken for stored.
                        log.exception("closing met a defect and goes on")
                    log.debug("closing: %s", error)
                    if left.lasts(self.unsaved, self._clock()) >= _STUCK:
                        self.stuck = self._hopeless()
                    if self.stuck is not None:
                        return
                    time.sleep(_CLOSE_RETRY)
                else:
                    return
        finally:
            finished.set()

    def _hopeless(self) -> S3backerError | None:
        """Return why nothing of what is unsaved can be stored, if the journal has it and waiting would not change that.

        A journal that has failed has no more than what is not in memory.
        """
        journal = self._journal
        if journal is None or (journal.core.failed and self._slab.unsaved):
            return None
        return self._failing.damage(self.unsaved)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _perform(self, request: Request, step: Callable[[float], None]) -> None:
        """Run a step that begins a request and wait until the request is answered."""
        waiter = Waiter()
        request.context = waiter.done
        self._begin(request, step)
        waiter.wait()

    def _begin(self, request: Request, step: Callable[[float], None]) -> None:
        """Run a step that begins a request; if it raises, what is left of the request does nothing any more."""
        try:
            self._call(step)
        except BaseException:
            # Not while another thread goes on with it.
            with self._lock:
                request.disarm()
            raise

    def _call(self, step: Callable[[float], None]) -> None:
        """Run one step of the state machine and carry out what it wants."""
        with self._lock:
            release = self.cache.next_release
            step(self._clock())
            replies = self._carry_out(self.cache.take_actions())
            if self.cache.next_release not in (release, None):
                self._wake.set()
        for reply in replies:
            assert reply.request.context is not None
            answer(reply.request.context, reply.error)

    def _carry_out(self, actions: list[Action]) -> list[Reply]:
        """Hand the jobs to the workers, and return what is to be answered when the lock is free."""
        jobs: list[Fetch | Store | Sync | Hurry] = []
        replies: list[Reply] = []
        for action in actions:
            match action:
                case Reply():
                    replies.append(action)
                case Look():
                    self._looks.put(action)
                case _:
                    jobs.append(action)
        self._jobs.put(jobs)
        return replies

    def _run_worker(self, number: int) -> None:
        turn = number
        while (job := self._jobs.take(stores_first=turn % _STORE_SHARE == 0)) is not None:
            try:
                match job:
                    case Fetch():
                        self._work.fetch(job)
                    case Store():
                        self._work.store(job)
                    case Sync():
                        self._work.sync()
            except Exception:
                # A worker that ends would let everybody wait for ever.
                log.exception("a worker met a defect and goes on")
            self._jobs.done(job)
            if self._takes_turns:
                turn += 1
            # The body must not stay alive while this thread waits for its next job.
            del job

    def _read_journal(self) -> None:
        while (look := self._looks.get()) is not None:
            try:
                self._work.look(look)
            except Exception:
                log.exception("the reader of the journal met a defect and goes on")

    def _learn_latency(self, seconds: float) -> None:
        """Let a reader's window be what a fast reader reads while one block comes."""
        before = self._latency
        latency = self._latency = seconds if before is None else before + (seconds - before) * _NEW_SHARE
        blocks = 2 * int(latency * _FAST_READER / self._slab.block_size)
        self.read_ahead.most = min(self._widest, max(_LEAST_WINDOW, blocks))

    def _keep_time(self) -> None:
        while not self._jobs.stopped:
            try:
                stretch = self._stretch()
                with self._lock:
                    now = self._clock()
                    self.cache.stretch(stretch)
                    wake = self.cache.next_wake(now)
                self._wake.wait(_TICK if wake is None else min(_TICK, max(wake - now, 0.01)))
                self._wake.clear()
                self._call(self.cache.tick)
            except Exception:
                log.exception("the timer met a defect and goes on")
                self._wake.wait(_TICK)
