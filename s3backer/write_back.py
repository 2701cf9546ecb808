"""Writing back: which dirty blocks go into the bucket, and when; and what becomes of those that cannot.

A part of the block cache, which gives the states and the guarantees; the cache calls it, and hands out its actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from s3backer import _journal
from s3backer.backlog import Backlog
from s3backer.cache_calls import LESS_MEMORY, Store, Sync, retry_pause
from s3backer.cache_state import Attempt, Common, Outage, PendingFetch, WritePolicy
from s3backer.errors import ObjectVanished, S3backerError, StoreError
from s3backer.fetching import Fetching

#: How full a journal is when the oldest blocks go out without waiting for their age.
_HIGH_FILL = 0.5
#: Blocks that are spilled at once.
_SPILLED = 64


class WriteBack:
    """The stores under way, and what is known of those that failed. ``held_until``: nothing is stored before it."""

    def __init__(
        self, common: Common, fetching: Fetching, policy: WritePolicy, backlog: Backlog | None, held_until: float
    ) -> None:
        self._common = common
        self._slab = common.slab
        self._layout = common.layout
        self._journal = common.journal
        self._flushes = common.flushes
        self._fetching = fetching
        self._backlog = backlog
        self._held_until = held_until
        self._policy = self._asked_policy = policy
        #: Whether what is stored may be more than the journal has.
        self.admitted = common.journal is None
        #: Why nothing is stored any more.
        self.given_up: S3backerError | None = None
        #: Whether the journal is being synced, for more to be left to it; and at how many blocks it looks for that.
        self._syncing = False
        self._spill_reach = _SPILLED
        self._storing: dict[int, Attempt] = {}
        self._storing_zeros: set[int] = set()
        #: Blocks that were touched, and not stored since.
        self._touched: set[int] = set()
        #: Blocks that are in the bucket as the journal perhaps never had them, without a note of that: who replays it
        #: finds what they were before. Zeros that are written there are not passed over.
        self.unnoted: set[int] = set()
        #: When blocks whose store failed are tried again, in the order in which that was.
        self._retry_at: dict[int, float] = {}
        self._outage = Outage(policy.store_limit, policy.retry_delay)
        #: Whether a block that is left was to be tried first in an outage, the last time.
        self._left_first = False
        #: Since when storing a block fails.
        self._failing: dict[int, float] = {}

    @property
    def policy(self) -> WritePolicy:
        """The policy now; see ``stretch``."""
        return self._policy

    @property
    def left(self) -> int:
        """Blocks of which something is left to the journal, and comes back."""
        return 0 if self._backlog is None or self._journal is None else self._journal.core.left

    @property
    def idle(self) -> bool:
        """Whether nothing is being stored, or left to be."""
        return not (self._storing or self.left)

    def fails(self, block: int) -> bool:
        """Return whether a block could not be stored when that was last tried, and still has to be."""
        return block in self._failing or self._common.is_left(block)

    def next_store(self, now: float) -> float | None:
        """Return when ``schedule`` has work to do; None if only something that happens can bring some."""
        if self._room() <= 0 or self.given_up is not None or self.hides_a_failure:
            return None
        lasts = self._outage.lasts
        if lasts and self._busy:
            return None
        if now < self._held_until:
            return self._held_until
        wake = None
        if self._backlog is not None and (lasts or self._room_for_left(now) > 0):
            wake = self._backlog.next_wake(now)
        if lasts and wake is not None:
            wake = max(wake, self._outage.next_try)
        urgent, wanted = self._urgent(), self._flushes.sequence
        # In an outage the first of them is the first that is due.
        for block, sequence, since, _ in self._slab.dirty_blocks(
            1 if lasts else 1 + self._fetching.merging + len(self._retry_at)
        ):
            if not self._fetching.is_merging(block):
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

    def hurry(self, now: float) -> None:
        """Let somebody wait for all that is unsaved: nothing waits for its time any more."""
        self._retry_at = {block: now for block in self._retry_at if block in self._failing}
        self._outage.hurry()
        if self._backlog is not None:
            self._backlog.hurry()

    def touched(self, block: int) -> None:
        """Hear that a block is dirty, and perhaps as it was."""
        self._touched.add(block)

    def unsaved_up_to(self, sequence: int) -> bool:
        """True if a write of this sequence or an earlier one is not in the bucket."""
        oldest = self._slab.oldest_dirty_sequence()
        return self.left > 0 or 0 < oldest <= sequence or any(a.sequence <= sequence for a in self._storing.values())

    @property
    def hides_a_failure(self) -> bool:
        """Whether the journal lacks something, as it has failed or had no room, and others do not know that yet."""
        return not self.admitted and self._journal is not None and self._journal.core.behind

    # ── what is due ──────────────────────────────────────────────────────────────────────────────────

    def _urgent(self) -> bool:
        if (self._common.parked and self._common.lacks_room) or self._slab.unsaved > self._policy.high_water:
            return True
        return isinstance(self._common.writer, _journal.Journal) and self._common.writer.fill > _HIGH_FILL

    @property
    def _busy(self) -> bool:
        """Whether something is on its way into the bucket."""
        return bool(self._storing) or self._fetching.merging > 0

    def _room(self) -> int:
        return self._policy.store_limit - len(self._storing) - self._fetching.merging

    def _room_for_left(self, now: float) -> int:
        """Return how many blocks of the backlog may be begun: others that wait get half of the places."""
        # What has failed waits for its time, not for a place.
        waits = self._slab.dirty > len(self._retry_at) or any(at <= now for at in self._retry_at.values())
        kept = max(self._policy.store_limit // 2, bool(self._common.parked)) if waits else 0
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
        for block, sequence, since, _ in self._first_dirty(room + self._fetching.merging + len(self._retry_at), passed):
            if not (urgent or sequence <= wanted or since + self._policy.delay <= now):
                break
            if not (block in passed or self._fetching.is_merging(block)):
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

    def schedule(self, now: float, settle: Callable[[float], None]) -> None:
        """Start as many stores as are due and allowed, oldest first.

        ``settle`` is called where what was dirty needed no request, and then what was written meanwhile is looked at.
        """
        if self.given_up is not None or now < self._held_until or self.hides_a_failure:
            return
        if self._outage.lasts:
            self._try_one(now, settle)
            return
        while self._room_for_left(now) > 0 and self._fetch_left(now):
            pass
        self._store_due(now, settle)

    def _store_due(self, now: float, settle: Callable[[float], None]) -> bool:
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
                settle(now)
        return began

    def _try_one(self, now: float, settle: Callable[[float], None]) -> None:
        """Find out whether the outage is over; blocks in memory and those that are left take turns."""
        if self._busy or now < self._outage.next_try:
            return
        self._left_first = not self._left_first
        if self._left_first and self._fetch_left(now):
            return
        if not self._store_due(now, settle) and not self._left_first:
            self._fetch_left(now)

    # ── what is left to the journal ──────────────────────────────────────────────────────────────────

    def spills(self, now: float) -> bool:
        """Whether what does not fit into memory is left to the journal, as nothing can be stored."""
        journaled = self._backlog is not None and isinstance(self._common.writer, _journal.Journal)
        nothing = now < self._held_until or self.hides_a_failure or self._outage.away(now, busy=self._busy)
        return journaled and nothing

    def spill(self, now: float) -> bool:
        """Leave the oldest dirty blocks to the journal if nothing can be stored, else those of which that failed.

        False if none can be left.
        """
        if not self.spills(now):
            return self._spill_failing()
        assert self._backlog is not None and self._journal is not None
        core = self._journal.core
        looked = spilled = 0
        fetched: list[int] = []
        for block, *_ in self._slab.dirty_blocks(self._spill_reach):
            looked += 1
            if block in self._fetching:
                # Needed in a moment.
                fetched.append(block)
            else:
                spilled += self._spill(block)
                if spilled == _SPILLED:
                    break
        if not spilled and self._outage.away(now, busy=self._busy):
            # They were to be there in a moment, and may have all that is scarce: see ``_patches.pxi``.
            spilled = sum(self._spill(block) for block in fetched[:_SPILLED])
        if spilled:
            self._spill_reach = max(looked, _SPILLED)
        elif not (self._syncing or core.failed or (core.synced and self._spill_reach >= self._slab.dirty)):
            # Those that are written all the time stay among the oldest, and never are on the disk as they are.
            self._spill_reach = max(_SPILLED, min(2 * self._spill_reach, self._slab.dirty))
            self._syncing = True
            self._common.actions.append(Sync())
        return spilled > 0

    def spill_hanging(self, now: float) -> bool:
        """Leave blocks to the journal whose fetch hangs, also where others are stored; False if none can be left.

        For who parts of sectors are too many: few blocks may have all that can be remembered.
        """
        return self._spill_some(self._fetching.hanging(now))

    def _spill_failing(self) -> bool:
        """Leave blocks to the journal that could not be stored: damaged ones may have all that is scarce, for ever."""
        return self._spill_some([block for block in self._failing if block not in self._fetching])

    def _spill_some(self, blocks: list[int]) -> bool:
        if self._backlog is None or not isinstance(self._common.writer, _journal.Journal):
            return False
        spilled = sum(self._spill(block) for block in blocks)
        if blocks and not (spilled or self._syncing or self._common.writer.synced):
            self._syncing = True
            self._common.actions.append(Sync())
        return spilled > 0

    def _spill(self, block: int) -> bool:
        """Leave a dirty block to the journal, and let the backlog have it; False if that cannot be."""
        assert self._backlog is not None
        if not self._leave(block):
            return False
        self._backlog.add(block)
        self._fetching.leave(block)
        self._retry_at.pop(block, None)
        self._failing.pop(block, None)
        return True

    def _leave(self, block: int) -> bool:
        """Leave a dirty block to the journal; False if that does not have on the disk why it is to be stored."""
        assert self._journal is not None
        if block in self._touched or not self._journal.core.spill(block):
            return False
        self._fetching.overtake(block)
        return True

    def _fetch_left(self, now: float) -> bool:
        """Bring the next block of the backlog into memory; False if there is none now."""
        while self._backlog is not None and (block := self._backlog.next(now)) is not None:
            if block in self._storing or self._fetching.is_merging(block):
                # It is stored with what was left of it, and again if that fails.
                continue
            if self._slab.fully_valid(block):
                self._store_left(block, now)
            else:
                unasked = block not in self._fetching
                self._outage.begin(now, busy=self._busy)
                fetch = self._fetching.fetch(block, urgent=False)
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

    # ── stores ───────────────────────────────────────────────────────────────────────────────────────

    def _start_store(self, block: int, sequence: int, now: float) -> bool:
        """Start storing a dirty block, or fetching what it lacks; False if no request was needed."""
        absent = self._layout.known_absent(block)
        self._outage.begin(now, busy=self._busy)
        if not self._slab.fully_valid(block):
            if not absent:
                fetch = self._fetching.fetch(block, urgent=False)
                fetch.store_sequence, fetch.since = sequence, now
                return True
            self._slab.fill(block, None)
        try:
            sequence, as_of, body = self._slab.begin_store(block)
        except MemoryError:
            # There is no memory for the copy: the same as a store that failed.
            self._common.counts.memory_errors += 1
            error = StoreError(f"no memory for a copy of block {block}", hint=LESS_MEMORY)
            self._store_failed(block, Attempt(sequence, self._flushes.asked), error, now)
            return True
        # The journal had something of the block when a fetch of it began.
        self._fetching.overtake(block)
        touched = block in self._touched
        self._touched.discard(block)
        if body is None and absent:
            if self._journal is not None:
                self._note(block, self._journal.done(block, as_of, ""))
            self._slab.end_store(block, True)
            self._common.counts.zeros_skipped += 1
            self._failing.pop(block, None)
            return False
        self._storing[block] = Attempt(sequence, self._flushes.asked, touched)
        if body is None:
            self._storing_zeros.add(block)
        self._common.actions.append(Store(block, body, as_of))
        return True

    def fetched(self, block: int, fetch: PendingFetch, error: S3backerError | None, now: float) -> None:
        """Hear that a fetch has ended, perhaps of a block that is to be stored."""
        if error is not None:
            if fetch.stores and isinstance(error, StoreError) and not isinstance(error, ObjectVanished):
                # Damage says nothing of others.
                self._outage.failed(block, now)
            attempt = Attempt(fetch.store_sequence, fetch.flushes)
            if attempt.sequence:
                self._store_failed(block, attempt, error, now)
            elif fetch.left and self._backlog is not None:
                self._backlog.failed(block, now)
                self._fail_flushes(attempt, error, now)
        elif fetch.left and self._backlog is not None:
            if fetch.stale:
                # What overtook it may have failed meanwhile.
                self._backlog.add(block)
            else:
                self._store_left(block, now)

    def stored(self, block: int, error: S3backerError | None, now: float, *, noted: bool) -> None:
        """Hear that a Store has ended; ``noted``: the journal has a note of it."""
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
            self._common.counts.blocks_written += not zeros
            self._common.counts.zero_blocks_written += zeros
            self._failing.pop(block, None)

    def synced(self) -> None:
        """Hear that a Sync has ended."""
        self._syncing = False

    def _note(self, block: int, noted: bool) -> None:
        """Hear whether the journal has a note that a block is stored.

        Once it has failed no flush relies on that: see ``journal/keeper.py``.
        """
        core = None if self._journal is None else self._journal.core
        if noted or core is None or core.failed or not core.behind:
            self.unnoted.discard(block)
        else:
            self.unnoted.add(block)

    def _store_failed(self, block: int, attempt: Attempt, error: S3backerError, now: float) -> None:
        """The block stays dirty; the flushes asked before the attempt fail, for a later one it is tried again."""
        spilled = False
        if attempt.touched:
            self._touched.add(block)
        if self._backlog is not None and self._common.is_left(block):
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
        self._common.counts.store_errors += 1
        self._outage.pause(now)
        failed, others_wait = self._flushes.fail(attempt)
        for flush in failed:
            self._common.reply(flush, error)
        if others_wait:
            self._outage.hurry()
            if self._backlog is not None:
                self._backlog.hurry()
        return others_wait
