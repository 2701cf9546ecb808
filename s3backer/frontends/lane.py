"""The fast lane's place between the kernel and llfuse, and its threads.

    /dev/fuse ──► s3backer-lane-N ──hot──► /dev/fuse          s3backer-lane-pump ──► Port ──► finish
                        └──others──► socket ──► llfuse ──► s3backer-lane-back ──► /dev/fuse

llfuse's descriptor of /dev/fuse is put out of the way and a socket of whole messages takes its number, so that
llfuse, unchanged, reads what is left to it and answers into the socket. See ``_lane.pyx`` for what is answered where.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from s3backer import _lane, _parking, failpoints
from s3backer.errors import Interrupted, StoreError
from s3backer.frontends.errnos import errno_of
from s3backer.logs import RateLimited
from s3backer.port import Call, Error, Port
from s3backer.stores.base import Buffer

log = logging.getLogger(__name__)

#: Threads that read from the kernel. One alone has 0.47 of the original's speed: while it works nobody listens, and
#: waking an idle core is the largest cost of all.
THREADS = 3
#: Pause in seconds between two attempts to wake threads that are to end.
_NUDGE = 0.02
#: Milliseconds until a call that could not begin is tried again, and that the lane is asked for news without any.
_SOON, _LATE = 20, 10_000
#: Waiting requests of which no account is taken, and the steps in which it is.
_FEW = 64
#: Source: socket(7); Python has no name for it.
_SO_SNDBUFFORCE = 32
#: Bytes that may be on their way to llfuse: requests that a moment's standstill of its workers holds up.
_SOCKET_BYTES = 4 << 20


def device_descriptors() -> set[int]:
    """Return this process's open descriptors of /dev/fuse."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
    return found


