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

import pytest

from s3backer._fast import Slab
from s3backer._lane import Lane
from s3backer._readahead import ReadAhead

BLOCK = 4096
SLOTS = 1024
INODE = 2
GETATTR, READ, WRITE, INIT, INTERRUPT = 3, 15, 16, 26, 36
_IN, _OUT = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")
#: Seconds until a test fails.
PATIENCE = 20.0


@dataclass
class Forged:
    """A lane, the kernel's end of its descriptor, llfuse's end of its socket, and its one thread."""

    lane: Lane
    kernel: socket.socket
    llfuse: socket.socket
    thread: threading.Thread
    slab: Slab

    def ask(self, opcode: int, unique: int, body: bytes, node: int = INODE) -> None:
        """Send a request."""
        self.kernel.send(_IN.pack(_IN.size + len(body), opcode, unique, node, 0, 0, 0, 0) + body)

    def answer(self) -> tuple[int, int, bytes]:
        """Return (unique, error, body) of the next reply."""
        reply = self.kernel.recv(4 << 20)
        _, error, unique = _OUT.unpack_from(reply)
        return unique, error, reply[_OUT.size :]

    def interrupt_thread(self) -> None:
        """Interrupt what its thread waits in."""
        libc = ctypes.CDLL(None)
        libc.tgkill(os.getpid(), self.thread.native_id, signal.SIGUSR1)


@pytest.fixture
def forged() -> Iterator[Forged]:
    """Return a lane that serves."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    llfuse, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (kernel, device):
        end.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)
    kernel.settimeout(PATIENCE)
    slab = Slab(BLOCK, SLOTS, SLOTS // 2)
    lane = Lane(
        device.detach(),
        ours.fileno(),
        slab,
        ReadAhead(BLOCK, 0),
        inode=INODE,
        handle=1,
        end=SLOTS * BLOCK,
        pressure=SLOTS,
    )
    thread = threading.Thread(target=lane.serve, daemon=True)
    thread.start()
    forged = Forged(lane, kernel, llfuse, thread, slab)
    yield forged
    lane.stop()
    while thread.is_alive():
        forged.interrupt_thread()
        thread.join(0.02)
    for end in (kernel, llfuse, ours):
        with contextlib.suppress(OSError):
            end.close()
    signal.signal(signal.SIGUSR1, before)


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
        forged.interrupt_thread()
        forged.thread.join(0.05)
        if not forged.thread.is_alive():
            break
    ended = not forged.thread.is_alive()
    forged.llfuse.close()
    assert ended


def test_the_interruption_of_what_llfuse_has_is_not_asked_for_again(forged: Forged) -> None:
    forged.ask(GETATTR, 10, bytes(16))
    forged.llfuse.recv(4096)
    # Answered with EAGAIN the kernel would ask again at once, and before it hands out anything else.
    forged.ask(INTERRUPT, 11, struct.pack("=Q", 10), node=0)
    forged.ask(INTERRUPT, 13, struct.pack("=Q", 12), node=0)
    assert forged.answer() == (13, -errno.EAGAIN, b"")
