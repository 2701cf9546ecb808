"""The block cache: a state machine between the volume and the layout.

Calls and completions go in, actions come out of ``take_actions``. It never blocks, sleeps, starts a thread or
reads a clock; ``now`` is passed in (seconds of any monotonic clock). One caller at a time: the driver holds
its lock around every call. Only the slab is shared with the hot path, and it locks itself.

    block            slab says                        what happens to it
    ───────────────  ───────────────────────────────  ─────────────────────────────────────────────────
    absent           no slot                          read → Fetch; write → slot with the written sectors
    partial          slot, some sectors invalid       read of those, or store → Fetch fills the gaps; what was
                                                      written of a sector stays
    clean            slot, all valid, not dirty       may be evicted at any time
    dirty            dirty sectors                    Store when old, on flush, under pressure
    storing          body copied, Store under way     a write makes it dirty again; it is stored again after
    left             anything                         some of it is left to the journal: see below

Guarantees
  * A write is answered when the slab, and the journal where there is one, holds it; a flush is answered when every
    write answered before it is in the bucket, and fails if storing one of those blocks fails in an attempt that began
    after the flush was asked; the failure of an earlier attempt says nothing about now. Failed blocks stay dirty and
    are tried again.
  * A block has at most one Fetch and one Store under way. A fetched body is used only if meanwhile no Store of that
    block began, and it was not left (it could be older than what has gone there); otherwise it is fetched again.
  * What the journal holds of a block is forgotten once the bucket holds that or a later write. A journal that has
    failed takes no more; writes then go to the slab alone.
  * Dirty data leaves the slab only into the bucket, or when the disk of the journal has it. When too much is dirty,
    writers wait, readers do not; before that they are slowed down, see ``throttle``.
  * Zeros known to be absent from the bucket cost no request, neither read nor written.
  * A block that is left has no slot in which a byte is known without what the journal has of it: whoever fetches it
    puts that over what the bucket has. The backlog brings such blocks into memory, where they are touched and stored.
    A flush is answered when nothing is left. These are blocks of an earlier mount; and where nothing can be stored,
    and memory is full, the oldest that the journal has on the disk, so that writers wait for the journal only. A block
    that was touched is not left before it was stored: the journal has its bytes, and not that it was touched.
  * Of a block that is left the bucket is asked only for what is neither in memory nor in the journal: a Look comes
    before the Fetch. What it finds is used on the same condition as what a Fetch brings.
  * Nothing is stored before ``held_until``: until then requests of an earlier mount may still arrive. Nothing is stored
    that the journal does not have, as it has failed or had no room, before that was admitted where others see it.
"""

from __future__ import annotations

from s3backer import _fast, _journal
from s3backer.backlog import Backlog
from s3backer.cache_calls import (
    LESS_MEMORY,
    Action,
    CacheCounts,
    FlushRequest,
    ReadRequest,
    Request,
    TouchRequest,
    WriteRequest,
)
from s3backer.cache_state import Common, WritePolicy
from s3backer.errors import S3backerError, StoreError
from s3backer.fetching import Fetching
from s3backer.journal.service import Part, WriteJournal
from s3backer.layouts.base import Layout
from s3backer.stores.base import Buffer
from s3backer.throttle import Throttle
from s3backer.write_back import WriteBack

#: Seconds until who waits tries again whether the journal's disk has room. Each time what does not fit may be stored.
_DISK_RETRY = 1.0
#: Why a write has to wait until blocks were stored, or a file of the journal is ready.
_NO_ROOM = frozenset({_fast.NO_SLOT, _journal.JOURNAL_FULL, _journal.JOURNAL_BUSY})


