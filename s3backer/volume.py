"""A volume: the parts put together, as one disk of bytes.

    Volume ──► Driver (threads) ──► BlockCache + Slab ──► ClassicLayout ──► ObjectStore
                                          └──► WriteJournal      └──► DiskCache          both if they are wanted

Guarantees
  * One writer: opening for writing puts the mount token, which is renewed until closing removes it. Who has lost it
    writes nothing any more: writes fail with EROFS, flushes with EIO, and what a journal holds stays there.
  * With the journal of a mount that has died it goes on where that was: what is in it is read from there, and stored
    when that mount's requests cannot take effect any more.
  * ``flush`` returns when every write that returned before is in the bucket, or in the journal and on the disk, or
    raises. With a journal, what was written also survives the end of the process: opening the volume again recovers it.
  * ``close`` returns when everything is in the bucket, and nothing may change it any more that was sent from here.
  * The bytes of the cache, of the blocks under way and of the presence map stay within ``memory``.
  * Reading and writing at the end answers what a block device would.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from s3backer import _fast, left_unsaved
from s3backer.closing import harmless
from s3backer.disk_cache import DiskCache, open_disk_cache
from s3backer.driver import Driver, Waiter
from s3backer.errors import JournalError, S3backerError, UsageError, VolumeInUse
from s3backer.failpoints import reach
from s3backer.gate import Gate
from s3backer.geometry import MemoryPlan, check_geometry
from s3backer.holder import Holder, give_up
from s3backer.inheriting import take_journal
from s3backer.journal.files import JournalDirectory
from s3backer.journal.keeper import Keeper
from s3backer.layouts.classic import ClassicLayout
from s3backer.layouts.token import count_down, settle
from s3backer.opening import VolumeOptions, prepare, volume_name
from s3backer.port import Port
from s3backer.recovery import Inheritance
from s3backer.resizing import Resizer
from s3backer.stores.base import Buffer, ObjectStore
from s3backer.telemetry.bill import Costs
from s3backer.telemetry.stats import Statistics
from s3backer.units import told_size
from s3backer.url import volume_id
from s3backer.volume_journal import VolumeJournal

log = logging.getLogger(__name__)

#: Pages of the listing under way at once, beside the work.
_SURVEY_THREADS = 8
#: Seconds between two reports while closing.
_LOOK = 0.2


class Volume:
    """One open volume. Thread-safe; a context manager that closes itself."""

    def __init__(
        self,
        store: ObjectStore,
        layout: ClassicLayout,
        options: VolumeOptions,
        holder: Holder | None,
        directory: JournalDirectory | None = None,
        inherited: Inheritance | None = None,
    ) -> None:
        memory = options.budget(layout.block_size)
        plan = options.plan(layout.block_size, layout.codec.copies)
        self.name = volume_name(store, layout.prefix)
        self.block_size = layout.block_size
        self.read_only = options.read_only
        self._store = store
        self._layout = layout
        self._options = options
        self._holder = holder
        dirty_limit = min(plan.dirty_limit, options.max_dirty or plan.dirty_limit)
        self._memory = memory
        try:
            self._slab = _fast.Slab(layout.block_size, plan.slots, dirty_limit)
        except MemoryError:
            raise UsageError(
                f"a memory budget of {told_size(memory)} is more than this machine gives",
                hint="Use a smaller --memory, or raise the limit (ulimit -v).",
            ) from None
        self._directory = directory
        #: When an earlier mount's requests cannot take effect any more, of time.monotonic.
        self._quiet_at = 0.0 if inherited is None else inherited.quiet_at
        self._costs = Costs(store.counters, options.prices, options.monthly_budget, time.monotonic)
        # What callers may reach. While the size changes it is the smaller of the old one and the new one.
        self._end = layout.size
        self._calls = Gate()
        self._writes = Gate()
        self._resizing = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self._opened = time.time()
        self._stop_survey = threading.Event()
        self._surveyed = False
        self._survey: threading.Thread | None = None
        with contextlib.ExitStack() as undo:
            self._start(plan, inherited, undo)
            undo.pop_all()

    def _start(self, plan: MemoryPlan, inherited: Inheritance | None, undo: contextlib.ExitStack) -> None:
        """Put the parts together and let them run; ``undo`` ends those that do."""
        options, layout, store, holder = self._options, self._layout, self._store, self._holder
        identity = volume_id(store.place, layout.prefix)
        journal = None
        if self._directory is not None and options.journaled:
            assert holder is not None
            journal = VolumeJournal(
                store,
                self.name,
                identity,
                self._directory,
                self._slab,
                layout,
                holder,
                inherited,
                budget=options.journal,
                entries=plan.journal_entries,
            )
            undo.callback(journal.undo)
        reach("journal-made")
        self._disk_cache: DiskCache | None = None
        if options.disk_cache is not None:
            self._disk_cache = layout.copies = open_disk_cache(
                identity,
                layout.block_size,
                size=options.disk_cache,
                directory=options.disk_cache_directory,
                index_bytes=plan.disk_index,
                queue_bytes=plan.disk_queue,
            )
            undo.callback(self._close_disk_cache)
        self._driver = Driver(
            self._slab,
            layout,
            threads=plan.threads,
            write_delay=options.write_delay,
            stretch=self._costs.look,
            journal=None if journal is None else journal.journal,
            backlog=None if journal is None else journal.backlog(),
            held_until=self._quiet_at,
        )
        undo.callback(self._driver.abandon)
        self._keeper: Keeper | None = None
        if journal is not None:
            self._keeper = journal.start(self._driver)
            undo.callback(self._keeper.end, keep=True)
            # Its workers use the journal's files.
            undo.callback(self._driver.abandon)
        self._statistics = Statistics(
            store.counters,
            self._slab,
            self._driver.cache.counts,
            layout.presence.count_absent,
            options.prices,
            None if self._disk_cache is None else self._disk_cache.counts,
        )
        self._resizer = Resizer(
            store, layout, self._slab, self._driver, None if journal is None else journal.journal, self._set_end
        )
        #: What the fast lane of a front end goes by.
        self.port = Port(
            self.name,
            self._driver,
            self._slab,
            self._keeper,
            (self._calls, self._writes),
            lambda: self._end,
            read_only=options.read_only,
            write_through=options.write_through,
        )
        if holder is not None:
            holder.on_lost = self._give_up
            if holder.lease.lost is not None:
                self._give_up(holder.lease.lost)
        if (options.list_blocks and not options.read_only) or inherited is not None:
            self._survey = threading.Thread(target=self._run_survey, name="s3backer-survey", daemon=True)
            self._survey.start()

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        prefix: str,
        options: VolumeOptions | None = None,
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Self:
        """Open the volume in ``store`` under ``prefix``; the volume then owns the store and closes it.

        ``progress`` is called while a journal is replayed, with (bytes done, of so many), and with zeros while it waits
        for a former mount; what it raises ends that.

        Raises VolumeNotFound, VolumeInUse, UsageError, StoreError or CorruptObject, and leaves the bucket as it was.
        """
        options = options or VolumeOptions()
        directory, inherited = take_journal(store, prefix, options, progress)
        holder = inherited.holder if inherited else None
        try:
            layout, holder = prepare(store, prefix, options, directory, lambda left: progress(0, 0), holder)
            reach("token-put")
            return cls(store, layout, options, holder, directory, inherited)
        except BaseException:
            if inherited is not None:
                # The next attempt finds it as this one did.
                inherited.holder.stop()
            elif holder is not None:
                give_up(holder, directory)
            if directory is not None:
                directory.close()
            raise

    # ── the disk ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._end

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``: fewer at the end of the volume, none at or after it."""
        return bytes(self.read_buffer(offset, length))

    def read_buffer(self, offset: int, length: int) -> bytearray:
        """Like ``read``, without the copy into an immutable object."""
        _check_range(offset, length)
        with self._calls:
            length = min(length, self._end - offset)
            return self._driver.read(offset, length) if length > 0 else bytearray()

    def write(self, offset: int, data: Buffer) -> int:
        """Write ``data`` at ``offset`` and return the bytes taken: fewer at the end of the volume.

        Raises OSError(ENOSPC) at or after the end, ReadOnlyVolume on a read-only volume.
        """
        length = len(memoryview(data).cast("B"))
        _check_range(offset, length)
        self._check_writable()
        if not length:
            return 0
        with self._calls, self._writes:
            room = self._end - offset
            if room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            length = min(length, room)
            self._driver.write(offset, memoryview(data).cast("B")[:length])
            self._write_through()
        return length

    def discard(self, offset: int, length: int) -> None:
        """Make a range zeros; whole blocks of it cease to be objects. It must lie inside the volume."""
        _check_range(offset, length)
        self._check_writable()
        with self._calls, self._writes:
            if offset + length > self._end:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._driver.zero(offset, length)
            self._write_through()

    def flush(self) -> None:
        """Return when everything written before survives: in the journal, without one in the bucket; else raise."""
        with self._calls:
            if self._keeper is None:
                self._driver.flush()
                return
            waiter = Waiter()
            self._keeper.begin(waiter.done)
            waiter.wait()

    def resize(self, size: int, *, discard: bool = False) -> None:
        """Change the size in bytes; when it returns, the bucket says so.

        Shrinking raises UsageError while data lies beyond the new end, unless ``discard``.
        """
        self._check_writable()
        check_geometry(size, self.block_size)
        with self._calls, self._resizing:
            self._resizer.resize(size, discard=discard)

    def close(
        self,
        progress: Callable[[int, int], None] | None = None,
        waits: Callable[[float], None] | None = None,
    ) -> None:
        """Write everything back, remove the mount token and close the store.

        ``progress`` is called with (blocks left, blocks at the start), ``waits`` with the seconds that are left until
        requests whose answers were lost have expired. Never gives anything up: while the
        store is away it waits. Raises StoreError if the store refuses to remove the token, when all data is stored, or
        if something is left in the journal because it cannot be stored, and VolumeInUse where the volume was lost and
        something could not be stored. Closing twice does nothing.
        """
        with self._closing:
            if not self._closed:
                self._close(harmless(progress), harmless(waits))

    def _close(self, progress: Callable[[int, int], None] | None, waits: Callable[[float], None] | None) -> None:
        self._stop_survey.set()
        count_down(lambda: 0.0 if self.lost else self.stores_in, waits)
        # Calls under way end first: what they still write has to be stored too.
        total = self.unsaved
        while not self._calls.end(_LOOK):
            self._driver.refuse_stuck()
            if progress:
                progress(self.unsaved, max(total, self.unsaved))
        self._driver.close(progress)
        if self._survey is not None:
            self._survey.join()
        try:
            if self._holder is not None and not self.lost and self._driver.stuck is None:
                settle(self._store, self.name, waits)
                if self._keeper is not None:
                    self._keeper.end()
                reach("before-token-removal")
                other = self._holder.give_back()
                if other is not None:
                    log.error(
                        "%s was mounted %s while it was open here; the token is left alone", self.name, other.describe()
                    )
                reach("token-removed")
                if self._directory is not None:
                    # A note of a token that is gone does no harm.
                    with contextlib.suppress(JournalError):
                        self._directory.forget_token()
                # Who mounts next on this host waits for the end of this process: its token must be safe from ours.
                settle(self._store, self.name, waits)
            elif self._holder is not None:
                left = self.left_unsaved()
                if self._keeper is not None:
                    with contextlib.suppress(JournalError):
                        self._keeper.journal.core.sync()
                    self._keeper.end(keep=True)
                if left is not None:
                    raise left
        finally:
            # Not before: who was interrupted while it was stored can go on.
            self._closed = True
            if self._holder is not None:
                self._holder.stop()
            self._store.close()
            if self._directory is not None:
                self._directory.close()
            # Last: a local disk that hangs keeps no volume locked.
            self._close_disk_cache()

    def _give_up(self, error: VolumeInUse) -> None:
        """Write nothing any more: the volume is somebody else's."""
        log.critical("%s is lost: %s. It is read-only here from now on, and flushes fail", self.name, error.message)
        self.port.lose()
        if self._keeper is not None:
            hint = left_unsaved.way_out(self.name, self._journal_place)
            self._keeper.lose(JournalError("the journal takes nothing any more: the volume is lost", hint=hint))
        self._driver.give_up(error)

    def left_unsaved(self) -> S3backerError | None:
        """Return what is not stored and never will be from here, because the volume was lost; None if nothing is.

        After closing also what could not be stored for another reason, and is in the journal.
        """
        if self._driver.stuck is not None and self._keeper is not None:
            return left_unsaved.not_storable(
                self.name, self.unsaved, self._keeper, self._journal_place, self._driver.stuck
            )
        if not self.lost or not self.unsaved:
            return None
        return left_unsaved.lost(self.name, self.unsaved, self._keeper, self._journal_place)

    @property
    def _journal_place(self) -> str:
        return "" if self._directory is None else self._directory.place

    @property
    def journal_left(self) -> str | None:
        """Why the journal is still there although all of it is in the bucket, and what to do; None if it is not."""
        return None if self._keeper is None else self._keeper.left

    def _close_disk_cache(self) -> None:
        if self._disk_cache is not None:
            self._disk_cache.close()

    @property
    def lost(self) -> bool:
        """Whether it is somebody else's."""
        return self._holder is not None and self._holder.lease.lost is not None

    # ── facts ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def unsaved(self) -> int:
        """Blocks that are not in the bucket as written."""
        return self._driver.unsaved

    @property
    def write_back_error(self) -> str | None:
        """Why nothing, or some block, cannot be stored; None while write-back works."""
        return None if self._driver.failure is None else str(self._driver.failure)

    @property
    def stores_in(self) -> float:
        """Seconds for which nothing is stored, as requests of a mount that has died may still arrive."""
        return max(0.0, self._quiet_at - time.monotonic())

    @property
    def settles_in(self) -> float:
        """Seconds that ``close`` would wait now for requests whose answers were lost."""
        if self._holder is None:
            return 0.0
        return max(self._store.settles_in(), self.stores_in)

    def facts(self) -> dict[str, object]:
        """Return what ``info`` shows, ready for JSON. Sizes in bytes, times in seconds since 1970."""
        return {
            "volume": self.name,
            "size": self.size,
            "block_size": self.block_size,
            "read_only": self.read_only or self.lost,
            "lost": self.lost,
            "opened": self._opened,
            "unsaved_blocks": self.unsaved,
            "writers": self._driver.cache.writers,
            "slowed_writes": self._driver.cache.slowed,
            "write_back_error": self.write_back_error,
            "present_blocks": self._layout.presence.count_present(),
            "surveyed": self._surveyed,
            "memory": self._memory,
            "cache_slots": self._slab.slots,
            "cache_used": self._slab.used,
            "disk_cache": None if self._disk_cache is None else self._disk_cache.facts(),
            "journal": None if self._keeper is None else self._keeper.facts(),
        }

    def bill(self) -> dict[str, object]:
        """Return what ``info`` shows of costs, in dollars."""
        return self._costs.facts(self._layout.presence.count_present() * self.block_size)

    def stats_text(self) -> str:
        """Return the text of the stats file."""
        return self._statistics.text()

    def reset_stats(self) -> None:
        """Let the stats file count from zero again."""
        self._statistics.reset()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _write_through(self) -> None:
        if self._options.write_through:
            self._driver.flush()

    def _check_writable(self) -> None:
        refusal = self.port.refusal()
        if refusal is not None:
            raise refusal

    def _set_end(self, end: int) -> None:
        """Change what callers may reach, while no write is under way."""
        with self._writes.shut():
            self._end = end
            self.port.on_end(end)

    def _run_survey(self) -> None:
        # What is listed before may be changed by requests of the mount before.
        if self._stop_survey.wait(self.stores_in):
            return
        self._layout.doubted = ()
        if self._holder is not None:
            self._holder.settled()
        if not self._options.list_blocks:
            return
        try:
            self._surveyed = self._layout.survey(self._stop_survey.is_set, threads=_SURVEY_THREADS)
        except S3backerError as error:
            log.warning(
                "listing the blocks of %s failed, reads of empty blocks will ask the store: %s", self.name, error
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check_range(offset: int, length: int) -> None:
    if offset < 0 or length < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
