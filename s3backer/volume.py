"""A volume: the parts put together, as one disk of bytes.

    Volume ──► Driver (threads) ──► BlockCache + Slab ──► ClassicLayout ──► ObjectStore

Guarantees
  * One writer: opening for writing puts the mount token, closing removes it.
  * ``flush`` returns when every write that returned before is in the bucket, or raises.
  * ``close`` returns when everything is in the bucket.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from s3backer import _fast
from s3backer.driver import Driver
from s3backer.errors import (
    AccessDenied,
    BucketNotFound,
    ReadOnlyVolume,
    S3backerError,
    StoreError,
    UsageError,
    VolumeInUse,
    VolumeNotFound,
)
from s3backer.layouts.classic import (
    MAX_BLOCKS,
    ClassicLayout,
    Metadata,
    block_name,
    parse_block_name,
    read_metadata,
    unsupported_encoding,
)
from s3backer.layouts.token import MountToken, in_use, read_token, remove_token, write_token
from s3backer.stores.base import Buffer, ObjectStore
from s3backer.telemetry.stats import render_stats

log = logging.getLogger(__name__)

MIB = 1 << 20
#: Memory for the presence map, as a share of the budget: 16 MiB know 8 TiB of 128 KiB blocks, dense or not.
_PRESENCE_SHARE = 16
#: Pause in seconds between two attempts of ``close`` to remove the mount token.
_TOKEN_RETRY = 1.0
#: Seconds between two reports while closing.
_LOOK = 0.2
#: Fewer slots than this are no cache.
_MIN_SLOTS = 4


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How a volume is opened. Sizes in bytes, times in seconds."""

    memory: int = 256 * MIB
    threads: int = 16
    write_delay: float = 5.0
    read_only: bool = False
    force: bool = False
    list_blocks: bool = True
    size: int | None = None
    block_size: int | None = None
    block_hash_prefix: bool = False
    #: Used where neither the volume nor ``block_size`` says one.
    default_block_size: int | None = None
    #: Whether block 0's metadata is asked for (the original's noAutoDetect turns it off).
    detect: bool = True


