"""The disk cache: copies of a volume's objects on a local disk, for the layout to read in place of the bucket.

    layout ──keep──► queue ──► writer thread ──► file (disk_cache_file.py)
           ──find──► queue, else index (disk_cache_index.py) ──► file

Guarantees
  * Nothing here makes a read fail or wait for more than one read of the disk: what the disk does not take at once
    waits in a queue that is bounded, and what does not fit there is not kept.
  * A copy comes back whole or not at all. Whether it is current is for the layout to see, by its ETag.
  * The file takes at most ``size`` bytes, and less where the filesystem would get full (``allowance``): that is looked
    at before every ``_LOOK_BYTES`` written and every ``_LOOK_SECONDS``.
  * A disk that fails turns the cache off, and the log says so once.
  * Memory: ``index_bytes`` for the index, and ``queue_bytes`` for what waits, or one copy where that is more.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from s3backer.disk_cache_file import ENTRY_BYTES, START, CopyFile, slot_size
from s3backer.disk_cache_index import INDEX_BYTES, CopyIndex
from s3backer.errors import UsageError, is_full
from s3backer.layouts.copies import Copy
from s3backer.logs import RateLimited, home
from s3backer.units import format_size

log = logging.getLogger(__name__)

_MIB, _GIB = 1 << 20, 1 << 30
#: Of the filesystem a twentieth stays free, within these bounds, but never more than a quarter: 1 GiB is what programs
#: need that do not expect a full disk, and 10 GiB is room enough on the largest.
_RESERVE_SHARE, _LEAST_RESERVE, _MOST_RESERVE, _MOST_SHARE = 20, _GIB, 10 * _GIB, 4
_LOOK_BYTES = 4 * _MIB
_LOOK_SECONDS = 5.0
#: What the file takes is counted in these units, as filesystems do.
_PAGE = 4096
#: Of a slot this share has to become free for a hole to be worth a call.
_WORTH = 8


@dataclass(slots=True)
class CopyCounts:
    """Totals since the volume was opened.

    ``hits``: copies read without a request, ``verified``: after the store said that they are current, ``misses``: reads
    that found no copy. ``skipped``: copies that were not kept, because the disk was slow or they did not fit.
    """

    hits: int = 0
    verified: int = 0
    misses: int = 0
    damaged: int = 0
    skipped: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


def cache_directory() -> Path:
    """Return the directory of disk caches; it may not exist yet. UsageError for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base, "s3backer")
    if os.geteuid() == 0:
        return Path("/var/cache/s3backer")
    return home("XDG_CACHE_HOME") / ".cache" / "s3backer"


