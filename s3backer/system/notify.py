"""Telling systemd how the service is: ready, stopping, and still storing data.

One datagram of ``NAME=VALUE`` lines to the socket that $NOTIFY_SOCKET names, as sd_notify(3) describes it.

    READY=1                  the mount answers
    STOPPING=1               it is ending, whoever asked for that
    EXTEND_TIMEOUT_USEC=N    give it N microseconds from now on: sent when it begins to end and whenever fewer blocks
                             are left than before, so that the service manager waits while data goes out, and only then;
                             and once more, with its length, for the wait for requests whose answers were lost
    STATUS=TEXT              what 'systemctl status' shows

Guarantees
  * Without $NOTIFY_SOCKET nothing happens. A message that cannot be delivered is logged once and never raised.
  * The thread that reports the end is ended by ``close``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

log = logging.getLogger(__name__)

#: Seconds that each step forward buys. One block can need several attempts of half a minute.
EXTENSION = 120
#: Seconds between two looks at what is left.
_INTERVAL = 0.5
#: Seconds after which a service manager that does not read has missed a message.
_SEND_SECONDS = 5.0


class Service:
    """What the service manager sees of this process. ``address`` is a path, ``@NAME``, or empty: there is none."""

    def __init__(self, address: str = "", *, interval: float = _INTERVAL) -> None:
        self._address = address
        self._interval = interval
        self._silent = not address
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._said_at = -interval

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the service that the environment describes."""
        return cls(environment.get("NOTIFY_SOCKET", ""))

    def ready(self, status: str) -> None:
        """Say that the mount answers."""
        self._send("READY=1", f"STATUS={status}")

    def starting(self, status: str) -> None:
        """Say that it takes longer to begin; at most once a second."""
        now = time.monotonic()
        if now >= self._said_at + self._interval:
            self._said_at = now
            self._send(_extension(), f"STATUS={status}")

    def stopping(self, left: Callable[[], int], waits: Callable[[], float] = lambda: 0.0) -> None:
        """Say that it ends, and from now on how many blocks are ``left``; only the first call counts.

        ``waits`` returns how many seconds will pass after the last block, for requests whose answers were lost.
        """
        with self._lock:
            if self._silent or self._thread is not None:
                return
            thread = threading.Thread(target=self._report, args=(left, waits), name="s3backer-notify", daemon=True)
            # Without one nobody hears how far it is; it ends all the same.
            with contextlib.suppress(RuntimeError, MemoryError):
                thread.start()
                self._thread = thread

    def close(self, status: str) -> None:
        """Stop reporting what is left, and say how it ended."""
        self._over.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
        self._send(f"STATUS={status}")

    def _report(self, left: Callable[[], int], waits: Callable[[], float]) -> None:
        least = said = left()
        longest = 0.0
        self._send("STOPPING=1", _extension(), f"STATUS={_left(least)}")
        while not self._over.wait(self._interval):
            now = left()
            if now < least:
                self._send(_extension(), f"STATUS={_left(now)}")
            elif now != said:
                self._send(f"STATUS={_left(now)}")
            least, said = min(least, now), now
            seconds = 0.0 if now else waits()
            if seconds > longest:
                self._send(_extension(seconds), f"STATUS=ending, waits {seconds:.0f} s for requests without an answer")
            longest = seconds

    def _send(self, *lines: str) -> None:
        if self._silent:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        # One line each, whatever the name of a directory holds.
        message = "\n".join(line.replace("\n", " ") for line in lines).encode("utf-8", "replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.sendto(message, address)
        except (OSError, ValueError) as error:
            self._silent = True
            log.warning("the service manager cannot be told at %s: %s", self._address, error)


def _extension(seconds: float = 0.0) -> str:
    return f"EXTEND_TIMEOUT_USEC={(EXTENSION + round(seconds)) * 1_000_000}"


def _left(blocks: int) -> str:
    return f"ending, {blocks} blocks are left to store" if blocks else "ending, no block is left to store"