def check_geometry(size: int, block_size: int) -> None:
    """Raise UsageError unless a volume can have this size and block size (bytes)."""
    if block_size < 512 or block_size & (block_size - 1):
        raise UsageError(
            f"block size {block_size} is not a power of two of at least 512 bytes",
            hint="Use for example 128KiB.",
        )
    if size <= 0:
        raise UsageError(f"size {size} is not a size for a volume", hint="Give a size such as 10GiB.")
    if size % block_size:
        raise UsageError(
            f"size {size} is not a multiple of the block size {block_size}",
            hint=f"Sizes that fit are {size - size % block_size} and {size + block_size - size % block_size}."
            if size > block_size
            else f"The smallest is {block_size}.",
        )
    if size // block_size > MAX_BLOCKS:
        raise UsageError(
            f"size {size} needs {size // block_size} blocks of {block_size} bytes, at most {MAX_BLOCKS} are possible",
            hint="Use a larger block size.",
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the byte budget is divided."""

    slots: int
    threads: int
    presence: int


def plan_memory(memory: int, block_size: int, threads: int) -> MemoryPlan:
    """Divide the budget: blocks under way (two copies a thread), the presence map, and slots for the rest."""
    # At most a quarter may be under way, so that large blocks reduce the parallelism and not the cache.
    threads = max(1, min(threads, memory // 4 // (2 * block_size)))
    presence = memory // _PRESENCE_SHARE
    slots = (memory - 2 * threads * block_size - presence) // _fast.slot_bytes(block_size)
    if slots < _MIN_SLOTS:
        need = 2 * (_MIN_SLOTS + 2) * _fast.slot_bytes(block_size)
        raise UsageError(
            f"a memory budget of {memory} bytes is too small for blocks of {block_size} bytes",
            hint=f"Use --memory {-(-need // MIB)}MiB or more.",
        )
    return MemoryPlan(slots, threads, presence)


class _Gate:
    """Counts the calls inside, so that somebody can wait for a moment without any, or for the last of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._waited_for = False
        self._shut = False
        self._ended = False

    def __enter__(self) -> None:
        with self._changed:
            while self._shut:
                self._changed.wait()
            if self._ended:
                raise OSError(errno.EBADF, "the volume is closed")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._waited_for:
                self._changed.notify_all()

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """Keep new calls waiting; the body runs when those that were inside have ended."""
        with self._changed:
            self._shut = self._waited_for = True
            try:
                while self._inside:
                    self._changed.wait()
                yield
            finally:
                self._shut = self._waited_for = False
                self._changed.notify_all()

    def end(self, seconds: float) -> bool:
        """Let nobody in any more; return whether everybody is out, having waited so long for it."""
        with self._changed:
            self._ended = self._waited_for = True
            return self._changed.wait_for(lambda: not self._inside, seconds)


class Volume:
    """One open volume. Thread-safe; a context manager that closes itself."""

    def __init__(
        self,
        store: ObjectStore,
        layout: ClassicLayout,
        options: VolumeOptions,
        token: MountToken | None,
    ) -> None:
        plan = plan_memory(options.memory, layout.block_size, options.threads)
        self.name = volume_name(store, layout.prefix)
        self.block_size = layout.block_size
        self.read_only = options.read_only
        self._store = store
        self._layout = layout
        self._options = options
        self._token = token
        self._slab = _fast.Slab(layout.block_size, plan.slots, plan.slots - max(1, plan.slots // 8))
        self._driver = Driver(self._slab, layout, threads=plan.threads, write_delay=options.write_delay)
        # What callers may reach. While the size changes it is the smaller of the old one and the new one.
        self._end = layout.size
        self._calls = _Gate()
        self._writes = _Gate()
        self._resizing = threading.Lock()
        self._closed = False
        self._opened = time.time()
        self._stop_survey = threading.Event()
        self._survey: threading.Thread | None = None
        if options.list_blocks and not options.read_only:
            self._survey = threading.Thread(target=self._run_survey, name="s3backer-survey", daemon=True)
            self._survey.start()

    @classmethod
    def open(cls, store: ObjectStore, prefix: str, options: VolumeOptions | None = None) -> Self:
        """Open the volume in ``store`` under ``prefix``; the volume then owns the store and closes it.

        Raises VolumeNotFound, VolumeInUse, UsageError, StoreError or CorruptObject, and leaves the bucket as it was.
        """
        options = options or VolumeOptions()
        metadata = read_metadata(store, prefix, hash_prefix=options.block_hash_prefix) if options.detect else None
        size, block_size = _geometry(volume_name(store, prefix), metadata, options)
        if metadata is not None and metadata.content_encoding:
            raise unsupported_encoding(
                prefix + block_name(0, hash_prefix=options.block_hash_prefix), metadata.content_encoding
            )
        plan = plan_memory(options.memory, block_size, options.threads)
        layout = ClassicLayout(
            store,
            prefix,
            block_size=block_size,
            size=size,
            hash_prefix=options.block_hash_prefix,
            exclusive=not options.read_only,
            presence_budget=plan.presence,
        )
        token = _take_token(store, prefix, options)
        try:
            # Before the token was ours somebody else may have had the volume, and changed what it is.
            if options.detect and read_metadata(store, prefix, hash_prefix=options.block_hash_prefix) != metadata:
                raise VolumeInUse(
                    f"{volume_name(store, prefix)} was changed by somebody else just now", hint="Try again."
                )
            return cls(store, layout, options, token)
        except BaseException:
            if token is not None:
                remove_token(store, prefix, token)
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
        return length

    def discard(self, offset: int, length: int) -> None:
        """Make a range zeros; whole blocks of it cease to be objects. It must lie inside the volume."""
        _check_range(offset, length)
        self._check_writable()
        with self._calls, self._writes:
            if offset + length > self._end:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._driver.zero(offset, length)

    def flush(self) -> None:
        """Return when everything written before is in the bucket; raise if storing it failed."""
        with self._calls:
            self._driver.flush()

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
            except S3backerError:
                # Whether the bucket has the new size is not known. After shrinking the new one holds, because it
                # is right for either answer: the tail is empty. After growing the old one does, for the same reason;
                # block 0 is stored again with the size that holds.
                if size > old:
                    self._layout.size = old
                with contextlib.suppress(S3backerError):
                    self._driver.touch(0)
                raise
            self._set_end(size)

    def close(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Write everything back, remove the mount token and close the store.

        ``progress`` is called with (blocks left, blocks at the start). Never gives anything up: while the
        store is away it waits. Raises StoreError if the store refuses to remove the token, when all data is stored.
        Closing twice does nothing.
        """
        if self._closed:
            return
        self._closed = True
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
            if self._token is not None:
                self._give_back_token(self._token)
        finally:
            self._store.close()

    # ── facts ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def unsaved(self) -> int:
        """Blocks that are not in the bucket as written."""
        return self._driver.unsaved

    def facts(self) -> dict[str, object]:
        """Return what ``info`` shows, ready for JSON. Sizes in bytes, times in seconds since 1970."""
        return {
            "volume": self.name,
            "size": self.size,
            "block_size": self.block_size,
            "read_only": self.read_only,
            "opened": self._opened,
            "unsaved_blocks": self.unsaved,
            "present_blocks": self._layout.presence.count_present(),
            "surveyed": self._survey is not None and not self._survey.is_alive(),
            "memory": self._options.memory,
            "cache_slots": self._slab.slots,
            "cache_used": self._slab.used,
        }

    def stats_text(self) -> str:
        """Return the text of the stats file."""
        return render_stats(self._store.counters, self._slab, self._driver.cache.counts)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyVolume(f"{self.name} was opened read-only")

    def _set_end(self, end: int) -> None:
        """Change what callers may reach, while no write is under way."""
        with self._writes.shut():
            self._end = end

    def _clear_tail(self, size: int, old: int, *, discard: bool) -> None:
        """See to it that nothing is stored in [size, old), and that nobody writes there any more."""
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
                        f"data lies beyond the new end of {size} bytes (block {occupied} and perhaps more)",
                        hint="Shrink the filesystem first, then use --discard to give up what lies beyond.",
                    )
            self._slab.drop_from(size // self.block_size)
        except BaseException:
            self._set_end(old)
            raise

    def _give_back_token(self, token: MountToken) -> None:
        waiting = False
        while True:
            try:
                other = remove_token(self._store, self._layout.prefix, token)
                break
            except (AccessDenied, BucketNotFound):
                # That is an answer, and asking again would not change it.
                raise
            except StoreError as error:
                if not waiting:
                    log.warning("%s: all data is stored, waiting to remove the mount token: %s", self.name, error)
                waiting = True
                time.sleep(_TOKEN_RETRY)
        if other is not None:
            log.error("%s was mounted %s while it was open here; the token is left alone", self.name, other.describe())

    def _run_survey(self) -> None:
        try:
            self._layout.survey(self._stop_survey.is_set)
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


def volume_name(store: ObjectStore, prefix: str) -> str:
    """Return how messages name a volume."""
    return f"{store.name}/{prefix}".rstrip("/")


def first_object(store: ObjectStore, layout: ClassicLayout, block: int) -> int | None:
    """Return a block at or after ``block`` inside the volume that has an object, None if there is none."""
    after = layout.key(block - 1) if block and not layout.hash_prefix else ""
    while True:
        page = store.list(layout.prefix, start_after=after)
        for entry in page.entries:
            found = parse_block_name(entry.key[len(layout.prefix) :], hash_prefix=layout.hash_prefix)
            if found is not None and block <= found < layout.block_count:
                return found
        if not page.truncated:
            return None
        after = page.entries[-1].key


def _geometry(url: str, metadata: Metadata | None, options: VolumeOptions) -> tuple[int, int]:
    """Return (size, block size) from what the volume says and what was asked for."""
    found_size = metadata.size if metadata else None
    found_block_size = metadata.block_size if metadata else None
    for what, asked, found in (
        ("size", options.size, found_size),
        ("block size", options.block_size, found_block_size),
    ):
        if asked is not None and found is not None and asked != found and not options.force:
            raise UsageError(
                f"{url} has a {what} of {found} bytes, not {asked}",
                hint=f"Leave the {what} out."
                + (" To change it, use 's3backer resize'." if what == "size" else " It cannot be changed."),
            )
    size = options.size or found_size
    block_size = options.block_size or found_block_size or options.default_block_size
    if size is None or block_size is None:
        raise VolumeNotFound(
            f"there is no volume at {url}",
            hint="Create one with 's3backer create', or give its size and block size if it has no metadata.",
        )
    check_geometry(size, block_size)
    return size, block_size


def _take_token(store: ObjectStore, prefix: str, options: VolumeOptions) -> MountToken | None:
    found = read_token(store, prefix)
    url = volume_name(store, prefix)
    if options.read_only:
        if found is not None:
            log.warning("%s is mounted %s: what is read here may be older or torn", url, found.describe())
        return None
    if found is not None and not options.force:
        raise in_use(url, found)
    if found is not None:
        log.warning("%s was mounted %s; taking it over by force", url, found.describe())
    return write_token(store, prefix, url, replace=found, random_source=random.SystemRandom())
