"""One who writes a block at a time to the cache, on a virtual clock, while stores wait until they are told to end."""

from __future__ import annotations

from pathlib import Path

from s3backer import _fast
from s3backer.backlog import Backlog
from s3backer.cache import BlockCache
from s3backer.cache_calls import Fetch, FlushRequest, Reply, Store, Sync, WriteRequest
from s3backer.cache_state import WritePolicy
from s3backer.errors import S3backerError, StoreError
from s3backer.journal.files import JournalDirectory
from s3backer.journal.service import Mount, WriteJournal
from s3backer.layouts.classic import ClassicLayout
from s3backer.stores.memory import MemoryStore

BLOCK = 4096
#: Of 100 blocks of memory 75 slow nobody down.
LIMIT, FREE = 100, 75
#: Blocks stored at once.
STORES = 4


class Slab(_fast.Slab):
    """One that counts the dirty blocks that somebody may have looked at."""

    looked = 0

    def dirty_blocks(self, limit: int) -> list[tuple[int, int, float, bool]]:
        found = super().dirty_blocks(limit)
        self.looked += len(found)
        return found


class Writer:
    """See the module. ``journal``: where there is one. ``limit``: blocks that may be unsaved in memory."""

    def __init__(self, journal: Path | None = None, limit: int = LIMIT, *, delay: float = 3600.0) -> None:
        self.slab = Slab(BLOCK, 2 * limit, limit)
        self.layout = ClassicLayout(MemoryStore(), "p/", block_size=BLOCK, size=4000 * BLOCK)
        self.now = 0.0
        self.answers: list[tuple[object, S3backerError | None]] = []
        self.stores: list[Store] = []
        #: What reading a block fails with; and how many were read.
        self.unreadable: dict[int, S3backerError] = {}
        self.fetches = 0
        self.directory: JournalDirectory | None = None
        self.journal: WriteJournal | None = None
        backlog = None
        if journal is not None:
            self.directory = JournalDirectory(journal)
            mount = Mount(bytes(32), bytes(16), 1, "memory:")
            self.journal = WriteJournal(
                self.directory, self.slab, mount, budget=16 * (64 << 10), capacity=4000, file_bytes=64 << 10
            )
            backlog = Backlog((), self.journal.core.is_left)
        policy = WritePolicy(delay=delay, store_limit=STORES, high_water=limit // 2)
        self.cache = BlockCache(self.slab, self.layout, policy, self.journal, backlog=backlog)

    def close(self) -> None:
        if self.journal is not None and self.directory is not None:
            self.journal.close()
            self.directory.close()

    def take(self) -> None:
        for action in self.cache.take_actions():
            match action:
                case Reply(request, error):
                    self.answers.append((request, error))
                case Store():
                    self.stores.append(action)
                case Fetch(block):
                    self.fetches += 1
                    error, body = self.unreadable.get(block), None
                    if error is None:
                        # Of a block that the journal has as a whole nothing is asked of the store.
                        assert self.journal is not None
                        body = self.journal.over(block, lambda: None)
                    self.cache.fetched(block, body, error, self.now)
                    self.take()
                case Sync():
                    self.sync()
                    self.cache.synced(self.now)
                    self.take()

    def sync(self) -> None:
        assert self.journal is not None
        self.journal.core.sync()

    def begin(self, block: int) -> WriteRequest:
        if self.journal is not None:
            self.journal.prepare()
        data = bytes([block % 255 + 1]) * BLOCK
        position, reason = self.cache.writer.write(block * BLOCK, data, self.now)
        request = WriteRequest(offset=block * BLOCK, data=data, length=BLOCK, position=position)
        if reason == _fast.DONE and not self.cache.crowded:
            self.answers.append((request, None))
        else:
            self.cache.write(request, self.now)
            self.take()
        return request

    def answered(self, request: object) -> list[S3backerError | None]:
        return [error for found, error in self.answers if found is request]

    def write(self, block: int) -> float | None:
        """Return for how many seconds a write is held back; None: until something is stored."""
        request, began = self.begin(block), self.now
        while not self.answered(request):
            wake = self.cache.next_release
            if wake is None:
                return None
            self.now = max(self.now, wake)
            self.cache.tick(self.now)
            self.take()
        assert self.answered(request) == [None]
        return self.now - began

    def flush(self) -> FlushRequest:
        request = FlushRequest()
        self.cache.flush(request, self.now)
        self.take()
        return request

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.cache.tick(self.now)
        self.take()

    def end(self, store: Store, error: S3backerError | None = None) -> None:
        self.stores.remove(store)
        if self.journal is not None and error is None:
            self.journal.done(store.block, store.as_of, "")
            self.journal.prepare()
        self.cache.stored(store.block, error, self.now)
        self.take()

    def fail_stores(self) -> list[int]:
        """Let those under way fail; return of which blocks."""
        stores = list(self.stores)
        for store in stores:
            self.end(store, StoreError("away", hint="Wait."))
        return [store.block for store in stores]
