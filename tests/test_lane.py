"""The fast lane without a kernel: a socket stands for /dev/fuse, and requests are forged."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3backer._fast import Slab
from s3backer._journal import Journal
from s3backer._lane import Lane
from s3backer._parking import FLUSH
from s3backer._readahead import ReadAhead
from tests.support.journals import SmallJournal
from tests.support.power_loss import FaultyDisk

BLOCK = 4096
SLOTS = 1024
INODE = 2
GETATTR, READ, WRITE, FSYNC, INIT, INTERRUPT = 3, 15, 16, 20, 26, 36
_IN, _OUT = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")
#: Seconds until a test fails.
PATIENCE = 20.0


@dataclass
class Forged:
    """A lane, the kernel's end of its descriptor, llfuse's end of its socket, and its threads."""

    lane: Lane
    kernel: socket.socket
    llfuse: socket.socket
    threads: list[threading.Thread]
    slab: Slab

    def ask(self, opcode: int, unique: int, body: bytes, node: int = INODE) -> None:
        """Send a request."""
        self.kernel.send(_IN.pack(_IN.size + len(body), opcode, unique, node, 0, 0, 0, 0) + body)

    def answer(self) -> tuple[int, int, bytes]:
        """Return (unique, error, body) of the next reply."""
        reply = self.kernel.recv(4 << 20)
        _, error, unique = _OUT.unpack_from(reply)
        return unique, error, reply[_OUT.size :]

    def interrupt_threads(self) -> None:
        """Interrupt what its threads wait in."""
        libc = ctypes.CDLL(None)
        for thread in self.threads:
            libc.tgkill(os.getpid(), thread.native_id, signal.SIGUSR1)

    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self.threads)


@contextlib.contextmanager
def serving(slab: Slab, threads: int, journal: Journal | None = None) -> Iterator[Forged]:
    """Let a lane serve."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    llfuse, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (kernel, device):
        end.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)
    kernel.settimeout(PATIENCE)
    lane = Lane(
        device.detach(),
        ours.fileno(),
        slab,
        ReadAhead(slab.block_size, 0),
        inode=INODE,
        handle=1,
        end=SLOTS * BLOCK,
        pressure=SLOTS,
        journal=journal,
    )
    forged = Forged(lane, kernel, llfuse, [], slab)
    for _ in range(threads):
        forged.threads.append(threading.Thread(target=lane.serve, daemon=True))
        forged.threads[-1].start()
    try:
        yield forged
    finally:
        lane.stop()
        while forged.alive():
            forged.interrupt_threads()
            forged.threads[0].join(0.02)
        for end in (kernel, llfuse, ours):
            with contextlib.suppress(OSError):
                end.close()
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def forged() -> Iterator[Forged]:
    """Return a lane that serves with one thread."""
    with serving(Slab(BLOCK, SLOTS, SLOTS // 2), 1) as forged:
        yield forged


def test_a_read_larger_than_its_buffer_waits_for_somebody_with_a_larger_one(forged: Forged) -> None:
    # Where pages have 16 or 64 KiB, 32 of them are more than the lane asked for.
    length = 300 * BLOCK
    for block in range(300):
        forged.slab.fill(block, b"x" * BLOCK)
    forged.ask(READ, 10, struct.pack("=QQIIQII", 0, 0, length, 0, 0, 0, 0))
    news = forged.lane.parking.wait(1000)
    assert news is not None
    ((kind, number, offset, size, _),) = news
    assert (kind, offset, size) == (0, 0, length)
    forged.lane.finish(number, 0, b"y" * length)
    assert forged.answer() == (10, 0, b"y" * length)


def test_it_ends_although_llfuse_takes_nothing(forged: Forged) -> None:
    forged.kernel.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for unique in range(2, 100_000, 2):
            forged.ask(GETATTR, unique, bytes(16))
    forged.lane.stop()
    for _ in range(100):
        forged.interrupt_threads()
        forged.threads[0].join(0.05)
        if not forged.alive():
            break
    ended = not forged.alive()
    forged.llfuse.close()
    assert ended


def test_the_interruption_of_what_llfuse_has_is_not_asked_for_again(forged: Forged) -> None:
    forged.ask(GETATTR, 10, bytes(16))
    forged.llfuse.recv(4096)
    # Answered with EAGAIN the kernel would ask again at once, and before it hands out anything else.
    forged.ask(INTERRUPT, 11, struct.pack("=Q", 10), node=0)
    forged.ask(INTERRUPT, 13, struct.pack("=Q", 12), node=0)
    assert forged.answer() == (13, -errno.EAGAIN, b"")


# ── flushes that the journal answers ─────────────────────────────────────────────────────────────────────────


@dataclass
class Written:
    """A lane of three threads with a journal, of which something is not on the disk yet."""

    forged: Forged
    disk: FaultyDisk
    small: SmallJournal

    def flush(self, unique: int) -> None:
        self.forged.ask(FSYNC, unique, bytes(16))

    def interrupt(self, unique: int) -> None:
        self.forged.ask(INTERRUPT, unique + 1, struct.pack("=Q", unique), node=0)

    def parked(self) -> tuple[int, int]:
        """Return the kind and the number of the request that is parked next."""
        news = self.forged.lane.parking.wait(int(PATIENCE * 1000))
        assert news
        ((kind, number, *_),) = news
        return kind, number


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    with SmallJournal(tmp_path / "journal") as small:
        disk = FaultyDisk(small.core)
        small.write(0, b"x" * 512)
        with serving(small.slab, 3, small.core) as forged:
            yield Written(forged, disk, small)
            disk.go_on.set()


def test_a_flush_is_answered_when_the_disk_of_the_journal_has_it(written: Written) -> None:
    written.disk.go_on.clear()
    written.flush(10)
    assert written.disk.syncing.wait(PATIENCE)
    # Meanwhile others are served, and a second flush waits somewhere else.
    written.forged.ask(READ, 12, struct.pack("=QQIIQII", 0, 0, 512, 0, 0, 0, 0))
    assert written.forged.answer() == (12, 0, b"x" * 512)
    written.flush(14)
    kind, number = written.parked()
    assert kind == FLUSH
    written.forged.ask(READ, 16, struct.pack("=QQIIQII", 0, 0, 512, 0, 0, 0, 0))
    assert written.forged.answer() == (16, 0, b"x" * 512)
    written.disk.go_on.set()
    assert written.forged.answer() == (10, 0, b"")
    written.forged.lane.finish(number, 0)
    assert written.forged.answer() == (14, 0, b"")
    assert written.small.core.synced and written.disk.syncs == 1


def test_the_next_flush_is_answered_by_another_sync(written: Written) -> None:
    for unique in range(10, 20, 2):
        written.small.write(0, b"y" * 512)
        written.flush(unique)
        assert written.forged.answer() == (unique, 0, b"")
    assert written.disk.syncs == 5


def test_a_flush_waits_for_the_bucket_where_the_disk_of_the_journal_failed(written: Written) -> None:
    written.disk.sync_error = errno.EIO
    for unique in (10, 12):
        written.flush(unique)
        kind, number = written.parked()
        assert kind == FLUSH
        written.forged.lane.finish(number, errno.EIO)
        assert written.forged.answer() == (unique, -errno.EIO, b"")


@pytest.mark.parametrize("failing", [False, True])
def test_a_flush_that_is_called_off_while_the_disk_works(written: Written, failing: bool) -> None:
    written.disk.go_on.clear()
    written.disk.sync_error = errno.EIO if failing else 0
    written.flush(10)
    assert written.disk.syncing.wait(PATIENCE)
    written.interrupt(10)
    # An answer to that would come before this one: the kernel asked again at once, and again.
    written.forged.ask(READ, 12, struct.pack("=QQIIQII", 0, 0, 512, 0, 0, 0, 0))
    assert written.forged.answer() == (12, 0, b"x" * 512)
    written.disk.go_on.set()
    # It does not wait for the bucket.
    assert written.forged.answer() == (10, -errno.EINTR if failing else 0, b"")
    assert written.forged.lane.parking.wait(0) == []
