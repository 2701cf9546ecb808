"""A volume over a directory, with a journal, that ends as if its process had been killed.

The end is a copy of the bucket and of the journal, as they are at some moment; the volume is then closed, and the copy
put in their place: that is what a process that was killed at that moment has left.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3backer.admin import create_volume
from s3backer.codec.choice import EncodingOptions
from s3backer.errors import StoreError
from s3backer.layouts.classic import block_name, parse_block_name
from s3backer.opening import VolumeOptions
from s3backer.stores.directory import DirectoryStore
from s3backer.volume import Volume

BLOCK = 4096
SIZE = 4 << 20
NEVER = 3600.0
#: Seconds for which requests of a dead mount may take effect, where a test waits for that, and by which it may be late.
LASTING = 1.0
SECRET = EncodingOptions(encrypt="AES-256-CBC", password="correct horse")


def left_out(path: str, names: list[str]) -> set[str]:
    """Return the names in a directory that a copy of it has not."""
    return {name for name in names if name == "copy" or name.endswith(".spare")}


def copy_unless_gone(source: str, target: str) -> None:
    """Copy a file."""
    # A file that is being prepared gets its name meanwhile; nothing is in it yet.
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


class Place:
    """A bucket and the directory of its journal."""

    def __init__(self, directory: Path, encoding: EncodingOptions) -> None:
        self.directory = directory
        self.bucket, self.journals = directory / "bucket", directory / "journals"
        self.bucket.mkdir()
        self.options = VolumeOptions(
            memory=8 << 20,
            threads=4,
            write_delay=NEVER,
            journal=4 << 20,
            journal_directory=str(self.journals),
            encoding=encoding,
        )
        #: How a mount opens it that replays the journal of the one before, and has none.
        self.without = replace(self.options, journal=0)
        store = self.store()
        create_volume(store, "", size=SIZE, block_size=BLOCK, encoding=encoding)
        store.close()

    def store(self) -> DirectoryStore:
        return DirectoryStore(self.bucket)

    def open(self, **changes: Any) -> Volume:
        return Volume.open(self.store(), "", replace(self.options, **changes))

    @contextmanager
    def killed(self, **changes: Any) -> Iterator[Volume]:
        """Open the volume; it ends as if its process had been killed at the end of the block."""
        copy = self.directory / "copy"
        volume = self.open(**changes)
        try:
            yield volume
            before = None
            while before != (journal := self._journal()):
                # As of one moment: else what was stored meanwhile could be in neither.
                before = journal
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(self.directory, copy, ignore=left_out, copy_function=copy_unless_gone)
        finally:
            volume.close()
        shutil.rmtree(self.bucket)
        (copy / "bucket").rename(self.bucket)
        self.put_back(copy / "journals")
        shutil.rmtree(copy)

    def _journal(self) -> dict[str, bytes]:
        """What is in the directory of the journal, all but files that are being prepared."""
        found = {}
        for path in self.journals.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                if path.suffix != ".spare":
                    found[str(path)] = path.read_bytes()
        return found

    def put_back(self, journals: Path) -> None:
        """Let the directory of the journal have these files; its lock stays, as it would."""
        for old in self.journals.glob("*/*"):
            if old.name != "lock":
                old.unlink()
        for new in journals.glob("*/*"):
            if new.name != "lock":
                shutil.move(new, self.journals / new.relative_to(journals))

    def content(self, offset: int, length: int, **changes: Any) -> bytes:
        with self.open(**changes) as volume:
            return volume.read(offset, length)

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.journals.rglob("*.journal"))

    @property
    def objects(self) -> set[str]:
        return {path.name for path in self.bucket.iterdir() if parse_block_name(path.name) is not None}


def shortened(volume: Volume) -> Volume:
    """Let a volume that would wait for an hour at its end wait no more. For tests that ask what it does meanwhile."""
    volume._quiet_at = volume._driver.cache._write_back._held_until = 0.0
    return volume


class Watched(DirectoryStore):
    """Its requests may take effect for ``lasting`` seconds. ``writes``: (when, block) of each that changes one."""

    def __init__(self, place: Place, lasting: float = LASTING) -> None:
        super().__init__(place.bucket)
        self.lasting = lasting
        self.writes: list[tuple[float, int]] = []
        self.failing = False

    def _note(self, key: str) -> None:
        block = parse_block_name(key)
        if block is not None:
            self.writes.append((time.monotonic(), block))
            if self.failing:
                raise StoreError("it fails", hint="Wait.")

    def put(self, key: str, *args: Any, **more: Any) -> str:
        self._note(key)
        return super().put(key, *args, **more)

    def delete(self, key: str, **more: Any) -> None:
        self._note(key)
        super().delete(key, **more)

    def late_put(self, block: int, body: bytes) -> None:
        """A request of the mount that has died arrives."""
        super().put(block_name(block), body)


def opened(place: Place, store: DirectoryStore | None = None, **changes: Any) -> Volume:
    return Volume.open(store or Watched(place), "", replace(place.options, **changes))
