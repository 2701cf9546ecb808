"""A volume in memory whose behaviour a test changes from outside, by files in a directory.

hold-read, hold-write, hold-flush     the call waits while the file is there
fail-read, fail-write, fail-flush     the call raises what a store that is away raises
stay-open                             ``close`` waits while the file is there
opened, closed                        written by the volume
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from s3backer.errors import ReadOnlyVolume, StoreUnreachable
from s3backer.stores.base import Buffer


class FakeDisk:
    """Has the interface of a Volume."""

    def __init__(self, control: Path, *, size: int = 1 << 20, block_size: int = 4096, read_only: bool = False) -> None:
        self.name = "fake://disk"
        #: No fast lane: every call is to be seen here.
        self.port = None
        self.block_size = block_size
        self.read_only = read_only
        self.size = size
        self.data = bytearray(size)
        self.unsaved = 3
        self.settles_in = self.stores_in = 0.0
        self.lost = False
        self.write_back_error = self.journal_left = None
        self.calls = 0
        self._closing = False
        self._control = control
        (control / "opened").touch()

    def left_unsaved(self) -> None:
        """Nothing is lost."""

    def _meet(self, what: str) -> None:
        self.calls += 1
        self._wait(f"hold-{what}")
        if (self._control / f"fail-{what}").exists():
            raise StoreUnreachable("the store at 127.0.0.1 is away", hint="Wait.")

    def _wait(self, name: str) -> None:
        while (self._control / name).exists():
            (self._control / f"{name}-reached").touch()
            time.sleep(0.01)

    def read_buffer(self, offset: int, length: int) -> bytearray:
        # The first block is never held, as if it were in the cache.
        if offset >= self.block_size:
            self._meet("read")
        return self.data[offset : offset + length]

    def write(self, offset: int, data: Buffer) -> int:
        if self.read_only:
            raise ReadOnlyVolume("fake://disk was opened read-only")
        self._meet("write")
        room = self.size - offset
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = memoryview(data)[:room]
        self.data[offset : offset + len(taken)] = taken
        return len(taken)

    def flush(self) -> None:
        if self._closing:
            raise OSError(errno.EBADF, "the volume is closed")
        self._meet("flush")

    def resize(self, size: int, *, discard: bool = False) -> None:
        self.data = self.data[:size] + bytes(max(0, size - len(self.data)))
        self.size = size

    def facts(self) -> dict[str, object]:
        return {"volume": self.name, "size": self.size, "unsaved_blocks": self.unsaved}

    def stats_text(self) -> str:
        self.calls += 1
        return "".join(f"line {n:<22}{self.calls}\n" for n in range(300))

    def reset_stats(self) -> None:
        self.calls = 0

    def close(
        self, progress: Callable[[int, int], None] | None = None, waits: Callable[[float], None] | None = None
    ) -> None:
        self._closing = True
        while (self._control / "stay-open").exists():
            if progress:
                progress(self.unsaved, 3)
            time.sleep(0.01)
        if progress:
            progress(0, 3)
        (self._control / "closed").write_bytes(self.data)
