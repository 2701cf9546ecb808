"""A seeded world in which the shipped cache and layout run single-threaded, with a virtual clock and faults.

One seed, one world. Several clients read, write, zero and flush regions of their own (their borders fall inside
blocks and sectors, so blocks are shared). Every request to the store takes effect at some point between its start and
its end, and other steps of the world run before and after that point: a request is a nested run of the scheduler.
In some worlds a write whose answer was lost arrives later, or a second time.

The oracle is a plain array of bytes. A read must return exactly what its client wrote; after a flush that
succeeded, the bucket alone must hold the client's region; at the end the bucket must hold everything, zeros as absence.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from s3backer import _fast
from s3backer._journal import Journal
from s3backer.cache import BlockCache
from s3backer.cache_calls import (
    Fetch,
    FlushRequest,
    Hurry,
    Job,
    Look,
    ReadRequest,
    Reply,
    Request,
    Store,
    Sync,
    TouchRequest,
    WriteRequest,
)
from s3backer.cache_state import WritePolicy
from s3backer.errors import Interrupted, PreconditionFailed, S3backerError, StoreError
from s3backer.journal.service import Part
from s3backer.layouts.classic import ClassicLayout
from s3backer.layouts.copies import Copy
from s3backer.s3.unsettled import ABSENT, ANYTHING, Unsettled
from s3backer.stores.base import Body, Buffer, ListPage, ObjectInfo, ObjectRange, StoredObject
from s3backer.stores.bodies import pieces
from s3backer.stores.memory import MemoryStore

BLOCK = 1024
#: Virtual seconds after which a write that is still on its way is refused.
LASTING = 5.0
_T = TypeVar("_T")


class Fault(StoreError):
    """A failed request; ``began`` counts the steps of the world up to its start."""

    def __init__(self, message: str, began: int) -> None:
        super().__init__(message)
        self.began = began


class WorldStore:
    """A MemoryStore whose requests take time, fail before and after they took effect, and list in small pages.

    ``delayed``: writes may also arrive late, until ``LASTING`` seconds after they were sent, and wait as S3Store's do.
    """

    def __init__(self, world: World, delayed: bool) -> None:
        self._world = world
        self.inner = MemoryStore()
        self.delayed = delayed
        self.unsettled = Unsettled(lambda: world.now, LASTING)
        self.name = self.inner.name
        self.bucket = self.inner.bucket
        self.place = self.inner.place
        self.lasting = self.arriving = LASTING
        self.fence = self.inner.fence
        self.fenced = True
        self.conditions: bool | None = True
        self.counters = self.inner.counters

    def _around(self, effect: Callable[[], _T]) -> _T:
        world = self._world
        began = next(world.steps)
        world.run_some()
        if world.fault():
            raise Fault("failed before it took effect", began)
        result = effect()
        world.run_some()
        if world.fault():
            raise Fault("failed after it took effect", began)
        return result

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        return self._around(lambda: self.inner.get(key, at_most=at_most))

    def get_unless(self, key: str, etag: str, *, at_most: int | None = None) -> StoredObject | None:
        return self._around(lambda: self.inner.get_unless(key, etag, at_most=at_most))

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> ObjectRange:
        return self._around(lambda: self.inner.get_range(key, start, length, if_match=if_match))

    def head(self, key: str) -> ObjectInfo:
        return self._around(lambda: self.inner.head(key))

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str = "",
        content_encoding: str = "",
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        data = b"".join(pieces(body))
        accepts = if_match or (ABSENT if if_none_match else ANYTHING)
        becomes = f'"{hashlib.md5(data).hexdigest()}"'
        return self._write(
            key,
            accepts,
            becomes,
            lambda: self.inner.put(key, data, metadata=metadata, if_match=if_match, if_none_match=if_none_match),
        )

    def put_large(self, key: str, body: Body, **facts: Any) -> str:
        return self.put(key, body, **facts)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        # As servers do that ignore the condition.
        self._write(key, ANYTHING, ABSENT, lambda: self.inner.delete(key))

    def _write(self, key: str, accepts: str, becomes: str, effect: Callable[[], _T]) -> _T:
        world = self._world
        if not self.delayed:
            return self._around(effect)
        began = next(world.steps)
        if self.unsettled.wait_before(key, lambda: becomes) > 0:
            raise Fault("it has to wait for an earlier write", began)
        if world.fault():
            self.unsettled.add(key, accepts, world.now)
            world.late.append((world.now + LASTING, effect))
            if world.fault():
                raise Fault("its answer was lost, and it may arrive later", began)
        arrived = False

        def arrive() -> _T:
            nonlocal arrived
            arrived = True
            return effect()

        try:
            return self._around(arrive)
        except Fault:
            self.unsettled.add(key, accepts, world.now)
            raise
        except BaseException:
            # The process ends.
            if not arrived:
                world.late.append((world.now + LASTING, effect))
            raise

    def delete_many(self, keys: Sequence[str]) -> None:
        raise NotImplementedError

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
        return self._around(lambda: self.inner.list(prefix, start_after=start_after, limit=3))

    def settles_in(self) -> float:
        return self.unsettled.longest()

    def close(self) -> None:
        self.inner.close()


class WorldCopies:
    """Copies that take time to be found, get lost, and may be of an earlier mount: older than what the bucket has."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._copies: dict[int, Copy] = {}
        self.hits = 0

    def find(self, block: int) -> Copy | None:
        found = self._copies.get(block)
        self._world.run_some()
        return found

    def used(self, block: int, *, verified: bool) -> None:
        self.hits += not verified

    def keep(self, block: int, copy: Copy) -> None:
        self.drop(block)
        if self._world.random.random() < 0.9:
            self._copies[block] = copy

    def drop(self, block: int) -> None:
        self._copies.pop(block, None)

    def damaged(self, block: int) -> None:
        raise AssertionError(f"{self._world}: a copy of block {block} is said to be damaged")


