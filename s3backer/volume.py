"""A volume: the parts put together, as one disk of bytes.

    Volume ──► Driver (threads) ──► BlockCache + Slab ──► ClassicLayout ──► ObjectStore
                                          └──► WriteJournal      └──► DiskCache          both if they are wanted

Guarantees
  * One writer: opening for writing puts the mount token, which is renewed until closing removes it. Who has lost it
    writes nothing any more: writes fail with EROFS, flushes with EIO, and what a journal holds stays there.
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
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, Self

from s3backer import _fast
from s3backer.disk_cache import DiskCache, open_disk_cache
from s3backer.driver import Driver, Waiter
from s3backer.errors import JournalError, S3backerError, UsageError, VolumeInUse
from s3backer.failpoints import reach
from s3backer.gate import Gate
from s3backer.geometry import check_geometry
from s3backer.holder import Holder, give_up
from s3backer.journal.files import JournalDirectory
from s3backer.journal.keeper import Keeper
from s3backer.journal.service import Mount, WriteJournal
from s3backer.layouts.classic import ClassicLayout
from s3backer.layouts.token import SHARED_TOKEN, settle
from s3backer.opening import VolumeOptions, first_object, prepare, volume_name
from s3backer.port import Port
from s3backer.recovery import take_journal
from s3backer.stores.base import Buffer, ObjectStore
from s3backer.telemetry.bill import Budget, bill
from s3backer.telemetry.prices import GB
from s3backer.telemetry.stats import Statistics
from s3backer.units import exact_size
from s3backer.url import volume_id

_P = ParamSpec("_P")

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
                f"a memory budget of {exact_size(memory)} is more than this machine gives",
                hint="Use a smaller --memory, or raise the limit (ulimit -v).",
            ) from None
        self._began = time.monotonic()
        self._directory = directory
        #: The value of the token in place of the one that the journal knows.
        self._new_token: int | None = None
        journal = None
        if directory is not None and options.journaled:
            journal = self._make_journal(directory, plan.journal_entries)
        reach("journal-made")
        self._disk_cache: DiskCache | None = None
        if options.disk_cache is not None:
            self._disk_cache = layout.copies = open_disk_cache(
                volume_id(store.place, layout.prefix),
                layout.block_size,
                size=options.disk_cache,
                directory=options.disk_cache_directory,
                index_bytes=plan.disk_index,
                queue_bytes=plan.disk_queue,
            )
        self._budget = None if options.monthly_budget is None else Budget(options.monthly_budget, self._began)
        try:
            self._driver = Driver(
                self._slab,
                layout,
                threads=plan.threads,
                write_delay=options.write_delay,
                stretch=self._look_at_budget,
                journal=journal,
            )
        except BaseException:
            self._close_disk_cache()
            if journal is not None:
                journal.close()
                with contextlib.suppress(S3backerError):
                    journal.end()
            raise
        self._keeper: Keeper | None = None
        if journal is not None:
            self._keeper = Keeper(
                journal,
                in_bucket=self._driver.begin_flush,
                on_room=self._driver.wake,
                disown=self._disown_journal,
            )
        self._statistics = Statistics(
            store.counters,
            self._slab,
            self._driver.cache.counts,
            layout.presence.count_absent,
            options.prices,
            None if self._disk_cache is None else self._disk_cache.counts,
        )
        # What callers may reach. While the size changes it is the smaller of the old one and the new one.
        self._end = layout.size
        self._calls = Gate()
        self._writes = Gate()
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
        self._resizing = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self._opened = time.time()
        self._stop_survey = threading.Event()
        self._survey: threading.Thread | None = None
        if options.list_blocks and not options.read_only:
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
        directory = take_journal(store, prefix, options, progress)
        try:
            layout, holder = prepare(store, prefix, options, directory, lambda left: progress(0, 0))
            reach("token-put")
            try:
                return cls(store, layout, options, holder, directory)
            except BaseException:
                if holder is not None:
                    give_up(holder, directory)
                raise
        except BaseException:
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
            old = self._layout.size
            if size < old:
                self._clear_tail(size, old, discard=discard)
            self._layout.size = size
            try:
                self._driver.touch(0)
                self._driver.flush()
            except BaseException:
                # Whether the bucket has the new size is not known. After shrinking the new one holds, because it
                # is right for either answer: the tail is empty. After growing the old one does, for the same reason;
                # block 0 is stored again with the size that holds.
                if size > old:
                    self._layout.size = old
                with contextlib.suppress(S3backerError):
                    self._driver.touch(0)
                raise
            self._set_end(size)

    def close(
        self,
        progress: Callable[[int, int], None] | None = None,
        waits: Callable[[float], None] | None = None,
    ) -> None:
        """Write everything back, remove the mount token and close the store.

        ``progress`` is called with (blocks left, blocks at the start), ``waits`` with the seconds that are left until
        requests whose answers were lost have expired. Never gives anything up: while the
        store is away it waits. Raises StoreError if the store refuses to remove the token, when all data is stored, and
        VolumeInUse where the volume was lost and something could not be stored. Closing twice does nothing.
        """
        with self._closing:
            if not self._closed:
                self._close(_harmless(progress), _harmless(waits))
                self._closed = True

    def _close(self, progress: Callable[[int, int], None] | None, waits: Callable[[float], None] | None) -> None:
        self._stop_survey.set()
        # Calls under way end first: what they still write has to be stored too.
        total = self.unsaved
        while not self._calls.end(_LOOK):
            if progress:
                progress(self.unsaved, max(total, self.unsaved))
        self._driver.close(progress)
        if self._survey is not None:
            self._survey.join()
        try:
            if self._holder is not None and not self.lost:
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
                self._holder.stop()
                if self._keeper is not None:
                    self._keeper.end(keep=True)
                self._closed = True
                if (left := self.left_unsaved()) is not None:
                    raise left
        finally:
            self._store.close()
            if self._directory is not None:
                self._directory.close()
            # Last: a local disk that hangs keeps no volume locked.
            self._close_disk_cache()

    def _make_journal(self, directory: JournalDirectory, entries: int) -> WriteJournal:
        assert self._holder is not None
        identity = volume_id(self._store.place, self._layout.prefix)
        return WriteJournal(
            directory,
            self._slab,
            Mount(identity, os.urandom(16), self._holder.token.value, self.name),
            budget=self._options.journal,
            capacity=entries,
            key=self._layout.codec.secret,
        )

    def _disown_journal(self) -> None:
        """Let the mount token be one that the journal does not know."""
        assert self._holder is not None and self._directory is not None
        if self._new_token is None:
            self._new_token = random.SystemRandom().randrange(1, SHARED_TOKEN)
        with contextlib.suppress(JournalError):
            # Before it can be in the bucket: with that value the journal is not replayed.
            self._directory.note_token(self._new_token, disowned=True)
        self._holder.change(self._new_token)

    def _give_up(self, error: VolumeInUse) -> None:
        """Write nothing any more: the volume is somebody else's."""
        log.critical("%s is lost: %s. It is read-only here from now on, and flushes fail", self.name, error.message)
        self.port.lose()
        self._driver.give_up(error)

    def left_unsaved(self) -> VolumeInUse | None:
        """Return what is not stored and never will be from here, because the volume was lost; None if nothing is."""
        if not self.lost or not self.unsaved:
            return None
        what = f"{self.unsaved} blocks that were written here are not in the bucket of {self.name}, which was lost"
        if self._keeper is None:
            return VolumeInUse(what, hint="They are gone: without a journal they were in memory only.")
        return VolumeInUse(
            f"{what}; they are in the journal in {self._keeper.journal.path}",
            hint="See 's3backer recover --help': --to FILE writes them to a file, beside what the other mount has.",
        )

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
    def settles_in(self) -> float:
        """Seconds that ``close`` would wait now for requests whose answers were lost."""
        return 0.0 if self._holder is None else self._store.settles_in()

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
            "write_back_error": None if self._driver.failure is None else str(self._driver.failure),
            "present_blocks": self._layout.presence.count_present(),
            "surveyed": self._survey is not None and not self._survey.is_alive(),
            "memory": self._memory,
            "cache_slots": self._slab.slots,
            "cache_used": self._slab.used,
            "disk_cache": None if self._disk_cache is None else self._disk_cache.facts(),
            "journal": None if self._keeper is None else self._keeper.facts(),
        }

    def bill(self) -> dict[str, object]:
        """Return what ``info`` shows of costs, in dollars."""
        prices = self._options.prices
        found = bill(self._store.counters, prices, time.monotonic() - self._began)
        return {
            "cost": found.total,
            "cost_by_kind": found.by_kind,
            "cost_per_month": found.per_month,
            "stored_cost_per_month": self._layout.presence.count_present() * self.block_size * prices.storage / GB,
            "prices_as_of": prices.as_of,
            "hedged_requests": self._store.counters.hedges,
            "budget": None if self._budget is None else self._budget.amount,
            "write_delay_factor": 1.0 if self._budget is None else self._budget.stretch,
        }

    def _look_at_budget(self) -> float:
        """Return by what the write delay is multiplied for the sake of the budget."""
        if self._budget is None:
            return 1.0
        spent = sum(self._options.prices.of_requests(self._store.counters.snapshot()).values())
        return self._budget.look(spent, time.monotonic())

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

    def _clear_tail(self, size: int, old: int, *, discard: bool) -> None:
        """See to it that nothing is stored in [size, old), and that nobody writes there any more."""
        # While the store is away, writers wait inside the gate: it is seen here before it is shut.
        self._driver.flush()
        self._set_end(size)
        try:
            self._driver.flush()
            if discard:
                self._driver.zero(size, old - size)
                self._driver.flush()
            else:
                occupied = first_object(self._store, self._layout, size // self.block_size)
                if occupied is not None:
                    raise UsageError(
                        f"data lies beyond the new end of {exact_size(size)} (block {occupied} and perhaps more)",
                        hint="Shrink the filesystem first, then use --discard to give up what lies beyond.",
                    )
            self._slab.drop_from(size // self.block_size)
        except BaseException:
            self._set_end(old)
            raise

    def _run_survey(self) -> None:
        try:
            self._layout.survey(self._stop_survey.is_set, threads=_SURVEY_THREADS)
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


def _harmless(progress: Callable[_P, None] | None) -> Callable[_P, None] | None:
    """Return progress that raises nothing: a terminal that has gone must not keep data from being stored."""
    if progress is None:
        return None
    broken = False

    def report(*args: _P.args, **kwargs: _P.kwargs) -> None:
        nonlocal broken
        if broken:
            return
        try:
            progress(*args, **kwargs)
        except Exception as error:
            broken = True
            log.warning("progress can no longer be shown: %s", error)

    return report


def _check_range(offset: int, length: int) -> None:
    if offset < 0 or length < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
