"""A cache with a journal, moved by hand, a job at a time."""

from __future__ import annotations

from pathlib import Path

from s3backer import _fast
from s3backer.backlog import Backlog
from s3backer.cache import BlockCache
from s3backer.cache_calls import (
    Fetch,
    FlushRequest,
    Hurry,
    Job,
    Look,
    ReadRequest,
    Reply,
    Store,
    Sync,
    WriteRequest,
)
from s3backer.cache_state import WritePolicy
from s3backer.errors import S3backerError, StoreError
from s3backer.journal.files import JournalDirectory
from s3backer.journal.service import Mount, Part, WriteJournal
from s3backer.layouts.classic import ClassicLayout
from s3backer.stores.memory import MemoryStore

BLOCK = 1024
VOLUME = bytes(32)


class Slab(_fast.Slab):
    """One for whose copies there may be no memory."""

    lacks_memory = False

    def begin_store(self, block: int) -> tuple[int, int, bytes | None]:
        if self.lacks_memory:
            raise MemoryError
        return super().begin_store(block)


class Steps:
    """A cache whose jobs wait in ``jobs`` until ``do`` does one."""

    def __init__(self, path: Path, *, delay: float = 3600.0, high_water: int = 3) -> None:
        self.store = MemoryStore()
        self.slab = Slab(BLOCK, 6, 3)
        self.layout = ClassicLayout(self.store, "p/", block_size=BLOCK, size=24 * BLOCK)
        for block in range(24):
            self.store.put(self.layout.key(block), bytes([block]) * BLOCK)
        self.directory = JournalDirectory(path / "journal")
        self.journal = WriteJournal(
            self.directory,
            self.slab,
            Mount(VOLUME, bytes(16), 1, "memory:"),
            budget=10 * (48 << 10),
            capacity=500,
            file_bytes=48 << 10,
        )
        self.core = self.layout.left = self.journal.core
        policy = WritePolicy(delay=delay, store_limit=2, high_water=high_water)
        self.backlog = Backlog((), self.core.is_left)
        self.cache = BlockCache(self.slab, self.layout, policy, self.journal, backlog=self.backlog)
        self.now = 0.0
        self.jobs: list[Job] = []
        self.answers: list[tuple[object, S3backerError | None]] = []

    def take(self) -> None:
        for action in self.cache.take_actions():
            if isinstance(action, Reply):
                self.answers.append((action.request, action.error))
            elif not isinstance(action, Hurry):
                self.jobs.append(action)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.cache.tick(self.now)
        self.take()

    def write(self, offset: int, data: bytes) -> WriteRequest:
        position, reason = self.core.write(offset, data, self.now)
        request = WriteRequest(offset=offset, data=data, length=len(data), position=position)
        if reason == _fast.DONE:
            self.answers.append((request, None))
        else:
            self.cache.write(request, self.now)
            self.take()
        return request

    def read(self, block: int, start: int = 0, length: int = BLOCK) -> ReadRequest:
        request = ReadRequest(offset=block * BLOCK + start, buffer=bytearray(length))
        missing = self.slab.read(request.offset, request.buffer)
        self.cache.read(request, missing)
        self.take()
        return request

    def flush(self) -> FlushRequest:
        request = FlushRequest()
        self.cache.flush(request, self.now)
        self.take()
        return request

    def fetched(self, block: int) -> bytes | None:
        found = (
            self.journal.over(block, lambda: self.layout.read(block))
            if self.core.is_left(block)
            else self.layout.read(block)
        )
        return None if found is None else bytes(found)

    def do(self, job: Job, *, away: bool = False) -> None:
        self.jobs.remove(job)
        self.end(
            job,
            self.fetched(job.block) if isinstance(job, Fetch) and not away else None,
            away=away,
            part=self.journal.part(job.block) if isinstance(job, Look) else None,
        )

    def looks(self) -> None:
        """Do all that only needs the journal."""
        while looks := [job for job in self.jobs if isinstance(job, Look)]:
            self.do(looks[0])

    def end(self, job: Job, body: bytes | None, *, away: bool = False, part: Part | None = None) -> None:
        """End a job; ``body``: what a Fetch has brought, ``part``: what a Look has found."""
        error = StoreError("away", hint="Wait.") if away else None
        match job:
            case Sync():
                self.core.sync()
                self.cache.synced(self.now)
            case Look(block):
                self.cache.looked(block, part, None)
            case Fetch(block):
                self.cache.fetched(block, body, error, self.now)
            case Store(block, copy, as_of):
                noted = away or self.journal.done(block, as_of, self.layout.write(block, copy))
                self.cache.stored(block, error, self.now, noted=noted)
        self.take()

    def leave(self, block: int) -> None:
        self.core.sync()
        assert self.core.spill(block)
        self.backlog.add(block)

    def read_others(self) -> None:
        """Read so many other blocks that what is clean leaves memory."""
        for other in range(10, 20):
            self.read(other)
            for job in [job for job in self.jobs if isinstance(job, Fetch) and job.block == other]:
                self.do(job)

    def evict(self, block: int) -> None:
        self.read_others()
        assert not self.slab.contains(block)

    def run(self, hours: float = 1.0) -> None:
        """Do all that comes, and let time pass in between."""
        until = self.now + hours * 3600
        while self.now < until:
            for job in list(self.jobs):
                self.do(job)
            self.tick(60.0)

    def answered(self, request: object) -> list[S3backerError | None]:
        return [error for found, error in self.answers if found is request]
