"""What the tests of the journal share: small journals, and what a caller does when one is full."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from s3backer import _fast
from s3backer._checksum import crc32c
from s3backer._journal import JOURNAL_BUSY, JOURNAL_FULL, Journal
from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import PAGE, Record
from s3backer.journal.replay import Recovered, scan
from s3backer.journal.service import Mount, WriteJournal
from s3backer.journal.system import System
from s3backer.stores.base import Buffer

BLOCK = 2048
BLOCKS = 24
FILE = 40960
#: Blocks that such a journal takes at once.
BATCH = 2
VOLUME = bytes(range(32))
MOUNT = Mount(VOLUME, b"0123456789abcdef", 0x1234ABCD, "s3://bucket/prefix")


def make_slab(blocks: int = BLOCKS, block_size: int = BLOCK) -> _fast.Slab:
    """A slab in which every block is whole, so that writes of any bytes are taken."""
    slab = _fast.Slab(block_size, blocks + 1, blocks)
    for block in range(blocks):
        slab.fill(block, None)
    return slab


def resealed(page: bytes, at: int, value: bytes) -> bytes:
    """Return a header's page with other bytes at a place, and the CRC that fits them."""
    changed = page[:at] + value + page[at + len(value) : PAGE - 4]
    return changed + crc32c(changed).to_bytes(4, "little")


def prepared_journal(prepare: Callable[[WriteJournal], None]) -> type[WriteJournal]:
    """A journal for which something is done before anything is written: what is gone on with gets a record at once."""

    class Prepared(WriteJournal):
        def __init__(self, *args: Any, **more: Any) -> None:
            self._waiting = [prepare]
            super().__init__(*args, **more)

        def _adopt(self, recovered: Recovered) -> None:
            self._prepare_it()
            super()._adopt(recovered)

        def _make_spares(self, count: int) -> None:
            self._prepare_it()
            super()._make_spares(count)

        def _prepare_it(self) -> None:
            while self._waiting:
                self._waiting.pop()(self)

    return Prepared


class SmallJournal:
    """A journal with small files, and what was appended to it: (number after it, offset, data)."""

    def __init__(
        self,
        path: Path,
        *,
        files: int = 4,
        file_bytes: int = FILE,
        capacity: int = 1000,
        mount: Mount = MOUNT,
        system: System | None = None,
        prepared: Callable[[WriteJournal], None] = lambda journal: None,
        **more: Any,
    ) -> None:
        self.directory = JournalDirectory(path, system=system)
        try:
            self.recovered: Recovered = partly_kept(scan(self.directory, mount.volume))
            self.slab = make_slab()
            self.journal: WriteJournal = prepared_journal(prepared)(
                self.directory,
                self.slab,
                mount,
                budget=files * file_bytes,
                capacity=capacity,
                file_bytes=file_bytes,
                recovered=self.recovered,
                **more,
            )
        except BaseException:
            self.directory.close()
            raise
        self.core = self.journal.core

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of it, and store everything when there is no room."""
        position = 0
        while position < len(data):
            count, reason = self.core.write(offset + position, memoryview(data)[position:], 0.0)
            position += count
            self.make_room(reason)

    def make_room(self, reason: int) -> None:
        if reason == JOURNAL_FULL:
            self.store_all()
        elif reason != JOURNAL_BUSY:
            assert reason == _fast.DONE
            return
        self.journal.prepare()

    def fill(self) -> set[int]:
        """Write until the journal is full, and return what else was said of a write that was not told to wait."""
        said: set[int] = set()
        for turn in range(200):
            _, reason = self.core.write(turn % BLOCKS * BLOCK, b"x" * BLOCK, 0.0)
            if reason == JOURNAL_FULL:
                return said
            if reason == JOURNAL_BUSY:
                self.journal.prepare()
            else:
                said.add(reason)
        raise AssertionError("it is never full")

    def store_all(self) -> None:
        sequence = self.slab.sequence
        for block in self.core.pending(BLOCKS):
            self.journal.intend(block, sequence, "", "c")
            self.journal.done(block, sequence, f'"{block}-{sequence}"')
        self.core.sync()

    def close(self) -> None:
        self.journal.close()
        self.directory.close()

    def __enter__(self) -> SmallJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def being_read(path: Path) -> Iterator[tuple[Journal, Callable[[], None]]]:
    """A journal of which nothing is needed any more while a block of it is read, unless that was too fast.

    Yields its hot part and what waits for the reader.
    """
    with SmallJournal(path, files=20, capacity=2000) as small:
        core = small.core
        for _ in range(1500):
            small.write(0, b"x" * 64)
        core.sync()
        reader = threading.Thread(target=core.load, args=(0, bytearray(BLOCK)))
        reader.start()
        while not core.loading and reader.is_alive():
            pass
        core.stored(0, small.slab.sequence)
        try:
            yield core, reader.join
        finally:
            reader.join()


def partly_kept(recovered: Recovered) -> Recovered:
    """Let every other file have to be read again, as where there are many records."""
    for file in recovered.files[1::2]:
        file.kept = None
    return recovered


def scan_path(
    path: Path, volume: bytes = VOLUME, key: bytes | None = None
) -> tuple[Recovered, list[tuple[Record, bytes | None]]]:
    """Scan a directory that nobody uses; return what was found and its writes."""
    with JournalDirectory(path) as directory:
        recovered = scan(directory, volume)
        return recovered, list(recovered.writes(key))


def files_of(path: Path) -> dict[int, bytes]:
    """The contents of a journal's files, by number."""
    found = {}
    for file in path.iterdir():
        with suppress(ValueError):
            if file.suffix == ".journal":
                found[int(file.stem)] = file.read_bytes()
    return found