class Client:
    """Issues one request at a time on its own region and checks every answer."""

    def __init__(self, world: World, name: int, start: int, stop: int) -> None:
        self.world, self.name, self.start, self.stop = world, name, start, stop
        self.operations = 0
        #: What is being written and not acknowledged: (offset, data), also of attempts that were called off.
        self.writing: list[tuple[int, bytes]] = []

    def issue(self) -> None:
        random_source = self.world.random
        self.operations += 1
        offset = random_source.randrange(self.start, self.stop)
        length = random_source.randint(1, min(3 * BLOCK, self.stop - offset))
        if random_source.random() < 0.4:  # aligned pieces as filesystems write them
            offset -= offset % 512
            length = -(-length // 512) * 512
            offset = max(offset, self.start)
            length = max(1, min(length, self.stop - offset))
        kind = random_source.choices(("write", "zero", "zeros", "read", "flush", "touch"), (8, 2, 3, 8, 2, 1))[0]
        if kind in ("zero", "zeros") and random_source.random() < 0.5:  # whole blocks
            first = -(-self.start // BLOCK)
            if (blocks := self.stop // BLOCK - first) > 0:
                offset = (first + random_source.randrange(blocks)) * BLOCK
                length = min(random_source.randint(1, 3) * BLOCK, self.stop // BLOCK * BLOCK - offset)
        world, cache, now = self.world, self.world.cache, self.world.now
        if kind == "read":
            buffer = bytearray(length)
            missing = world.slab.read(offset, buffer)
            read = ReadRequest(offset=offset, buffer=buffer)
            read.context = partial(self._read_done, read)
            if random_source.random() < 0.2:
                ahead = range(offset // BLOCK, offset // BLOCK + random_source.randint(0, 40))
                world.call(lambda: cache.prefetch(ahead))
            if missing:
                world.call(lambda: cache.read(read, missing))
                self._may_cancel(read)
            else:
                self._read_done(read, None)
        elif kind == "flush":
            flush = FlushRequest(context=partial(self._flush_done, next(world.steps)))
            world.call(lambda: cache.flush(flush, now))
            self._may_cancel(flush)
        elif kind == "touch":
            touch = TouchRequest(block=offset // BLOCK, context=self._touch_done)
            world.call(lambda: cache.touch(touch, now))
        else:
            data = None if kind == "zero" else bytes(length) if kind == "zeros" else random_source.randbytes(length)
            self._write(offset, length, data)

    def _write(self, offset: int, length: int, data: bytes | None) -> None:
        world = self.world
        self.writing.append((offset, data or bytes(length)))
        write = WriteRequest(offset=offset, data=data, length=length)
        write.context = partial(self._write_done, write)
        if data is not None:
            write.position, reason = world.writer.write(offset, data, world.now)
            if reason == _fast.DONE and not world.cache.crowded:
                self._write_done(write, None)
                return
        world.call(lambda: world.cache.write(write, world.now))
        self._may_cancel(write)

    def _may_cancel(self, request: Request) -> None:
        """Perhaps call a request off at some later step, when it may have ended as well."""
        world = self.world
        if world.random.random() < 0.1:
            world.ready.append(lambda: world.call(lambda: world.cache.cancel(request, Interrupted(), world.now)))

    def _write_done(self, request: WriteRequest, error: S3backerError | None) -> None:
        if error is not None:
            # A failed write may have changed part of its range: write it again until it succeeds. After one that was
            # called off something else: nothing of it may come later.
            if isinstance(error, Interrupted) and request.data is not None:
                request.data = bytes(byte ^ 0xFF for byte in bytes(request.data))
                self.writing.append((request.offset, request.data))
            self.world.ready.append(partial(self._write, request.offset, request.length, request.data))  # type: ignore[arg-type]
            return
        end = request.offset + request.length
        self.world.model[request.offset : end] = request.data or bytes(request.length)
        self.writing.clear()
        self.world.finished(self)

    def _read_done(self, request: ReadRequest, error: S3backerError | None) -> None:
        if error is None:
            expected = self.world.model[request.offset : request.offset + len(request.buffer)]
            assert request.buffer == expected, f"{self.world}: client {self.name} read wrong bytes at {request.offset}"
        self.world.finished(self)

    def _flush_done(self, asked: int, error: S3backerError | None) -> None:
        if isinstance(error, Interrupted):
            pass
        elif error is not None:
            assert isinstance(error, Fault) and error.began > asked, f"{self.world}: a flush failed of what was before"
        else:
            stored = self.world.bucket_content()
            region = slice(self.start, self.stop)
            assert stored[region] == self.world.model[region], f"{self.world}: a flush lied to client {self.name}"
        self.world.finished(self)

    def _touch_done(self, error: S3backerError | None) -> None:
        self.world.finished(self)


class World:
    """One world: build it, ``run`` it; every assertion names the seed. Until ``outage`` seconds the store is away."""

    #: Slots that a slab may have.
    slots: tuple[int, ...] = (4, 6, 12, 40)

    def __init__(
        self, seed: int, *, blocks: int = 24, clients: int = 4, operations: int = 60, outage: float = 0.0
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.model = bytearray(blocks * BLOCK)
        self.ready: list[Callable[[], None]] = []
        self.steps = itertools.count()
        self._depth = 0
        self._operations = operations
        self._outage = outage
        #: Blocks that were to be stored while the store was away.
        self.attempts = 0
        self._faults = self.random.choice((0.0, 0.02, 0.2))
        #: Writes that may still arrive: (until when, what they do).
        self.late: list[tuple[float, Callable[[], object]]] = []
        self._arrivals = self.random.choice((0.01, 0.1))
        self.store = WorldStore(self, delayed=self.random.random() < 0.6)
        self._hash_prefix = self.random.random() < 0.3
        self.copies = WorldCopies(self)
        self._begin_with_content()
        self.mount()
        self.clients = self._make_clients(clients)

    def _make_clients(self, count: int) -> list[Client]:
        borders = sorted(self.random.sample(range(1, len(self.model)), count - 1))
        edges = [0, *borders, len(self.model)]
        return [self.make_client(n, edges[n], edges[n + 1]) for n in range(count)]

    def make_client(self, name: int, start: int, stop: int) -> Client:
        return Client(self, name, start, stop)

    def mount(self) -> None:
        """Begin with an empty memory."""
        slots = self.random.choice(self.slots)
        self.slab = self.make_slab(slots, slots - self.random.randint(1, slots // 2))
        self.layout = self._make_layout()
        if self.random.random() < 0.6:
            self.layout.copies = self.copies
        policy = WritePolicy(
            delay=self.random.choice((0.0, 1.0, 30.0)),
            store_limit=self.random.randint(1, 6),
            high_water=max(1, slots // 2),
        )
        self.writer: _fast.Slab | Journal = self.slab
        self.cache = self.make_cache(policy)

    def make_slab(self, slots: int, dirty_limit: int) -> _fast.Slab:
        slab = self.new_slab(slots, dirty_limit)
        self.patch_limit = self.random.choice((2, 3, slots))
        slab.limit_patches(self.patch_limit)
        return slab

    def new_slab(self, slots: int, dirty_limit: int) -> _fast.Slab:
        return _fast.Slab(BLOCK, slots, dirty_limit)

    def _make_layout(self) -> ClassicLayout:
        return ClassicLayout(
            self.store,
            "p/",
            block_size=BLOCK,
            size=len(self.model),
            hash_prefix=self._hash_prefix,
            with_copies=True,
        )

    def make_cache(self, policy: WritePolicy) -> BlockCache:
        return BlockCache(self.slab, self.layout, policy)

    def __str__(self) -> str:
        return f"seed {self.seed}"

    def _begin_with_content(self) -> None:
        layout = self._make_layout()
        for block in range(layout.block_count):
            if block == 0 or self.random.random() < 0.3:
                body = self.random.randbytes(BLOCK)
                self.model[block * BLOCK : (block + 1) * BLOCK] = body
                etag = self.store.inner.put(layout.key(block), body)
                self.copies.keep(block, Copy(etag, body))
            if self.random.random() < 0.3:
                self.copies.keep(block, Copy('"of an earlier mount"', self.random.randbytes(BLOCK)))

    def run(self) -> None:
        self.ready.extend(client.issue for client in self.clients)
        self.ready.extend([self._peek] * 2)
        if self.random.random() < 0.7:
            self.ready.append(self._survey)
        while self._step():
            pass
        waiting = [client.name for client in self.clients if client.operations < self._operations]
        assert not waiting, f"{self}: clients {waiting} wait for ever"
        self._faults, self.now = 0.0, max(self.now, self._outage)
        while self.late:
            self._arrive()
        self.now += LASTING
        final: list[S3backerError | None] = []
        self.call(lambda: self.cache.flush(FlushRequest(context=final.append), self.now))
        while self._step():
            pass
        assert final == [None], f"{self}: the last flush did not succeed: {final}"
        assert self.bucket_content() == self.model, f"{self}: the bucket differs at the end"
        assert self.cache.idle and not self.slab.unsaved, f"{self}: not idle at the end"
        self.slab.check_invariants()
        for block in range(1, self.layout.block_count):
            if self.layout.key(block) in self.keys():
                assert any(self.model[block * BLOCK : (block + 1) * BLOCK]), f"{self}: block {block} is a zero object"

    def _peek(self) -> None:
        """Read anywhere while others write there: the answer may be anything, but what it leaves cached may not."""
        offset = self.random.randrange(len(self.model))
        buffer = bytearray(min(BLOCK, len(self.model) - offset))
        read = ReadRequest(offset=offset, buffer=buffer, context=self._peeked)
        missing = self.slab.read(offset, buffer)
        if missing:
            self.call(lambda: self.cache.read(read, missing))
        else:
            self._peeked(None)

    def _peeked(self, error: S3backerError | None) -> None:
        if self.busy:
            self.ready.append(self._peek)

    @property
    def busy(self) -> bool:
        """Whether clients have more to do."""
        return any(client.operations < self._operations for client in self.clients)

    def _arrive(self) -> None:
        """Let a late write arrive at last, if it is not refused by then."""
        until, effect = self.late.pop(self.random.randrange(len(self.late)))
        if self.now < until:
            with suppress(PreconditionFailed):
                effect()

    def _survey(self) -> None:
        try:
            self.layout.survey(lambda: False)
        except StoreError:
            self.ready.append(self._survey)

    def fault(self) -> bool:
        if self.now < self._outage:
            # It takes time to find that out.
            self.now += self.random.choice((0.0, 0.0, 1.0))
            return True
        return self.random.random() < self._faults

    def keys(self) -> set[str]:
        return {entry.key for entry in self.store.inner.list("p/").entries}

    def bucket_content(self) -> bytearray:
        content, keys = bytearray(len(self.model)), self.keys()
        for block in range(self.layout.block_count):
            if self.layout.key(block) in keys:
                content[block * BLOCK : (block + 1) * BLOCK] = self.store.inner.get(self.layout.key(block)).body
        return content

    def call(self, step: Callable[[], None]) -> None:
        """Run a step of the state machine and take up what it wants."""
        step()
        self.slab.check_invariants()
        for action in self.cache.take_actions():
            if isinstance(action, Reply):
                self.ready.append(partial(self._deliver, action.request, action.error))
            elif not isinstance(action, Hurry):
                self.ready.append(partial(self._carry_out, action))

    @staticmethod
    def _deliver(request: Request, error: S3backerError | None) -> None:
        assert callable(request.context)
        request.context(error)

    def _carry_out(self, action: Job) -> None:
        if isinstance(action, Sync):
            self.sync_journal()
            self.ready.append(lambda: self.call(lambda: self.cache.synced(self.now)))
            return
        if isinstance(action, Look):
            part = self.look(action.block)
            self.ready.append(lambda: self.call(lambda: self.cache.looked(action.block, part, None)))
            return
        body: Buffer | None = None
        error: S3backerError | None = None
        noted = True
        self.attempts += isinstance(action, Store) and self.now < self._outage
        try:
            if isinstance(action, Fetch):
                body = self.read_block(action.block)
            else:
                noted = self.store_block(action)
        except S3backerError as failure:
            error = failure
        if isinstance(action, Fetch):
            done = partial(self.cache.fetched, action.block, body, error)
        else:
            done = partial(self.cache.stored, action.block, error, noted=noted)
        self.ready.append(lambda: self.call(lambda: done(self.now)))

    def read_block(self, block: int) -> Buffer | None:
        return self.layout.read(block)

    def look(self, block: int) -> Part:
        raise NotImplementedError

    def sync_journal(self) -> None:
        raise NotImplementedError

    def store_block(self, action: Store) -> bool:
        """Store a block, and return whether that was noted where it has to be."""
        self.layout.write(action.block, action.body)
        return True

    def finished(self, client: Client) -> None:
        if client.operations < self._operations:
            self.ready.append(client.issue)

    def run_some(self) -> None:
        """Let other things happen inside a request."""
        if self._depth < 8:
            self._depth += 1
            for _ in range(self.random.choice((0, 0, 1, 2, 4))):
                if not self._step():
                    break
            self._depth -= 1

    def _step(self) -> bool:
        """Run one thing that is ready, or let time pass; False if nothing can happen any more."""
        if self.late and self.random.random() < self._arrivals:
            self._arrive()
        if self.ready and self.random.random() < 0.95:
            self.ready.pop(self.random.randrange(len(self.ready)))()
            return True
        wake = self.cache.next_wake(self.now)
        if wake is not None:
            self.now = max(self.now, wake) + self.random.choice((0.0, 0.1))
            self.call(lambda: self.cache.tick(self.now))
            return True
        return bool(self.ready)
