"""Worlds in which everything is scarce, and that end again and again: by a kill, or by a loss of power.

Memory has few slots, and at times no room for a copy of a block; the journal is tiny, and its disk is full at times: of
a write then a part is there, or nothing; the store is away for a while. Clients also flush into the journal. After each
end it goes on with what is there.

A kill loses nothing that was acknowledged. When the power fails each byte is what it was at the last flush of the
journal that was acknowledged, or something that was written there since. What is found is the same for who adopts the
journal and for who replays it.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from s3backer import _fast
from s3backer.cache_calls import Store
from s3backer.errors import JournalError, ObjectNotFound, S3backerError, StoreError
from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import RECORD_MAGIC
from s3backer.journal.service import WriteJournal
from s3backer.layouts.classic import ClassicLayout
from s3backer.replaying import Replayer
from s3backer.stores.memory import MemoryStore
from tests.support.crash_world import CrashWorld
from tests.support.journals import prepared_journal
from tests.support.power_loss import Calls, Disk, Recorder
from tests.support.simulation import BLOCK, LASTING, Client, Fault

_MAGIC = struct.pack("<I", RECORD_MAGIC)
#: Ends after which a world goes on.
_ENDS = 3
#: Bytes before the end of a file where the disk is full more often: what does not fit there goes to another file.
_END = 3 * BLOCK
#: How often, in steps, it is seen what a kill would leave.
_GLIMPSES = 0.02
#: Idle steps after which the disk has room again, and after which nothing is waited for any more.
_PATIENCE, _FOR_EVER = 50, 400


class ScarceDisk(Recorder):
    """A disk that is full while it is said to be: it takes a part of a write, or nothing."""

    full = False

    def __init__(self, source: random.Random) -> None:
        super().__init__()
        self._random = source
        #: How often it is full where a file of the journal ends.
        self.ends = 0.0
        #: Numbers of the last record that was written, and of the last one of which that was tried.
        self._written = self._tried = 0

    def write(self, fd: int, data: bytes, position: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "")
        super().write(fd, data, position)

    def append(self, fd: int, data: bytes, position: int) -> int:
        """Write what a journal does, or a part of it."""
        numbers = list(_numbers(data))
        self._tried = max(numbers, default=self._tried)
        near = position + len(data) > os.fstat(fd).st_size - _END and self._random.random() < self.ends
        room = len(data)
        # A part of several records would be the end of the journal.
        if self.full or near:
            several = sum(number > self._written for number in numbers) > 1
            whole = _without_zeros(data)
            room = 0 if several else self._random.choice((0, self._random.randrange(len(data)), whole, whole))
        if not room:
            raise OSError(errno.ENOSPC, "")
        if room == len(data):
            self._written = self._tried
        return self._pwrite(fd, data[:room], position)

    def sync_file(self, fd: int) -> None:
        """Let what was written to a file be durable."""
        self._fdatasync(fd)

    def forget(self) -> None:
        """Begin anew, with a disk as it is."""
        self.steps.clear()
        self._written = 0


def _without_zeros(data: bytes) -> int:
    """Return the length of data without the zeros at its end."""
    return len(data.rstrip(b"\0"))


def _numbers(data: bytes) -> Iterator[int]:
    """Yield the numbers of the records that begin in a piece of a journal."""
    at = data.find(_MAGIC)
    while at >= 0:
        if at % 8 == 0 and at + 16 <= len(data):
            yield struct.unpack_from("<Q", data, at + 8)[0]
        at = data.find(_MAGIC, at + 1)


class ScarceSlab(_fast.Slab):
    """One that may have no memory for a copy."""

    lacks_memory: Callable[[], bool]

    def begin_store(self, block: int) -> tuple[int, int, bytes | None]:
        if self.lacks_memory():
            raise MemoryError
        return super().begin_store(block)


class HardClient(Client):
    """One that also flushes into the journal."""

    world: HardWorld

    def issue(self) -> None:
        if self.world.random.random() < 0.12:
            self.operations += 1
            self.world.sync_journal()
            self.world.finished(self)
        else:
            super().issue()

    def _write(self, offset: int, length: int, data: bytes | None) -> None:
        self.world.since.append((offset, data or bytes(length)))
        super()._write(offset, length, data)

    def _flush_done(self, asked: int, error: S3backerError | None) -> None:
        if isinstance(error, (StoreError, JournalError)) and not isinstance(error, Fault):
            # There was no memory, or nothing may be stored before others know that the journal lacks something.
            self.world.finished(self)
        else:
            super()._flush_done(asked, error)


class HardWorld(CrashWorld):
    """``seen``: what has been scarce, or has happened.

    ``replayed``: at each end a replay of the journal writes to a copy of the bucket, which must be what is found then.
    """

    slots = (2, 3, 4, 6, 12)
    file_bytes = 36 << 10

    def __init__(self, seed: int, *, replayed: bool = False) -> None:
        source = random.Random(f"hard {seed}")
        self._compared = replayed
        #: How often, in steps, the disk becomes full, and it has room again; the store goes away; and memory is short.
        self._full_rate, self._room_rate = source.choice((0.0, 0.02, 0.02, 0.1)), source.choice((0.05, 0.2))
        self._outage_rate = source.choice((0.0, 0.005, 0.03))
        self._memory_rate = source.choice((0.0, 0.0, 0.05, 0.3))
        self._power_rate = source.choice((0.0, 0.5))
        self.disk = ScarceDisk(source)
        self.disk.ends = source.choice((0.3, 0.95)) if self._full_rate else 0.0
        self._calls = Calls(self.disk.append, self.disk.sync_file)
        #: What was there at the last flush of the journal, and what was written since, acknowledged or not.
        self._flushed, self.since = b"", list[tuple[int, bytes]]()
        self._idle = 0
        #: Whether it has ended by a loss of power just now.
        self._cut = False
        self.seen: set[str] = set()
        super().__init__(seed, operations=source.choice((30, 60, 120)))
        self._left = self.random.randrange(5, source.choice((700, 3000)))
        self._flushed = bytes(self.model)

    # ── what it is made of ───────────────────────────────────────────────────────────────────────────────────────

    def open_directory(self, path: Path) -> JournalDirectory:
        path.mkdir(mode=0o700, exist_ok=True)
        self.disk.forget()
        self._durable = Disk(path)
        return JournalDirectory(path, system=self.disk)

    def new_slab(self, slots: int, dirty_limit: int) -> _fast.Slab:
        slab = ScarceSlab(BLOCK, slots, dirty_limit)
        slab.lacks_memory = self._lacks_memory
        return slab

    def _lacks_memory(self) -> bool:
        lacks = self.busy and self.random.random() < self._memory_rate
        if lacks:
            self.seen.add("no memory")
        return lacks

    def journal_kind(self) -> type[WriteJournal]:
        return prepared_journal(lambda journal: self._calls.interpose(journal.core))

    def make_client(self, name: int, start: int, stop: int) -> Client:
        return HardClient(self, name, start, stop)

    def mount(self) -> None:
        self.disk.full = False
        super().mount()

    # ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────

    def sync_journal(self) -> None:
        super().sync_journal()
        self._flushed = bytes(self.model)
        self.since = [write for client in self.clients for write in client.writing]

    def store_block(self, action: Store) -> bool:
        # As the driver.
        if self.journal.core.behind and not self.cache.admitted:
            raise JournalError("the journal lacks something, and others do not know that yet", hint="")
        return super().store_block(action)

    def _step(self) -> bool:
        self._change()
        if self.random.random() < _GLIMPSES:
            # As if it had been killed here. Most of what goes wrong is written over before a world ends.
            super()._check()
        if super()._step():
            self._idle = 0
            return True
        # Who waits for room, or for others to know something, goes on only now.
        self._idle += 1
        self.now += 1.0
        self.disk.full = self.disk.full and self._idle < _PATIENCE
        if self.journal.core.behind and not self.cache.admitted:
            self.call(lambda: self.cache.admit(self.now))
        self._prepare()
        return bool(self.ready or self.cache._parked or not self.cache.idle) and self._idle < _FOR_EVER

    def _prepare(self) -> None:
        self.cache.try_disk()
        super()._prepare()

    def _change(self) -> None:
        """Let something become scarce, or no more."""
        core, source = self.journal.core, self.random
        assert not core.failed, f"{self}: the journal has failed: {core.failure}"
        self.disk.full = source.random() >= self._room_rate if self.disk.full else source.random() < self._full_rate
        if self.now >= self._outage and source.random() < self._outage_rate and self.busy:
            self._outage = self.now + source.choice((1.0, 10.0, 100.0))
        if core.behind and not self.cache.admitted and source.random() < 0.1:
            if source.random() < 0.3:
                asked = source.randint(0, self.cache.flushes_asked)
                self.call(lambda: self.cache.not_admitted(asked, StoreError("others cannot be told", hint="")))
            else:
                self.call(lambda: self.cache.admit(self.now))
        for name, happens in (
            ("full disk", self.disk.full),
            ("outage", self.now < self._outage),
            ("behind", core.behind),
            ("spilled", core.left and not self.crashes),
            ("patches", self.slab.patches >= self.patch_limit - 1),
            ("unnoted", self.cache._write_back.unnoted),
        ):
            if happens:
                self.seen.add(name)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def goes_on(self) -> bool:
        return self.crashes <= _ENDS

    def _ends(self) -> bool:
        self._cut = False
        return super()._ends()

    def _crash(self) -> None:
        # Then the journal is not known to have all that is under way, and the next mount waits before it reads.
        self.settled = self.cache.admitted
        if self.random.random() < self._power_rate:
            self._lose_power()
            self.settled = True
        super()._crash()
        if self.settled:
            while self.late:
                if self.random.random() < 0.5:
                    self._arrive()
                else:
                    self.late.pop()
            self.now += LASTING

    def _lose_power(self) -> None:
        self._cut = True
        self.seen.add("power loss")
        for step in self.disk.steps:
            self._durable.take(step)
        self.journal.close()
        self.directory.close()
        where = self.path / f"journal-{self.crashes}"
        self._durable.fail(self.random, where)
        for file in where.iterdir():
            file.chmod(0o600)
        self.directory = self.open_directory(where)

    def _go_on(self, content: bytearray) -> None:
        found = bytes(content)
        super()._go_on(content)
        self._flushed, self.since, self._idle = found, [], 0
        self._compare_with(found, self._adopted(), "a mount that goes on has something else than a replay")

    def run(self) -> None:
        try:
            super().run()
        finally:
            # C functions that call it live as long as the process.
            self.disk.forget()

    # ── what is there ────────────────────────────────────────────────────────────────────────────────────────────

    def others(self) -> list[tuple[int, bytes]]:
        return super().others() + ([(0, self._flushed), *self.since] if self._cut else [])

    def _check(self) -> bytearray:
        content = super()._check()
        if self._compared:
            self._compare_with(content, self._replayed(), "a replay has something else than the journal")
        return content

    def _compare_with(self, content: bytes | bytearray, other: bytearray, what: str) -> None:
        places = [slice(at, at + BLOCK) for at in range(0, len(content), BLOCK)]
        differ = [place.start // BLOCK for place in places if content[place] != other[place]]
        assert not differ, f"{self}: {what}, in blocks {differ}"

    def _adopted(self) -> bytearray:
        """Return what who reads gets from a mount that has just begun."""
        content, core = self.bucket_content(), self.journal.core
        for block in filter(core.is_left, range(self.layout.block_count)):
            place = slice(block * BLOCK, (block + 1) * BLOCK)
            content[place] = self.journal.over(block, lambda: content[place])  # noqa: B023
        return content

    def _replayed(self) -> bytearray:
        """Return what a replay writes, over what the bucket has."""
        store = MemoryStore()
        for key in self.keys():
            store.put(key, self.store.inner.get(key).body)
        size = self.layout.size
        layout = ClassicLayout(store, "p/", block_size=BLOCK, size=size, hash_prefix=self._hash_prefix)
        Replayer(self._scan(), lambda done, total: None).store(store, layout, self.options())
        content = bytearray(size)
        for block in range(layout.block_count):
            try:
                content[block * BLOCK : (block + 1) * BLOCK] = store.get(layout.key(block)).body
            except ObjectNotFound:
                continue
        return content