def allowance(size: int, used: int, available: int, total: int) -> int:
    """Return the bytes that a cache of ``size`` may take on a filesystem on which it takes ``used`` now."""
    reserve = min(max(total // _RESERVE_SHARE, _LEAST_RESERVE), _MOST_RESERVE, total // _MOST_SHARE)
    return max(0, min(size, used + available - reserve))


def open_disk_cache(
    identity: bytes,
    block_size: int,
    *,
    size: int,
    directory: str | None,
    index_bytes: int,
    queue_bytes: int,
) -> DiskCache | None:
    """Return the disk cache of the volume with this id; None where it cannot be used, which the log then says.

    A volume is worth more than its cache.
    """
    where = os.path.realpath(directory or cache_directory())
    try:
        file = CopyFile(where, f"{identity.hex()[:32]}.copies", identity, block_size)
    except UsageError as error:
        log.warning("%s; going on without a disk cache. %s", error.message, error.hint)
        return None
    if file.emptied:
        log.warning("the disk cache %s begins anew: %s", file.path, file.emptied)
    most = index_bytes // INDEX_BYTES * slot_size(block_size)
    if size > most:
        log.warning(
            "--disk-cache: with this --memory at most %s can be kept of blocks of %s; give more memory for more",
            format_size(most),
            format_size(block_size),
        )
    try:
        return DiskCache(file, size=size, index_bytes=index_bytes, queue_bytes=queue_bytes)
    except OSError as error:
        file.close()
        log.warning("the disk cache %s cannot be read: %s; going on without it", file.path, error.strerror)
        return None


class DiskCache:
    """Keeps copies in a file, which it owns. ``size`` is the most bytes that the file may take. Implements Copies."""

    def __init__(self, file: CopyFile, *, size: int, index_bytes: int, queue_bytes: int) -> None:
        self.counts = CopyCounts()
        self.path = file.path
        self.size = size
        #: Why it is off, None while it works.
        self.failure: str | None = None
        self._file = file
        self._queue_bytes = queue_bytes
        #: Bytes at most, after the disk took no more although it seemed to have room: a quota.
        self._ceiling = size
        self._index = CopyIndex(index_bytes // INDEX_BYTES, 0)
        for slot, block, length in file.entries():
            if slot >= self._index.capacity:
                break
            self._index.load(slot, block, self._takes(length))
        self._since_look = 0
        self._limited = RateLimited(log)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue: dict[int, Copy] = {}
        self._waiting = 0
        #: What is being written; None if it was dropped meanwhile.
        self._writing: tuple[int, Copy] | None = None
        self._closing = False
        file.cut(self._index.count)
        self._look(first=True)
        self._writer = threading.Thread(target=self._work, name="s3backer-disk-cache", daemon=True)
        self._writer.start()

    # ── what the layout calls ────────────────────────────────────────────────────────────────────────

    def find(self, block: int) -> Copy | None:
        """Return a block's copy, None if there is none."""
        with self._lock:
            waiting = self._waiting_copy(block)
            if waiting is not None:
                return waiting
            slot = None if self.failure or self._closing else self._index.find(block)
            if slot is None:
                self.counts.misses += 1
                return None
            self._index.pin(slot)
            size = self._index.size(slot) - ENTRY_BYTES
        copy = None
        try:
            data = self._file.read(slot, size)
            copy = self._file.format.decode(block, data)
        except OSError as error:
            self._turn_off(error)
        finally:
            with self._lock:
                self._index.unpin(slot)
                damaged = copy is None and self.failure is None
                if copy is not None:
                    self.counts.bytes_read += len(copy.body)
                else:
                    self.counts.misses += 1
                # Dropped meanwhile it may have been, but nobody else has written there.
                if damaged and self._index.find(block) == slot:
                    self._index.drop(block)
        if damaged:
            self._say_damaged(block)
        return copy

    def used(self, block: int, *, verified: bool) -> None:
        """Take notice that a copy was read from, ``verified``: after the store said that it is current."""
        with self._lock:
            if verified:
                self.counts.verified += 1
            else:
                self.counts.hits += 1
            self._index.use(block)

    def keep(self, block: int, copy: Copy) -> None:
        """Take the block's object as it is now; no older copy is found any more, even if this one is not kept."""
        with self._lock:
            self._forget(block)
            if self.failure or self._closing:
                return
            if self._waiting and self._waiting + len(copy.body) > self._queue_bytes:
                self.counts.skipped += 1
                return
            self._queue[block] = copy
            self._waiting += len(copy.body)
            self._changed.notify_all()

    def drop(self, block: int) -> None:
        """Forget the block's copy: none that was kept before is found any more."""
        with self._lock:
            self._forget(block)

    def damaged(self, block: int) -> None:
        """Forget a copy that cannot be what was kept."""
        self.drop(block)
        self._say_damaged(block)

    # ── what the volume calls ────────────────────────────────────────────────────────────────────────

    def facts(self) -> dict[str, object]:
        """Return what ``info`` shows, sizes in bytes."""
        with self._lock:
            return {
                "path": self.path,
                "size": self.size,
                "limit": self._index.limit,
                "used": self._index.used,
                "copies": self._index.held,
                "failure": self.failure,
            }

    def close(self) -> None:
        """Write what waits, end the thread and give the file free. What is kept stays for the next mount."""
        with self._lock:
            self._closing = True
            self._changed.notify_all()
        self._writer.join()
        if self.failure is None:
            # Else the next mount could find a former copy of a block beside the one that counts.
            with contextlib.suppress(OSError):
                for slot in self._index.empty:
                    self._file.blank(slot)
        self._file.close()

    def settle(self) -> None:
        """Return when nothing waits to be written: for tests and measurements."""
        with self._changed:
            while self._queue or self._writing:
                self._changed.wait()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _waiting_copy(self, block: int) -> Copy | None:
        if block in self._queue:
            return self._queue[block]
        return self._writing[1] if self._writing and self._writing[0] == block else None

    def _forget(self, block: int) -> None:
        copy = self._queue.pop(block, None)
        if copy is not None:
            self._waiting -= len(copy.body)
        if self._writing and self._writing[0] == block:
            self._writing = None
        self._index.drop(block)

    def _say_damaged(self, block: int) -> None:
        with self._lock:
            self.counts.damaged += 1
        text = f"the copy of block {block} in {self.path} is damaged and is fetched again"
        self._limited.limited("damaged", logging.WARNING, text)

    def _takes(self, length: int) -> int:
        """Return what a copy takes of the disk."""
        return min(-(-length // _PAGE) * _PAGE, self._file.slot_size) + ENTRY_BYTES

    def _work(self) -> None:
        while (item := self._next()) is not None or not self._closing:
            try:
                if self.failure is not None:
                    continue
                if item is None:
                    self._look()
                else:
                    self._store(*item)
            except OSError as error:
                self._turn_off(error)
            except Exception as error:
                log.exception("the disk cache met a defect")
                self._turn_off(OSError(errno.EIO, repr(error)))

    def _next(self) -> tuple[int, Copy] | None:
        """Return what is to be written next; None at the end, and when it is time to look at the room."""
        with self._changed:
            self._writing = None
            self._changed.notify_all()
            if not self._queue and not self._closing:
                self._changed.wait(_LOOK_SECONDS)
            block = next(iter(self._queue), None)
            if block is None:
                return None
            self._writing = block, self._queue.pop(block)
            self._waiting -= len(self._writing[1].body)
            return self._writing

    def _store(self, block: int, copy: Copy) -> None:
        """Write one copy, unless there is no room for it."""
        head = self._file.format.encode(block, copy)
        if head is None:
            with self._lock:
                self.counts.skipped += 1
            return
        length = len(head) + len(copy.body)
        self._since_look += length
        if self._since_look >= _LOOK_BYTES:
            self._look()
        takes = self._takes(length)
        with self._lock:
            slot = self._index.place(takes)
            if slot is None:
                self.counts.skipped += 1
                return
            before = self._index.size(slot)
        try:
            self._file.write(slot, block, head, copy.body)
            if takes < before and not (
                before - takes >= self._file.slot_size // _WORTH and self._file.trim(slot, takes - ENTRY_BYTES)
            ):
                takes = before
        except OSError as error:
            with self._lock:
                self._index.release(max(before, takes))
            if not is_full(error):
                raise
            self._make_room()
            return
        with self._lock:
            if self._writing is None:
                self._index.release(max(before, takes))
            else:
                self._index.settle(block, takes)
                self.counts.bytes_written += length
        self._cut()

    def _look(self, *, first: bool = False) -> None:
        """Look how much room the filesystem has, and take no more than is right."""
        self._since_look = 0
        if self._file.removed():
            raise OSError(errno.ENOENT, "it was removed")
        available, total = self._file.space()
        with self._lock:
            before = self._index.limit
            used = self._index.used
            limit = min(self._ceiling, allowance(self.size, used, available, total))
            self._index.limit = max(0, limit - START)
            shrinks = used > self._index.limit
        if first and limit < self.size:
            log.warning(
                "--disk-cache: %s takes only %s of %s: the rest of its filesystem is kept free",
                self.path,
                format_size(limit),
                format_size(self.size),
            )
        elif shrinks and limit < before:
            text = f"the disk cache {self.path} shrinks to {format_size(limit)}: its filesystem is getting full"
            self._limited.limited("shrinks", logging.WARNING, text)
        self._cut()

    def _cut(self) -> None:
        with self._lock:
            gone, count = self._index.cut(), self._index.count
        if gone:
            self._file.cut(count)

    def _make_room(self) -> None:
        """Take less after the disk took no more."""
        before = self._index.used
        self._look()
        if self._index.used >= before:
            self._ceiling = max(0, before - before // 8 - self._file.slot_size)
            self._look()

    def _turn_off(self, error: OSError) -> None:
        with self._lock:
            first = self.failure is None
            if first:
                self.failure = error.strerror or os.strerror(error.errno or errno.EIO)
                self._queue.clear()
                self._waiting = 0
        if first:
            log.warning("the disk cache %s is off until the next mount: %s", self.path, self.failure)