class BlockCache:
    """The state machine; see the module for states and guarantees. Fetching and writing back are its parts."""

    def __init__(
        self,
        slab: _fast.Slab,
        layout: Layout,
        policy: WritePolicy,
        journal: WriteJournal | None = None,
        *,
        backlog: Backlog | None = None,
        held_until: float = 0.0,
    ) -> None:
        self._slab = slab
        self._journal = journal
        self._layout = layout
        self._common = Common(slab, layout, journal)
        self._parked = self._common.parked
        self._flushes = self._common.flushes
        self._fetching = Fetching(self._common)
        self._write_back = WriteBack(self._common, self._fetching, policy, backlog, held_until)
        self._throttle = Throttle()
        #: When those that wait go on at the earliest, as the journal's disk had no room; 0 where it had.
        self._go_on_at = 0.0
        self._look_at_room(0.0)

    # ── what the driver asks ─────────────────────────────────────────────────────────────────────────

    def take_actions(self) -> list[Action]:
        """Return what is to be done, in order; each action is handed out once."""
        actions = self._common.actions.copy()
        self._common.actions.clear()
        return actions

    @property
    def counts(self) -> CacheCounts:
        """Totals since the start."""
        return self._common.counts

    @property
    def writer(self) -> _fast.Slab | _journal.Journal:
        """Who takes writes."""
        return self._common.writer

    @property
    def given_up(self) -> S3backerError | None:
        """Why nothing is stored any more."""
        return self._write_back.given_up

    @property
    def admitted(self) -> bool:
        """Whether what is stored may be more than the journal has."""
        return self._write_back.admitted

    def fails(self, block: int) -> bool:
        """Return whether a block could not be stored when that was last tried, and still has to be."""
        return self._write_back.fails(block)

    @property
    def unsaved(self) -> int:
        """Blocks that are not in the bucket as written."""
        return self._slab.unsaved if self._journal is None else max(self._slab.unsaved, self._journal.core.blocks)

    @property
    def idle(self) -> bool:
        """True when no request waits and nothing is under way."""
        waits = self._parked or self._throttle or self._flushes
        return not waits and self._fetching.idle and self._write_back.idle

    @property
    def crowded(self) -> bool:
        """Whether what was just written has to be told to ``write``, although all of it was taken."""
        return self._slab.crowded or (isinstance(self.writer, _journal.Journal) and self.writer.crowded)

    @property
    def writers(self) -> str:
        """How writers get on, in words."""
        if self._parked and self._go_on_at:
            return "wait for room on the journal's disk"
        if self._parked and self._common.lacks_room:
            return "wait for room"
        return "are slowed down" if self._throttle.level > 0 else "go on"

    @property
    def slowed(self) -> int:
        """How many writes were answered later than they were taken."""
        return self._throttle.count

    @property
    def next_release(self) -> float | None:
        """When the next of those that wait now is to be answered; None if none waits."""
        return self._throttle.next_due

    def next_wake(self, now: float) -> float | None:
        """Return when ``tick`` has work to do, None if only a completion or a call can bring some."""
        go_on_at = self._go_on_at if self._parked and self._go_on_at else None
        times = (self._throttle.next_due, self._write_back.next_store(now), go_on_at)
        return min((time for time in times if time is not None), default=None)

    def stretch(self, factor: float) -> None:
        """Let blocks stay dirty for ``factor`` times their delay, so that more writes meet in one store."""
        self._write_back.stretch(factor)

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────

    def read(self, request: ReadRequest, missing: list[int]) -> None:
        """Go on with a read of which the slab lacked the ``missing`` blocks; a Reply follows."""
        self._fetching.read(request, missing)

    def prefetch(self, blocks: range) -> None:
        """Fetch those of the blocks that are neither known nor under way; those beyond the end do no harm."""
        self._fetching.prefetch(blocks)

    def write(self, request: WriteRequest, now: float) -> None:
        """Start a write, or go on with it; a Reply follows when the slab has it, and later where room is scarce."""
        self._advance(request, now)
        self._schedule(now)

    def touch(self, request: TouchRequest, now: float) -> None:
        """Start a touch; a Reply follows when the block is dirty."""
        self._advance(request, now)
        self._schedule(now)

    def give_up(self, error: S3backerError) -> None:
        """Store nothing any more; who waits for it gets the error, and so does who comes."""
        self._write_back.given_up = error
        for waiting in self._flushes.take():
            self._common.reply(waiting, error)
        for writer in self._throttle.take(lambda writer, due: True):
            self._common.reply(writer, error)
        self.refuse(error)

    def refuse(self, error: S3backerError) -> None:
        """Answer the writers that wait with an error."""
        for waiting in self._parked:
            self._common.reply(waiting, error)
        self._parked.clear()

    def flush(self, request: FlushRequest, now: float) -> None:
        """Start a flush; a Reply follows when all writes answered so far are in the bucket, or one failed."""
        self._flushes.ask(request, self._slab.sequence)
        if not self._write_back.unsaved_up_to(request.sequence):
            self._common.reply(request, None)
            return
        if self.given_up is not None:
            self._common.reply(request, self.given_up)
            return
        self._flushes.add(request)
        self._write_back.hurry(now)
        self._schedule(now)

    def admit(self, now: float) -> None:
        """Let more be stored than the journal has: others know that by now."""
        self._write_back.admitted = True
        self._schedule(now)

    @property
    def flushes_asked(self) -> int:
        """How many flushes have been begun."""
        return self._flushes.asked

    def not_admitted(self, flushes: int, error: S3backerError) -> None:
        """Others cannot know it yet: so many flushes were begun before that was tried, and get the error."""
        if self._write_back.hides_a_failure:
            for flush in self._flushes.take(lambda flush: flush.number <= flushes):
                self._common.reply(flush, error)

    def tick(self, now: float) -> None:
        """Let time pass, or a file of the journal become ready: store what has become due."""
        self._settle(now)
        self._schedule(now)

    def try_disk(self) -> None:
        """Let the next ``tick`` look whether the journal's disk has room for those that wait for that."""
        self._go_on_at = 0.0

    def cancel(self, request: Request, error: S3backerError, now: float) -> None:
        """Answer a request that still waits with an error. What a write has written stays; no more of it follows.

        A write that is only held back has been made, and is answered so.
        """
        for writer in self._throttle.take(lambda writer, due: writer is request):
            self._common.reply(writer, None)
        match request:
            case ReadRequest(failed=False) if request.pending:
                request.failed = True
            case FlushRequest() if request in self._flushes:
                self._flushes.take(lambda flush: flush is request)
            case WriteRequest() if request in self._parked:
                self._parked.remove(request)
            case WriteRequest() if (fetch := self._fetching.awaited_by(request)) is not None:
                fetch.writers.remove(request)
            case _:
                return
        self._common.reply(request, error)
        self._settle(now)

    # ── completions ──────────────────────────────────────────────────────────────────────────────────

    def fetched(self, block: int, body: Buffer | None, error: S3backerError | None, now: float) -> None:
        """A Fetch has ended."""
        fetch = self._fetching.fetched(block, body, error)
        for writer in fetch.writers:
            if error is None or fetch.for_nobody:
                self._advance(writer, now)
            else:
                self._common.reply(writer, error)
        self._write_back.fetched(block, fetch, error, now)
        if self._parked:
            # What was known of its sectors in part needs no remembering any more, or can be left to the journal.
            self._settle(now)
        self._schedule(now)

    def looked(self, block: int, part: Part | None, error: S3backerError | None) -> None:
        """A Look has ended, with a part or an error."""
        self._fetching.looked(block, part, error)

    def stored(self, block: int, error: S3backerError | None, now: float, *, noted: bool = True) -> None:
        """A Store has ended; ``noted``: the journal has a note of it."""
        self._write_back.stored(block, error, now, noted=noted)
        self.tick(now)

    def synced(self, now: float) -> None:
        """A Sync has ended."""
        self._write_back.synced()
        self.tick(now)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, request: WriteRequest | TouchRequest, now: float) -> bool:
        """Carry the request as far as it goes; return False if it waits for a slot."""
        if self.given_up is not None:
            self._common.reply(request, self.given_up)
            return True
        try:
            block = self._touch(request, now) if isinstance(request, TouchRequest) else self._write(request, now)
        except MemoryError:
            # It waits nowhere any more: nobody else would answer it.
            self.counts.memory_errors += 1
            self._common.reply(request, StoreError("no memory for a write", hint=LESS_MEMORY))
            return True
        if block is None:
            self._look_at_room(now)
            if not (isinstance(request, WriteRequest) and self._throttle.hold(request, now)):
                self._common.reply(request, None)
            return True
        if block < 0:
            self._parked.append(request)
            return False
        self._fetching.fetch(block, urgent=True).writers.append(request)
        return True

    _NO_SLOT = -1

    def _touch(self, request: TouchRequest, now: float) -> int | None:
        block = request.block
        if self._slab.touch(block, now):
            self._write_back.touched(block)
            return None
        if not self._layout.known_absent(block):
            return block
        if not self._slab.fill(block, None):
            self._common.lacks_room = True
            return self._NO_SLOT
        self._slab.touch(block, now)
        self._write_back.touched(block)
        return None

    def _write(self, request: WriteRequest, now: float) -> int | None:
        """Return None when done, a block that has to be fetched first, or _NO_SLOT."""
        size = self._slab.block_size
        while request.position < request.length:
            at = request.offset + request.position
            if request.data is None:
                if self._skip_absent(request):
                    continue
                count, reason = self.writer.write_zeros(
                    at, min(request.length - request.position, size - at % size), now
                )
            else:
                count, reason = self.writer.write(at, memoryview(request.data)[request.position :], now)
            request.position += count
            block = (at + count) // size
            if reason == _fast.ZERO_BLOCK:
                if self._layout.known_absent(block) and block not in self._write_back.unnoted:
                    self.counts.zeros_skipped += 1
                    request.position += size
                    continue
                count, reason = self.writer.write_zeros(block * size, size, now)
                request.position += count
            elif reason == _fast.NO_PATCH:
                absent = self._layout.known_absent(block)
                if absent and self._slab.fill(block, None):
                    continue
                if not (absent or isinstance(self.writer, _journal.Journal)):
                    return block
                if self._write_back.spill_hanging(now):
                    continue
                # Others can be left to the journal, or stored soon.
                reason = _fast.NO_SLOT
            if reason == _journal.JOURNAL_FAILED:
                self._common.writer = self._slab
            elif reason in _NO_ROOM and not (reason == _fast.NO_SLOT and self._write_back.spill(now)):
                self._common.lacks_room = reason != _journal.JOURNAL_BUSY
                if not self._common.lacks_room and self._journal is not None and self._journal.core.no_room:
                    # Memory has taken it, and stores it, each time.
                    self._go_on_at = now + _DISK_RETRY
                return self._NO_SLOT
        return None

    def _skip_absent(self, request: WriteRequest) -> bool:
        """Pass over whole blocks that are zeros already; return True if the request moved."""
        size = self._slab.block_size
        at = request.offset + request.position
        stop = (request.offset + request.length) // size
        if at % size or at // size >= stop:
            return False
        block = at // size
        if block in self._write_back.unnoted:
            return False
        stop = self._slab.next_held(block, self._layout.next_possibly_present(block, stop))
        if self._write_back.unnoted:
            stop = next((other for other in range(block, stop) if other in self._write_back.unnoted), stop)
        moved = stop - block
        self.counts.zeros_skipped += moved
        request.position += moved * size
        return moved > 0

    # ── what follows ─────────────────────────────────────────────────────────────────────────────────

    def _schedule(self, now: float) -> None:
        self._write_back.schedule(now, self._settle)

    def _look_at_room(self, now: float) -> None:
        """Let writers be as fast as what there is room for allows.

        Unsaved blocks slow nobody down up to halfway between where stores are hurried and where writers wait.
        """
        used, limit = 0.0, self._slab.dirty_limit
        if isinstance(self.writer, _journal.Journal):
            used = (self.writer.fill - _journal.CROWDED_FILL) / (1 - _journal.CROWDED_FILL)
        self._slab.crowded_from = limit
        if not self._write_back.spills(now):
            free = self._slab.crowded_from = (self._write_back.policy.high_water + limit) // 2
            used = max(used, (self._slab.unsaved - free) / max(limit - free, 1))
        self._throttle.note(min(max(used, 0.0), 1.0), now)

    def _settle(self, now: float) -> None:
        """Answer the flushes that are satisfied, and writers that were held back, and let parked ones go on."""
        self._look_at_room(now)
        for writer in self._throttle.take(lambda writer, due: due <= now):
            self._common.reply(writer, None)
        for flush in self._flushes.take(lambda flush: not self._write_back.unsaved_up_to(flush.sequence)):
            self._common.reply(flush, None)
        if now >= self._go_on_at:
            self._go_on_at = 0.0
        while self._parked and not self._go_on_at:
            request = self._parked.popleft()
            if not self._advance(request, now):
                self._parked.rotate(1)
                break
