"""Worlds that have a journal, and end at some step as if the process had been killed there.

What a recovery would find is the bucket as it is at that moment, perhaps with requests that were still on
their way, and over it what the journal holds. That must be, byte by byte, what was acknowledged, or what was
being written there at the end.

Some go on from there with an empty memory, the journal as it is, and requests of the time before that still arrive;
what was found is then what every read has to return, until it is overwritten. They may crash again.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from s3backer.backlog import Backlog
from s3backer.cache import BlockCache
from s3backer.cache_calls import Store
from s3backer.cache_state import WritePolicy
from s3backer.journal.files import JournalDirectory
from s3backer.journal.replay import Recovered, scan
from s3backer.journal.service import Mount, Part, WriteJournal
from s3backer.layouts.token import new_token, write_token
from s3backer.opening import VolumeOptions
from s3backer.recovery import Recoverer
from s3backer.s3.unsettled import Unsettled
from s3backer.stores.base import Buffer
from s3backer.url import volume_id
from tests.support.journals import partly_kept
from tests.support.simulation import BLOCK, LASTING, World

_PREFIX = "p/"
#: One world in so many goes on after a crash.
_GOING_ON = 10


class Crash(BaseException):
    """The end of a world. No code of ours catches it."""


class CrashWorld(World):
    """``replayed``: a true recovery writes to the bucket, which must then hold everything; nothing goes on."""

    #: Of each file of the journal.
    file_bytes = 48 << 10

    def __init__(self, seed: int, *, replayed: bool = False, operations: int = 30) -> None:
        # In memory: what survives a process is the page cache, and nothing here asks for more.
        self.path = Path(tempfile.mkdtemp(prefix="s3backer-world-", dir="/dev/shm"))
        self.replayed = replayed
        self.held_until = 0.0
        #: Whether nothing of the mount before is under way any more when the next one begins.
        self.settled = False
        self.crashes = self.carried = 0
        self.found: Recovered | None = None
        try:
            self.directory = self.open_directory(self.path / "journal")
            super().__init__(seed, blocks=12, clients=3, operations=operations)
            self._left = self.random.randrange(5, 700)
        except BaseException:
            shutil.rmtree(self.path)
            raise

    def open_directory(self, path: Path) -> JournalDirectory:
        return JournalDirectory(path)

    def journal_kind(self) -> type[WriteJournal]:
        return WriteJournal

    def make_cache(self, policy: WritePolicy) -> BlockCache:
        if self.found is None:
            # As that of a mount with a journal: one that names none says that all is stored.
            token = replace(new_token(self.random), journal=self.directory.path)
            self.directory.note_token(token.value)
            self.token = write_token(self.store.inner, _PREFIX, "", token, former=None)
        self.journal = self.journal_kind()(
            self.directory,
            self.slab,
            Mount(volume_id(self.store.place, _PREFIX), self.random.randbytes(16), self.token.value, "memory:"),
            budget=self.random.randint(2, 5) * self.file_bytes,
            capacity=self.random.choice((70, 200)),
            file_bytes=self.file_bytes,
            recovered=self.found,
            monotonic=lambda: self.now,
        )
        self.writer = core = self.journal.core
        self.layout.left = core
        backlog = Backlog([] if self.found is None else self.found.pending, core.is_left)
        if self.found is not None and not self.settled:
            self.held_until = self.now + LASTING
            self.layout.doubted = self.found.pending
        return BlockCache(self.slab, self.layout, policy, self.journal, backlog=backlog, held_until=self.held_until)

    def read_block(self, block: int) -> Buffer | None:
        if not self.journal.core.is_left(block):
            return super().read_block(block)
        return self.journal.over(block, lambda: super(CrashWorld, self).read_block(block))

    def look(self, block: int) -> Part:
        return self.journal.part(block)

    def sync_journal(self) -> None:
        self.journal.core.sync()

    def _survey(self) -> None:
        if self.now < self.held_until:
            self.ready.append(self._survey)
        else:
            super()._survey()

    def store_block(self, action: Store) -> bool:
        etag = self.layout.write(action.block, action.body)
        return self.journal.done(action.block, action.as_of, etag)

    def _step(self) -> bool:
        self._left -= 1
        if self._left < 0:
            raise Crash
        if self.now >= self.held_until:
            self.layout.doubted = ()
        if self.random.random() < 0.04:
            self.carried += self.journal.carry() or self.journal.carry_blocks(self.journal.core.keepers())
            if self.journal.wait(0.0):
                self._prepare()
        if self.random.random() < 0.03:
            self.sync_journal()
        if super()._step():
            return True
        # Writers may wait for a file, and a file for what is in it to be known to be on the disk.
        self.sync_journal()
        if self.journal.wait(0.0):
            self._prepare()
            return True
        return False

    def _prepare(self) -> None:
        self.journal.prepare()
        self.call(lambda: self.cache.tick(self.now))

    def run(self) -> None:
        """Run until it crashes or ends, and see what is there."""
        try:
            while not self._ends():
                content = self._check()
                if not self.goes_on:
                    break
                self._go_on(content)
        finally:
            self.journal.close()
            self.directory.close()
            shutil.rmtree(self.path)

    @property
    def goes_on(self) -> bool:
        """Whether it goes on after the crash that has just been."""
        return not (self.replayed or self.seed % _GOING_ON or self.crashes > 2)

    def _ends(self) -> bool:
        """Run until it ends, or crashes."""
        try:
            super().run()
        except Crash:
            self._crash()
            return False
        self._check()
        return True

    def _crash(self) -> None:
        self.crashes += 1
        while self.late and self.random.random() < 0.5:
            self._arrive()

    def _go_on(self, content: bytearray) -> None:
        self.journal.close()
        self.ready, self._depth, self.model = [], 0, content
        self.found = partly_kept(self._scan())
        self.store.unsettled = Unsettled(lambda: self.now, LASTING)
        self._left = self.random.randrange(5, 700)
        self.mount()
        self.clients = self._make_clients(3)

    def _scan(self) -> Recovered:
        return scan(self.directory, volume_id(self.store.place, _PREFIX))

    def _check(self) -> bytearray:
        found = self._scan()
        content = self.bucket_content()
        for record, data in found.writes():
            for block in range(record.offset // BLOCK, (record.offset + record.length - 1) // BLOCK + 1):
                if found.needs(block, record.sequence):
                    start = max(record.offset, block * BLOCK)
                    stop = min(record.offset + record.length, (block + 1) * BLOCK)
                    content[start:stop] = bytes(stop - start) if data is None else data[: stop - start]
        self._compare(content, "what the journal holds over the bucket")
        if self.replayed:
            self.journal.close()
            recoverer = Recoverer(self.store.inner, _PREFIX, self.options(), self.directory)
            recoverer.replay()
            self._compare(self.bucket_content(), "the bucket after the replay")
            assert not self.directory.numbers()
        return content

    def options(self) -> VolumeOptions:
        return VolumeOptions(
            memory=1 << 20,
            threads=2,
            size=self.layout.size,
            block_size=BLOCK,
            block_hash_prefix=self.layout.hash_prefix,
        )

    def _compare(self, content: bytearray, what: str) -> None:
        for start in range(0, len(content), BLOCK):
            if content[start : start + BLOCK] == self.model[start : start + BLOCK]:
                continue
            wrong = [at for at in range(start, start + BLOCK) if content[at] != self.model[at]]
            for offset, data in self.others():
                if offset < start + BLOCK and offset + len(data) > start:
                    end = offset + len(data)
                    wrong = [at for at in wrong if not (offset <= at < end and data[at - offset] == content[at])]
            assert not wrong, (
                f"{self}: byte {wrong[0]} of block {start // BLOCK} is not what was acknowledged, in {what}"
            )

    def others(self) -> list[tuple[int, bytes]]:
        """Return what may be found, as (offset, data), where it is not what was acknowledged last."""
        return [write for client in self.clients for write in client.writing]


class TracedWorld(CrashWorld):
    """``trace`` is a digest of all that happened in it: of every step, of every job, and of what was found at its ends.

    Not of the journal's bytes, as its files have names and keys of their own.
    """

    def __init__(self, seed: int) -> None:
        self.trace = hashlib.sha256()
        super().__init__(seed)

    def _note(self, *what: object) -> None:
        self.trace.update(repr((self.now, *what)).encode())

    def _step(self) -> bool:
        self._note(len(self.ready), len(self.late), hash(self.random.getstate()[1]))
        return super()._step()

    def store_block(self, action: Store) -> bool:
        self._note(action.block, action.as_of, bytes(action.body or b""))
        return super().store_block(action)

    def _check(self) -> bytearray:
        content = super()._check()
        self._note(content, self.bucket_content(), self.crashes, self.carried)
        return content


def trace(seed: int) -> str:
    """Run a world and return its trace."""
    world = TracedWorld(seed)
    world.run()
    return world.trace.hexdigest()
