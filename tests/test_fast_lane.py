"""What passes on what the fast lane cannot answer at once, without a kernel: a socket stands for /dev/fuse."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from s3backer.admin import create_volume
from s3backer.frontends.errnos import errno_of
from s3backer.frontends.lane import FastLane
from s3backer.layouts.classic import block_name
from s3backer.opening import VolumeOptions
from s3backer.stores.memory import MemoryStore
from s3backer.volume import Volume

BLOCK, BLOCKS = 4096, 256
INODE, READ, INTERRUPT = 2, 15, 36
_IN, _OUT = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")


class Served:
    """A volume of blocks that have to be fetched, and the kernel's end of the lane."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        create_volume(self.store, "", size=BLOCKS * BLOCK, block_size=BLOCK)
        for block in range(1, BLOCKS):
            self.store.put(block_name(block), bytes([block]) * BLOCK)
        self.volume = Volume.open(self.store, "", VolumeOptions(memory=8 << 20, threads=4))
        self.kernel, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(20)
        self.lane = FastLane(
            self.device.fileno(),
            self.volume.port,
            inode=INODE,
            handle=1,
            direct_io=False,
            lazy_fsync=False,
            background=64,
            allow=lambda number: None,
            on_gone=lambda: None,
        )
        self.lane.start()

    def ask(self, opcode: int, unique: int, body: bytes) -> None:
        self.kernel.send(_IN.pack(_IN.size + len(body), opcode, unique, INODE, 0, 0, 0, 0) + body)

    def read(self, unique: int, block: int) -> None:
        self.ask(READ, unique, struct.pack("=QQIIQII", 0, block * BLOCK, BLOCK, 0, 0, 0, 0))

    def answered(self) -> int:
        """Return which request the next reply answers."""
        return int(_OUT.unpack_from(self.kernel.recv(1 << 20))[2])

    def close(self) -> None:
        self.lane.stop()
        self.device.close()
        self.lane.join()
        self.kernel.close()
        self.volume.close()


@pytest.fixture
def served() -> Iterator[Served]:
    # With it a lane thread is woken.
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    made = Served()
    yield made
    made.close()
    signal.signal(signal.SIGUSR1, before)


def failing_once(monkeypatch: pytest.MonkeyPatch, served: Served, method: str) -> list[BaseException]:
    """Let a method of the cache find no memory, once; return what is left to be raised."""
    failures: list[BaseException] = [MemoryError()]
    real = getattr(served.volume._driver.cache, method)

    def fails(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(served.volume._driver.cache, method, fails)
    return failures


def test_no_memory_for_reading_ahead_stops_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = failing_once(monkeypatch, served, "prefetch")
    for block in range(1, 60):
        served.read(10 + 2 * block, block)
        assert served.answered() == 10 + 2 * block
    assert not failures
    served.read(1000, 200)
    assert served.answered() == 1000


def test_nor_does_no_memory_for_an_interruption(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = failing_once(monkeypatch, served, "cancel")
    get, go_on = served.store.get, threading.Event()

    def later(key: str, **more: Any) -> Any:
        go_on.wait(20)
        return get(key, **more)

    monkeypatch.setattr(served.store, "get", later)
    served.read(100, 100)
    time.sleep(0.2)
    served.ask(INTERRUPT, 101, struct.pack("=Q", 100))
    time.sleep(0.3)
    go_on.set()
    assert served.answered() == 100
    assert not failures
    served.read(1000, 200)
    assert served.answered() == 1000


def test_nor_does_no_memory_for_an_error(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits gets EIO."""
    missing, read = [1], served.volume.port.read

    def no_read(*args: Any, **more: Any) -> bool:
        if missing:
            raise MemoryError
        return read(*args, **more)

    def no_errno(error: Exception, *args: Any) -> int:
        if missing:
            missing.clear()
            raise MemoryError
        return errno_of(error, *args)

    monkeypatch.setattr(served.volume.port, "read", no_read)
    monkeypatch.setattr("s3backer.frontends.lane.errno_of", no_errno)
    served.read(10, 100)
    assert served.answered() == 10
    served.read(12, 101)
    assert served.answered() == 12
