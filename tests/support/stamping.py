"""Stamped sectors, and parts of them, on a mount of an S3 server: who writes and kills, and what has to be there.

A ``Stamper`` is a thread that writes, discards, flushes and reads pieces of its own through the mounted file. It knows
what it was promised (crashing.History), so each read is compared at once, and all of it after a kill. An error ends it,
and is a failure unless the daemon was about to be killed.

A ``BucketBench`` mounts a volume on an S3 server whose requests expire soon: otherwise each mount after a kill would
wait two and a half minutes for those of the dead process.
"""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from s3backer.admin import create_volume
from s3backer.stores.s3 import S3Store
from tests.support.crashing import PIECE, SECTOR_PIECES, History, choose, stamps
from tests.support.servers import S3Server
from tests.support.tools import punch_hole
from tests.support.workbench import BLOCK, SIZE, Workbench

#: Seconds that an attempt may take, that a signature is good, and by which clocks may differ.
TIMEOUT, EXPIRY, DOUBT = 0.75, 2, 0.25
#: Seconds after which a mount believes that no request of a dead one may arrive.
LASTING = EXPIRY + 3 * TIMEOUT + DOUBT
#: Seconds after which whoever waits for the end of a stamper says that it hangs.
PATIENCE = 60.0


class BucketBench(Workbench):
    """A workbench whose volume lies in a bucket of its own on ``server``, reached at ``url``, and has a journal."""

    def __init__(self, directory: Path, server: S3Server, url: str = "") -> None:
        directory.mkdir(exist_ok=True)
        super().__init__(directory)
        self.server = server
        self.url = url or server.endpoint
        self.name = server.make_bucket()
        self.volume: dict[str, Any] = {
            "journal": 8 << 20,
            "journal_directory": str(directory / "journals"),
            "memory": 16 << 20,
            "write_delay": 0.2,
            "threads": 16,
        }

    def create(self, *, size: int = SIZE, block_size: int = BLOCK) -> None:
        store = S3Store(self.name, self.server.options())
        try:
            create_volume(store, "", size=size, block_size=block_size)
        finally:
            store.close()

    def open_store(self) -> S3Store:  # type: ignore[override]
        # Nothing is asked of it: it only says what the volume is called.
        return S3Store(self.name, replace(self.server.options(), endpoint_url=self.url))

    def what(self, **more: Any) -> dict[str, object]:
        described = super().what(volume={**self.volume, **more.pop("volume", {})}, **more)
        store = asdict(replace(self.server.options(), endpoint_url=self.url, timeout=TIMEOUT))
        return {**described, "url": f"s3://{self.name}", "store": store, "expiry": EXPIRY, "doubt": DOUBT}


class Stamper:
    """Stamps ``count`` sectors of a file from sector ``first`` on, with pauses of about ``pause`` seconds."""

    def __init__(self, seed: int, first: int, count: int, pause: float = 0.0) -> None:
        self.first, self.count = first * SECTOR_PIECES, count * SECTOR_PIECES
        self.history = History()
        self.problem: BaseException | None = None
        #: What it does since when, on the monotonic clock, for who asks whether it hangs.
        self.doing: tuple[str, float] = ("nothing", time.monotonic())
        self.reads = 0
        self._seed = seed
        self._source = random.Random(seed)
        self._pause = pause
        self._generation = 0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, file: Path) -> None:
        """Begin to stamp a file."""
        self._ending.clear()
        # Past the page cache: what is read comes from the daemon.
        descriptor = os.open(file, os.O_RDWR | os.O_DIRECT)
        self._thread = threading.Thread(target=self._run, args=(descriptor,), name="stamper", daemon=True)
        self._thread.start()

    def ending(self) -> None:
        """Let it end after what it does now; from now on errors are expected."""
        self._ending.set()

    def stop(self) -> None:
        """See it end, and fail if it had a problem before it was told to, or if it hangs."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive(), f"{self} hangs"
            self._thread = None
        self.look()

    def look(self) -> None:
        """Fail if it had a problem."""
        if self.problem is not None:
            raise AssertionError(f"{self} met {self.problem!r}") from self.problem

    def check(self, file: Path) -> None:
        """Compare all of its sectors with what they may hold."""
        descriptor = os.open(file, os.O_RDWR | os.O_DIRECT)
        try:
            self._compare(descriptor, self.first, self.count)
        finally:
            os.close(descriptor)

    def __str__(self) -> str:
        what, since = self.doing
        return f"the stamper of seed {self._seed}, which does {what} for {time.monotonic() - since:.1f} s,"

    def _run(self, descriptor: int) -> None:
        try:
            while not self._ending.is_set():
                self._step(descriptor)
                self.doing = ("nothing", time.monotonic())
                if self._pause:
                    time.sleep(self._source.uniform(0, 2 * self._pause))
        except BaseException as error:
            if not (isinstance(error, OSError) and self._ending.is_set()):
                self.problem = error
        finally:
            try:
                os.close(descriptor)
            except OSError as error:
                if not self._ending.is_set():
                    self.problem = self.problem or error

    def _step(self, descriptor: int) -> None:
        source, history = self._source, self.history
        self._generation += 1
        offset, count = choose(source, self.count)
        first = self.first + offset
        dice = source.random()
        if dice < 0.55:
            self._do(f"a write of piece {first}")
            history.begin(first, count, self._generation)
            data = stamps(first, count, self._generation)
            written = os.pwrite(descriptor, data, first * PIECE)
            assert written == len(data)
            history.acknowledge(first, count, self._generation)
        elif dice < 0.62:
            self._do(f"a discard of piece {first}")
            history.begin(first, count, 0)
            punch_hole(descriptor, first * PIECE, count * PIECE)
            history.acknowledge(first, count, 0)
        elif dice < 0.72:
            self._do("a flush")
            os.fsync(descriptor)
            history.flushes += 1
        else:
            self._do(f"a read of piece {first}")
            self._compare(descriptor, first, count)
            self.reads += 1

    def _do(self, what: str) -> None:
        self.doing = (what, time.monotonic())

    def _compare(self, descriptor: int, first: int, count: int) -> None:
        end = first + count
        while first < end:
            length = min(end - first, 2048 * SECTOR_PIECES)
            content = os.pread(descriptor, length * PIECE, first * PIECE)
            assert len(content) == length * PIECE
            self.history.check(content, first)
            first += length