class FastLane:
    """Takes the kernel's requests on one disk from llfuse.

    ``device`` is llfuse's descriptor. ``inode`` and ``handle`` are those of the disk. ``background``: how many
    asynchronous requests the kernel sends at a time; beyond it cached reads, too, would wait in the kernel for those
    that wait here, so ``allow`` is called with a larger number while many do. ``on_gone`` is called by a thread of the
    lane when the kernel has no more requests.
    """

    def __init__(
        self,
        device: int,
        port: Port,
        *,
        inode: int,
        handle: int,
        direct_io: bool,
        lazy_fsync: bool,
        background: int,
        allow: Callable[[int], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._port = port
        self._background = self._allowed = background
        self._allow = allow
        self._on_gone = on_gone
        self._limited = RateLimited(log)
        self._calls: dict[int, Call] = {}
        self._stopping = False
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, theirs):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_BYTES)
        # It is the lane's from now on.
        kernel = os.dup(device)
        os.dup2(theirs.fileno(), device, inheritable=False)
        theirs.close()
        self.lane = _lane.Lane(
            kernel,
            self._ours.fileno(),
            port.slab,
            port.read_ahead,
            inode=inode,
            handle=handle,
            end=port.end(),
            pressure=port.pressure,
            journal=port.journal,
            slow_writes=port.slow_writes,
            direct_io=direct_io,
            lazy_fsync=lazy_fsync,
            reach=failpoints.reach if failpoints.armed() else None,
        )
        port.on_end = self.lane.set_end
        port.on_lost = self.lane.slow_down
        if port.slow_writes:
            # It may have been lost in between.
            self.lane.slow_down()
        self._serving = [
            threading.Thread(target=self._serve, name=f"s3backer-lane-{number}", daemon=True)
            for number in range(THREADS)
        ]
        self._back = threading.Thread(target=self.lane.forward, name="s3backer-lane-back", daemon=True)
        self._pump = threading.Thread(target=self._run, name="s3backer-lane-pump", daemon=True)
        # Passing over what is zeros already takes its time in a large range: nobody else is to wait for that.
        self._zeroing: SimpleQueue[tuple[Call, int, int, Callable[[Error], None]] | None] = SimpleQueue()
        self._zero = threading.Thread(target=self._make_zeros, name="s3backer-lane-zero", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        for thread in (*self._serving, self._back, self._pump, self._zero):
            thread.start()

    def stop(self) -> None:
        """Stop answering and let the kernel's connection go. What still waits is not answered any more.

        SIGUSR1 must be one that interrupts system calls and does nothing else.
        """
        self._port.on_end = lambda end: None
        self._port.on_lost = lambda: None
        self._stopping = True
        self.lane.stop()
        libc = ctypes.CDLL(None)
        for thread in self._serving:
            while thread.is_alive():
                if thread.native_id is not None:
                    libc.tgkill(os.getpid(), thread.native_id, signal.SIGUSR1)
                thread.join(_NUDGE)
        self.lane.close()

    def join(self) -> None:
        """Wait for the other threads, when llfuse has closed its end."""
        self._back.join()
        self._pump.join()
        for call in list(self._calls.values()):
            call.cancelled = True
        self._zeroing.put(None)
        self._zero.join()
        self._ours.close()

    # ── threads ──────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        code = self.lane.serve()
        if code:
            log.error("reading requests of %s from the kernel failed: %s", self._port.name, os.strerror(code))

    def _run(self) -> None:
        later: list[tuple[int, int, int, int, int]] = []
        while (news := self.lane.parking.wait(_SOON if later else _LATE)) is not None:
            later = [one for one in (*later, *news) if not self._begin_or_fail(*one)]
            try:
                self._make_room(len(news))
            except Exception:
                log.exception("the fast lane met a defect and goes on")
        if not self._stopping:
            self._on_gone()

    def _make_zeros(self) -> None:
        while (one := self._zeroing.get()) is not None:
            call, offset, length, done = one
            try:
                while not self._port.zero(call, offset, length, done):
                    time.sleep(_NUDGE)
            except Exception as error:
                done(StoreError(f"zeroing failed: {error!r}"))

    def _make_room(self, arrived: int) -> None:
        """Let the kernel send as many requests beside those that wait as it may at first; so many have just come.

        Waiting writes count up to a limit: they hold their data in memory.
        """
        wanted = self._background
        if len(self._calls) > _FEW:
            kinds = [call.kind for call in list(self._calls.values())]
            reads = kinds.count(_parking.READ)
            wanted += -(-(reads + min(len(kinds) - reads, self._background)) // _FEW) * _FEW
        if wanted > self._allowed or (wanted == self._background) != (self._allowed == self._background):
            self._allowed = wanted
            arrived = max(arrived, 1)
        elif self._allowed == self._background:
            return
        # Of those that wait in the kernel for a larger number each time one is woken (fs/fuse/control.c), the next one
        # only when a request ends, which none may do for long.
        for _ in range(arrived):
            self._allow(self._allowed)

    def _begin_or_fail(self, kind: int, number: int, offset: int, length: int, position: int) -> bool:
        """Do what ``_begin`` does; whatever that meets, those that come later are served."""
        try:
            return self._begin(kind, number, offset, length, position)
        except Exception as error:
            if kind in (_parking.AHEAD, _parking.PRESSURE, _parking.INTERRUPT):
                # Nobody waits for it.
                log.debug("the fast lane: %r", error)
            else:
                self._finish(number, "serving", error)
            return True

    def _begin(self, kind: int, number: int, offset: int, length: int, position: int) -> bool:
        """Begin what the lane asks for; False if it has to be begun later."""
        port = self._port
        if kind == _parking.AHEAD:
            port.prefetch(range(offset, length))
            return True
        if kind == _parking.PRESSURE:
            port.wake()
            return True
        if kind == _parking.INTERRUPT:
            if (call := self._calls.get(number)) is not None:
                port.cancel(call)
            return True
        call = self._calls.setdefault(number, Call(kind))
        if call.cancelled:
            self._finish(number, "serving", Interrupted())
            return True
        if kind == _parking.READ:
            return port.read(call, offset, length, partial(self._read, number, f"reading {length} bytes at {offset}"))
        if kind in (_parking.WRITE, _parking.SYNC_WRITE):
            data = self.lane.parking.payload(number)
            done = partial(self._wrote, number, f"writing {length} bytes at {offset}")
            return port.write(call, offset, data, position, done, synced=kind == _parking.SYNC_WRITE)
        if kind == _parking.ZERO:
            self._zeroing.put((call, offset, length, partial(self._did, number, f"zeroing {length} bytes at {offset}")))
            return True
        return port.flush(call, partial(self._did, number, "flushing"))

    # ── ends of calls ────────────────────────────────────────────────────────────────────────────────

    def _read(self, number: int, what: str, error: Error, content: Buffer) -> None:
        self._finish(number, what, error, content)

    def _wrote(self, number: int, what: str, error: Error, taken: int) -> None:
        self._finish(number, what, error, taken=taken)

    def _did(self, number: int, what: str, error: Error) -> None:
        self._finish(number, what, error)

    def _finish(
        self, number: int, what: str, error: Exception | None, content: Buffer | None = None, taken: int = 0
    ) -> None:
        self._calls.pop(number, None)
        try:
            code = 0 if error is None else errno_of(error, f"{what} of {self._port.name}", self._limited)
        except Exception:
            # No memory to say so; who waits is answered all the same.
            code = errno.EIO
        self.lane.finish(number, code, content if error is None else None, taken)
