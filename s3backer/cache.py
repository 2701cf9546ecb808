"""The block cache: a state machine between the volume and the layout.

Calls and completions go in, actions come out of ``take_actions``. It never blocks, sleeps, starts a thread or
reads a clock; ``now`` is passed in (seconds of any monotonic clock). One caller at a time: the driver holds
its lock around every call. Only the slab is shared with the hot path, and it locks itself.

    block            slab says                        what happens to it
    ───────────────  ───────────────────────────────  ─────────────────────────────────────────────────
    absent           no slot                          read → Fetch; write → slot with the written sectors
    partial          slot, some sectors invalid       read of those, or store → Fetch fills the gaps
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
  * A block that is left has no slot in which a sector is valid without what the journal has of it: whoever fetches it
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

from collections import deque
from dataclasses import replace

from s3backer import _fast, _journal
from s3backer.backlog import Backlog
from s3backer.cache_calls import (
    LESS_MEMORY,
    Action,
    CacheCounts,
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
    retry_pause,
)
from s3backer.cache_state import Attempt, Flushes, Outage, PendingFetch, PendingLook, WritePolicy
from s3backer.errors import ObjectVanished, S3backerError, StoreError
from s3backer.journal.service import Part, WriteJournal
from s3backer.layouts.base import Layout
from s3backer.stores.base import Buffer
from s3backer.throttle import Throttle

#: How full a journal is when the oldest blocks go out without waiting for their age.
_HIGH_FILL = 0.5
#: Bytes of which memory knows as a whole whether it has them.
_SECTOR = 512
_ZEROS = bytes(_SECTOR)
#: Blocks that are spilled at once.
_SPILLED = 64
#: Seconds until who waits tries again whether the journal's disk has room. Each time what does not fit may be stored.
_DISK_RETRY = 1.0
#: Why a write has to wait until blocks were stored, or a file of the journal is ready.
_NO_ROOM = frozenset({_fast.NO_SLOT, _journal.JOURNAL_FULL, _journal.JOURNAL_BUSY})


class BlockCache:
    """The state machine; see the module for states and guarantees."""

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
        self.counts = CacheCounts()
        self._slab = slab
        self._journal = journal
        self._backlog = backlog
        self._held_until = held_until
        #: Whether the journal is being synced, for more to be left to it; and at how many blocks it looks for that.
        self._syncing = False
        self._spill_reach = _SPILLED
        #: Whether what is stored may be more than the journal has.
        self.admitted = journal is None
        #: Who takes writes.
        self.writer: _fast.Slab | _journal.Journal = slab if journal is None else journal.core
        self._layout = layout
        self._policy = self._asked_policy = policy
        self._block_size = slab.block_size
        self._actions: list[Action] = []
        self._fetches: dict[int, PendingFetch] = {}
        self._looks: dict[int, PendingLook] = {}
        self._storing: dict[int, Attempt] = {}
        self._storing_zeros: set[int] = set()
        #: Blocks that were touched, and not stored since.
        self._touched: set[int] = set()
        #: Blocks that are in the bucket as the journal perhaps never had them, without a note of that: who replays it
        #: finds what they were before. Zeros that are written there are not passed over.
        self._unnoted: set[int] = set()
        #: When blocks whose store failed are tried again, in the order in which that was.
        self._retry_at: dict[int, float] = {}
        self._outage = Outage(policy.store_limit, policy.retry_delay)
        #: Whether a block that is left was to be tried first in an outage, the last time.
        self._left_first = False
        #: Since when storing a block fails.
        self._failing: dict[int, float] = {}
        self._parked: deque[WriteRequest | TouchRequest] = deque()
        self._throttle = Throttle()
        #: Whether who was parked last waits until something was stored, and not for a file of the journal only.
        self._lacks_room = True
        #: When those that wait go on at the earliest, as the journal's disk had no room; 0 where it had.
        self._go_on_at = 0.0
        self._flushes = Flushes()
        #: Why nothing is stored any more.
        self.given_up: S3backerError | None = None
        self._look_at_room(0.0)

    # ── what the driver asks ─────────────────────────────────────────────────────────────────────────

    def take_actions(self) -> list[Action]:
        """Return what is to be done, in order; each action is handed out once."""
        actions, self._actions = self._actions, []
        return actions

    def fails(self, block: int) -> bool:
        """Return whether a block could not be stored when that was last tried, and still has to be."""
        return block in self._failing or (self._journal is not None and self._journal.core.is_left(block))

    @property
    def unsaved(self) -> int:
        """Blocks that are not in the bucket as written."""
        return self._slab.unsaved if self._journal is None else max(self._slab.unsaved, self._journal.core.blocks)

    @property
    def idle(self) -> bool:
        """True when no request waits and nothing is under way."""
        waits = self._parked or self._throttle or self._flushes
        return not (waits or self._fetches or self._looks or self._storing or self._left)

    @property
    def crowded(self) -> bool:
        """Whether what was just written has to be told to ``write``, although all of it was taken."""
        return self._slab.crowded or (isinstance(self.writer, _journal.Journal) and self.writer.crowded)

    @property
    def writers(self) -> str:
        """How writers get on, in words."""
        if self._parked and self._lacks_room:
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
        times = (self._throttle.next_due, self._next_store(now), go_on_at)
        return min((time for time in times if time is not None), default=None)

    def _next_store(self, now: float) -> float | None:
        if self._room() <= 0 or self.given_up is not None or self._hides_a_failure:
            return None
        lasts = self._outage.lasts
        if lasts and self._busy:
            return None
        if now < self._held_until:
            return self._held_until
        wake = None
        if self._backlog is not None and (lasts or self._room_for_left() > 0):
            wake = self._backlog.next_wake(now)
        if lasts and wake is not None:
            wake = max(wake, self._outage.next_try)
        urgent, wanted = self._urgent(), self._flushes.sequence
        # In an outage the first of them is the first that is due.
        for block, sequence, since, _ in self._slab.dirty_blocks(
            1 if lasts else 1 + self._merging + len(self._retry_at)
        ):
            if not self._is_merging(block):
                due = now if urgent or sequence <= wanted else since + self._policy.delay
                due = max(due, self._outage.next_try if lasts else self._retry_at.get(block, due))
                wake = due if wake is None else min(wake, due)
        return wake

    def stretch(self, factor: float) -> None:
        """Let blocks stay dirty for ``factor`` times their delay, so that more writes meet in one store."""
        policy = self._asked_policy
        if factor <= 1:
            self._policy = policy
        else:
            most = max(policy.high_water, self._slab.dirty_limit * 9 // 10)
            self._policy = replace(policy, delay=policy.delay * factor, high_water=most)

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────

    def read(self, request: ReadRequest, missing: list[int]) -> None:
        """Go on with a read of which the slab lacked the ``missing`` blocks; a Reply follows."""
        for block in missing:
            self._read_block(request, block)
        if not request.pending and not request.failed:
            self._reply(request, None)

    def prefetch(self, blocks: range) -> None:
        """Fetch those of the blocks that are neither known nor under way; those beyond the end do no harm."""
        for block in blocks[: max(0, self._layout.block_count - blocks.start)]:
            if not (block in self._fetches or self._slab.contains(block) or self._layout.known_absent(block)):
                self._fetches[block] = PendingFetch(self._flushes.asked, ahead=True)
                self._actions.append(Fetch(block, urgent=False, ahead=True))

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
        self.given_up = error
        for waiting in self._flushes.take():
            self._reply(waiting, error)
        for writer in self._throttle.take(lambda writer, due: True):
            self._reply(writer, error)
        self.refuse(error)

    def refuse(self, error: S3backerError) -> None:
        """Answer the writers that wait with an error."""
        for waiting in self._parked:
            self._reply(waiting, error)
        self._parked.clear()

    def flush(self, request: FlushRequest, now: float) -> None:
        """Start a flush; a Reply follows when all writes answered so far are in the bucket, or one failed."""
        self._flushes.ask(request, self._slab.sequence)
        if not self._unsaved_up_to(request.sequence):
            self._reply(request, None)
            return
        if self.given_up is not None:
            self._reply(request, self.given_up)
            return
        self._flushes.add(request)
        self._retry_at = {block: now for block in self._retry_at if block in self._failing}
        self._outage.hurry()
        if self._backlog is not None:
            self._backlog.hurry()
        self._schedule(now)

    def admit(self, now: float) -> None:
        """Let more be stored than the journal has: others know that by now."""
        self.admitted = True
        self._schedule(now)

    @property
    def flushes_asked(self) -> int:
        """How many flushes have been begun."""
        return self._flushes.asked

    def not_admitted(self, flushes: int, error: S3backerError) -> None:
        """Others cannot know it yet: so many flushes were begun before that was tried, and get the error."""
        if self._hides_a_failure:
            for flush in self._flushes.take(lambda flush: flush.number <= flushes):
                self._reply(flush, error)

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
            self._reply(writer, None)
        match request:
            case ReadRequest(failed=False) if request.pending:
                request.failed = True
            case FlushRequest() if request in self._flushes:
                self._flushes.take(lambda flush: flush is request)
            case WriteRequest() if request in self._parked:
                self._parked.remove(request)
            case WriteRequest() if (fetch := self._fetched_for(request)) is not None:
                fetch.writers.remove(request)
            case _:
                return
        self._reply(request, error)
        self._settle(now)

    def _fetched_for(self, writer: WriteRequest) -> PendingFetch | None:
        return next((fetch for fetch in self._fetches.values() if writer in fetch.writers), None)

    # ── completions ──────────────────────────────────────────────────────────────────────────────────

    def fetched(self, block: int, body: Buffer | None, error: S3backerError | None, now: float) -> None:
        """A Fetch has ended."""
        fetch = self._fetches.pop(block)
        if error is not None:
            self.counts.fetch_errors += 1
            # Who came later than the attempt began gets one of their own: what it lacked may have been written since.
            later = fetch.ahead or fetch.unasked
            for reader in fetch.readers:
                if later:
                    self._finish_read(reader, block, stale=True, body=None)
                else:
                    self._fail_read(reader, error)
            for writer in fetch.writers:
                if later:
                    self._advance(writer, now)
                else:
                    self._reply(writer, error)
            attempt = Attempt(fetch.store_sequence, fetch.flushes)
            if fetch.stores and isinstance(error, StoreError) and not isinstance(error, ObjectVanished):
                # Damage says nothing of others.
                self._outage.failed(block, now)
            if attempt.sequence:
                self._store_failed(block, attempt, error, now)
            elif fetch.left and self._backlog is not None:
                self._backlog.failed(block, now)
                self._fail_flushes(attempt, error, now)
        else:
            self.counts.blocks_read += body is not None
            self.counts.zero_blocks_read += body is None
            if not fetch.stale:
                self._slab.fill(block, body, ahead=not (fetch.readers or fetch.writers or fetch.store_sequence))
            for reader in fetch.readers:
                self._finish_read(reader, block, fetch.stale, body)
            for writer in fetch.writers:
                self._advance(writer, now)
            if fetch.left and self._backlog is not None:
                if fetch.stale:
                    # What overtook it may have failed meanwhile.
                    self._backlog.add(block)
                else:
                    self._store_left(block, now)
        self._schedule(now)

    def looked(self, block: int, part: Part | None, error: S3backerError | None) -> None:
        """A Look has ended, with a part or an error."""
        look = self._looks.pop(block)
        self.counts.fetch_errors += error is not None
        if not look.stale and part is not None and part.covers(0, self._block_size):
            self._slab.fill(block, part.body)
        for reader in look.readers:
            if look.stale:
                self._finish_read(reader, block, stale=True, body=None)
            elif part is not None:
                self._finish_look(reader, block, part)
            elif error is not None:
                self._fail_read(reader, error)

    def stored(self, block: int, error: S3backerError | None, now: float, *, noted: bool = True) -> None:
        """A Store has ended; ``noted``: the journal has a note of it."""
        self._slab.end_store(block, error is None)
        attempt = self._storing.pop(block)
        zeros = block in self._storing_zeros
        self._storing_zeros.discard(block)
        if error is not None:
            self._outage.failed(block, now)
            self._store_failed(block, attempt, error, now)
        else:
            # Of what is there nothing is passed over.
            self._note(block, noted or not zeros)
            self._outage.over(now)
            if self._backlog is not None:
                self._backlog.succeeded()
            self.counts.blocks_written += not zeros
            self.counts.zero_blocks_written += zeros
            self._failing.pop(block, None)
        self._settle(now)
        self._schedule(now)

    def synced(self, now: float) -> None:
        """A Sync has ended."""
        self._syncing = False
        self._settle(now)
        self._schedule(now)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def _piece(self, request: ReadRequest, block: int) -> tuple[int, int, memoryview] | None:
        """Return (start, stop) inside the block and the part of the buffer for it; None: the read has failed."""
        base = block * self._block_size
        start = max(request.offset, base)
        stop = min(request.offset + request.length, base + self._block_size)
        try:
            buffer = memoryview(request.filled())
        except StoreError as error:
            self.counts.memory_errors += 1
            request.failed = True
            self._reply(request, error)
            return None
        return start - base, stop - base, buffer[start - request.offset : stop - request.offset]

    def _read_block(self, request: ReadRequest, block: int) -> None:
        if request.failed:
            return
        if block not in self._fetches and self._layout.known_absent(block):
            if not self._slab.contains(block):
                self.counts.zeros_read += 1
                return
            self._slab.fill(block, None)
        if self._slab.contains(block):
            piece = self._piece(request, block)
            if piece is None or self._slab.copy_out(block, piece[0], piece[2]):
                return
        request.pending += 1
        if self._journal is not None and self._journal.core.is_left(block):
            self._look(block).readers.append(request)
        else:
            self._fetch(block, urgent=True).readers.append(request)

    def _finish_look(self, request: ReadRequest, block: int, part: Part) -> None:
        request.pending -= 1
        if request.failed or (piece := self._piece(request, block)) is None:
            return
        start, stop, view = piece
        if not self._copy_left(block, start, stop, view, part):
            # As it was, for who finds out that there are zeros. Without memory for that many nobody would be answered.
            for at in range(0, stop - start, _SECTOR):
                view[at : at + _SECTOR] = _ZEROS[: min(_SECTOR, stop - start - at)]
            request.pending += 1
            self._fetch(block, urgent=True).readers.append(request)
        elif not request.pending:
            self._reply(request, None)

    def _copy_left(self, block: int, start: int, stop: int, view: memoryview, part: Part) -> bool:
        """Copy [start, stop) of a block from memory, and where that has nothing from the journal; False: in neither."""
        if not self._slab.contains(block) and part.covers(start, stop):
            view[:] = memoryview(part.body)[start:stop]
            return True
        position = start
        while position < stop:
            end = min(stop, position - position % _SECTOR + _SECTOR)
            piece = view[position - start : end - start]
            if not self._slab.copy_out(block, position, piece):
                if not part.covers(position, end):
                    return False
                piece[:] = memoryview(part.body)[position:end]
            position = end
        return True

    def _finish_read(self, request: ReadRequest, block: int, stale: bool, body: Buffer | None) -> None:
        request.pending -= 1
        if request.failed or (piece := self._piece(request, block)) is None:
            return
        start, stop, view = piece
        if not self._slab.copy_out(block, start, view):
            if stale:
                self._read_block(request, block)
            elif body is not None:
                # No slot was free: the body is used without being kept.
                view[:] = memoryview(body)[start:stop]
        if not request.pending:
            self._reply(request, None)

    def _fail_read(self, request: ReadRequest, error: S3backerError) -> None:
        request.pending -= 1
        if not request.failed:
            request.failed = True
            self._reply(request, error)

    def _look(self, block: int) -> PendingLook:
        look = self._looks.get(block)
        if look is None:
            look = self._looks[block] = PendingLook()
            self._actions.append(Look(block))
        return look

    def _fetch(self, block: int, *, urgent: bool) -> PendingFetch:
        fetch = self._fetches.get(block)
        if fetch is None:
            fetch = self._fetches[block] = PendingFetch(self._flushes.asked)
            self._actions.append(Fetch(block, urgent))
        elif fetch.ahead and not fetch.hurried:
            fetch.hurried = True
            self._actions.append(Hurry(block))
        return fetch

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, request: WriteRequest | TouchRequest, now: float) -> bool:
        """Carry the request as far as it goes; return False if it waits for a slot."""
        if self.given_up is not None:
            self._reply(request, self.given_up)
            return True
        try:
            block = self._touch(request, now) if isinstance(request, TouchRequest) else self._write(request, now)
        except MemoryError:
            # It waits nowhere any more: nobody else would answer it.
            self.counts.memory_errors += 1
            self._reply(request, StoreError("no memory for a write", hint=LESS_MEMORY))
            return True
        if block is None:
            self._look_at_room(now)
            if not (isinstance(request, WriteRequest) and self._throttle.hold(request, now)):
                self._reply(request, None)
            return True
        if block < 0:
            self._parked.append(request)
            return False
        self._fetch(block, urgent=True).writers.append(request)
        return True

    _NO_SLOT = -1

    def _touch(self, request: TouchRequest, now: float) -> int | None:
        block = request.block
        if self._slab.touch(block, now):
            self._touched.add(block)
            return None
        if not self._layout.known_absent(block):
            return block
        if not self._slab.fill(block, None):
            self._lacks_room = True
            return self._NO_SLOT
        self._slab.touch(block, now)
        self._touched.add(block)
        return None

    def _write(self, request: WriteRequest, now: float) -> int | None:
        """Return None when done, a block that has to be fetched first, or _NO_SLOT."""
        size = self._block_size
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
                if self._layout.known_absent(block) and block not in self._unnoted:
                    self.counts.zeros_skipped += 1
                    request.position += size
                    continue
                count, reason = self.writer.write_zeros(block * size, size, now)
                request.position += count
            elif reason == _fast.NEEDS_FETCH:
                if not self._layout.known_absent(block):
                    return block
                if self._slab.fill(block, None):
                    continue
                reason = _fast.NO_SLOT
            if reason == _journal.JOURNAL_FAILED:
                self.writer = self._slab
            elif reason in _NO_ROOM and not (reason == _fast.NO_SLOT and self._spill(now)):
                self._lacks_room = reason != _journal.JOURNAL_BUSY
                if not self._lacks_room and self._journal is not None and self._journal.core.no_room:
                    # Memory has taken it, and stores it, each time.
                    self._go_on_at = now + _DISK_RETRY
                return self._NO_SLOT
        return None

    def _skip_absent(self, request: WriteRequest) -> bool:
        """Pass over whole blocks that are zeros already; return True if the request moved."""
        size = self._block_size
        at = request.offset + request.position
        stop = (request.offset + request.length) // size
        if at % size or at // size >= stop:
            return False
        block = at // size
        if block in self._unnoted:
            return False
        stop = self._slab.next_held(block, self._layout.next_possibly_present(block, stop))
        if self._unnoted:
            stop = next((other for other in range(block, stop) if other in self._unnoted), stop)
        moved = stop - block
        self.counts.zeros_skipped += moved
        request.position += moved * size
        return moved > 0

    # ── writing back ─────────────────────────────────────────────────────────────────────────────────

    def _urgent(self) -> bool:
        if (self._parked and self._lacks_room) or self._slab.unsaved > self._policy.high_water:
            return True
        return isinstance(self.writer, _journal.Journal) and self.writer.fill > _HIGH_FILL

    def _look_at_room(self, now: float) -> None:
        """Let writers be as fast as what there is room for allows.

        Unsaved blocks slow nobody down up to halfway between where stores are hurried and where writers wait.
        """
        used, limit = 0.0, self._slab.dirty_limit
        if isinstance(self.writer, _journal.Journal):
            used = (self.writer.fill - _journal.CROWDED_FILL) / (1 - _journal.CROWDED_FILL)
        self._slab.crowded_from = limit
        if not self._spills(now):
            free = self._slab.crowded_from = (self._policy.high_water + limit) // 2
            used = max(used, (self._slab.unsaved - free) / max(limit - free, 1))
        self._throttle.note(min(max(used, 0.0), 1.0), now)

    @property
    def _merging(self) -> int:
        """Fetches under way because a block is to be stored."""
        return sum(fetch.stores for fetch in self._fetches.values())

    def _is_merging(self, block: int) -> bool:
        fetch = self._fetches.get(block)
        return fetch is not None and fetch.stores

    @property
    def _left(self) -> int:
        """Blocks of which something is left to the journal."""
        return 0 if self._backlog is None or self._journal is None else self._journal.core.left

    @property
    def _hides_a_failure(self) -> bool:
        """Whether the journal lacks something, as it has failed or had no room, and others do not know that yet."""
        return not self.admitted and self._journal is not None and self._journal.core.behind

    @property
    def _busy(self) -> bool:
        """Whether something is on its way into the bucket."""
        return bool(self._storing) or self._merging > 0

    def _room(self) -> int:
        return self._policy.store_limit - len(self._storing) - self._merging

    def _room_for_left(self) -> int:
        """Return how many blocks of the backlog may be begun: others that wait get half of the places."""
        kept = max(self._policy.store_limit // 2, bool(self._parked)) if self._slab.dirty else 0
        return self._room() - kept

    def _due(self, now: float, passed: set[int]) -> list[tuple[int, int]]:
        """Return the blocks that are to be stored now, with their oldest sequence; in an outage the next one to try.

        None of those that were ``passed``.
        """
        room, lasts = self._room(), self._outage.lasts
        if room <= 0:
            return []
        urgent, wanted = self._urgent(), self._flushes.sequence
        tried = {block: number for number, block in enumerate(self._retry_at, 1)} if lasts else {}
        found: list[tuple[int, int]] = []
        for block, sequence, since, _ in self._first_dirty(room + self._merging + len(self._retry_at), passed):
            if not (urgent or sequence <= wanted or since + self._policy.delay <= now):
                break
            if not (block in passed or self._is_merging(block)):
                found.append((block, sequence))
        if lasts:
            # What somebody waits for; of that who was not tried, else who was tried first.
            return sorted(found, key=lambda one: (one[1] > wanted, tried.get(one[0], 0)))[:1]
        return [one for one in found if self._retry_at.get(one[0], now) <= now][:room]

    def _first_dirty(self, count: int, passed: set[int]) -> list[tuple[int, int, float, bool]]:
        """Return so many dirty blocks, the oldest, besides those that were ``passed`` and are dirty again."""
        looked = count
        while True:
            dirty = self._slab.dirty_blocks(looked)
            again = sum(block in passed for block, *_ in dirty) if passed else 0
            if len(dirty) < looked or looked - again >= count:
                return dirty
            looked = count + 2 * again

    def _schedule(self, now: float) -> None:
        """Start as many stores as are due and allowed, oldest first."""
        if self.given_up is not None or now < self._held_until or self._hides_a_failure:
            return
        if self._outage.lasts:
            self._try_one(now)
            return
        while self._room_for_left() > 0 and self._fetch_left(now):
            pass
        self._store_due(now)

    def _store_due(self, now: float) -> bool:
        """Start storing what is due; False if nothing was begun."""
        began, again = False, True
        # Who writes the same zeros again meanwhile, without a call, is not waited for.
        passed: set[int] = set()
        while again:
            again = False
            for block, sequence in self._due(now, passed):
                self._retry_at.pop(block, None)
                if self._start_store(block, sequence, now):
                    began = True
                else:
                    passed.add(block)
                    again = True
            if again:
                self._settle(now)
        return began

    def _try_one(self, now: float) -> None:
        """Find out whether the outage is over; blocks in memory and those that are left take turns."""
        if self._busy or now < self._outage.next_try:
            return
        self._left_first = not self._left_first
        if self._left_first and self._fetch_left(now):
            return
        if not self._store_due(now) and not self._left_first:
            self._fetch_left(now)

    def _spills(self, now: float) -> bool:
        """Whether what does not fit into memory is left to the journal, as nothing can be stored."""
        journaled = self._backlog is not None and isinstance(self.writer, _journal.Journal)
        return journaled and (now < self._held_until or self._outage.away(now, busy=self._busy))

    def _spill(self, now: float) -> bool:
        """Leave the oldest dirty blocks to the journal, if nothing can be stored; False if none can be left."""
        if not self._spills(now):
            return False
        assert self._backlog is not None and self._journal is not None
        core = self._journal.core
        looked = spilled = 0
        for block, *_ in self._slab.dirty_blocks(self._spill_reach):
            looked += 1
            # What has a fetch under way is needed in a moment.
            if block not in self._fetches and self._leave(block):
                self._backlog.add(block)
                self._retry_at.pop(block, None)
                self._failing.pop(block, None)
                spilled += 1
                if spilled == _SPILLED:
                    break
        if spilled:
            self._spill_reach = max(looked, _SPILLED)
        elif not (self._syncing or core.failed or (core.synced and self._spill_reach >= self._slab.dirty)):
            # Those that are written all the time stay among the oldest, and never are on the disk as they are.
            self._spill_reach = max(_SPILLED, min(2 * self._spill_reach, self._slab.dirty))
            self._syncing = True
            self._actions.append(Sync())
        return spilled > 0

    def _leave(self, block: int) -> bool:
        """Leave a dirty block to the journal; False if that does not have on the disk why it is to be stored."""
        assert self._journal is not None
        if block in self._touched or not self._journal.core.spill(block):
            return False
        self._overtake(block)
        return True

    def _overtake(self, block: int) -> None:
        """Hear that something newer than what is on its way into memory may leave it."""
        if block in self._fetches:
            self._fetches[block].stale = True
        if block in self._looks:
            self._looks[block].stale = True

    def _fetch_left(self, now: float) -> bool:
        """Bring the next block of the backlog into memory; False if there is none now."""
        while self._backlog is not None and (block := self._backlog.next(now)) is not None:
            if block in self._storing or self._is_merging(block):
                # It is stored with what was left of it, and again if that fails.
                continue
            if self._slab.fully_valid(block):
                self._store_left(block, now)
            else:
                unasked = block not in self._fetches
                self._outage.begin(now, busy=self._busy)
                fetch = self._fetch(block, urgent=False)
                fetch.left, fetch.unasked = True, unasked
            return True
        return False

    def _store_left(self, block: int, now: float) -> None:
        assert self._backlog is not None
        if self._slab.touch(block, now):
            self._start_store(block, self._slab.sequence, now)
        else:
            # No slot was free for it.
            self._backlog.failed(block, now)

    def _start_store(self, block: int, sequence: int, now: float) -> bool:
        """Start storing a dirty block, or fetching what it lacks; False if no request was needed."""
        absent = self._layout.known_absent(block)
        self._outage.begin(now, busy=self._busy)
        if not self._slab.fully_valid(block):
            if not absent:
                self._fetch(block, urgent=False).store_sequence = sequence
                return True
            self._slab.fill(block, None)
        try:
            sequence, as_of, body = self._slab.begin_store(block)
        except MemoryError:
            # There is no memory for the copy: the same as a store that failed.
            self.counts.memory_errors += 1
            error = StoreError(f"no memory for a copy of block {block}", hint=LESS_MEMORY)
            self._store_failed(block, Attempt(sequence, self._flushes.asked), error, now)
            return True
        # The journal had something of the block when a fetch of it began.
        self._overtake(block)
        touched = block in self._touched
        self._touched.discard(block)
        if body is None and absent:
            if self._journal is not None:
                self._note(block, self._journal.done(block, as_of, ""))
            self._slab.end_store(block, True)
            self.counts.zeros_skipped += 1
            self._failing.pop(block, None)
            return False
        self._storing[block] = Attempt(sequence, self._flushes.asked, touched)
        if body is None:
            self._storing_zeros.add(block)
        self._actions.append(Store(block, body, as_of))
        return True

    def _note(self, block: int, noted: bool) -> None:
        """Hear whether the journal has a note that a block is stored.

        Once it has failed no flush relies on that: see ``journal/keeper.py``.
        """
        core = None if self._journal is None else self._journal.core
        if noted or core is None or core.failed or not core.behind:
            self._unnoted.discard(block)
        else:
            self._unnoted.add(block)

    def _store_failed(self, block: int, attempt: Attempt, error: S3backerError, now: float) -> None:
        """The block stays dirty; the flushes asked before the attempt fail, for a later one it is tried again."""
        spilled = False
        if attempt.touched:
            self._touched.add(block)
        if self._backlog is not None and self._journal is not None and self._journal.core.is_left(block):
            # The backlog has it again. A flush waits for all that is left, whatever came after it.
            self._backlog.failed(block, now)
            attempt = replace(attempt, sequence=0)
            spilled = self._leave(block)
        others_wait = self._fail_flushes(attempt, error, now)
        if spilled:
            self._failing.pop(block, None)
        else:
            lasting = now - self._failing.setdefault(block, now)
            pause = 0.0 if others_wait else retry_pause(self._policy.retry_delay, lasting)
            self._retry_at[block] = now + pause

    def _fail_flushes(self, attempt: Attempt, error: S3backerError, now: float) -> bool:
        """Answer the flushes that were asked before the attempt; return whether later ones wait for another."""
        self.counts.store_errors += 1
        self._outage.pause(now)
        failed, others_wait = self._flushes.fail(attempt)
        for flush in failed:
            self._reply(flush, error)
        if others_wait:
            self._outage.hurry()
            if self._backlog is not None:
                self._backlog.hurry()
        return others_wait

    def _settle(self, now: float) -> None:
        """Answer the flushes that are satisfied, and writers that were held back, and let parked ones go on."""
        self._look_at_room(now)
        for writer in self._throttle.take(lambda writer, due: due <= now):
            self._reply(writer, None)
        for flush in self._flushes.take(lambda flush: not self._unsaved_up_to(flush.sequence)):
            self._reply(flush, None)
        if now >= self._go_on_at:
            self._go_on_at = 0.0
        while self._parked and not self._go_on_at:
            request = self._parked.popleft()
            if not self._advance(request, now):
                self._parked.rotate(1)
                break

    def _unsaved_up_to(self, sequence: int) -> bool:
        """True if a write of this sequence or an earlier one is not in the bucket."""
        oldest = self._slab.oldest_dirty_sequence()
        return self._left > 0 or 0 < oldest <= sequence or any(a.sequence <= sequence for a in self._storing.values())

    def _reply(self, request: Request, error: S3backerError | None) -> None:
        self._actions.append(Reply(request, error))
