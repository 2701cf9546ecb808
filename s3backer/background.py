"""Going into the background: a daemon that belongs to nobody, and a parent that knows how it went.

    parent ── fork ──► child ── setsid, fork ──► daemon
      │                                            │
      │ ◄───────── {"ready": true} ────────────────┤   or {"error": …, "hint": …, "exit_code": N}, and it ends
      ├─ verifies ─────── "verified" ────────────► │   or the end of the file, and it ends
      ▼                                            ▼
    returns ◄──────── closes its end ────────── serves

Guarantees
  * The parent returns only when the daemon is ready and the parent has verified it; else it raises what the daemon
    met, or that it died without a word, and the daemon is gone.
  * A daemon whose parent was killed, or interrupted, before it had verified the mount ends: it hears of that at once.
  * The daemon holds no descriptor, terminal or directory of its parent once the parent has returned.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import NoReturn

from s3backer.errors import DEFECT, MountError, S3backerError, out_of_memory

log = logging.getLogger(__name__)

_VERIFIED = b"verified\n"


class Parent:
    """Who asked for a mount, as the daemon sees it."""

    def __init__(self, connection: socket.socket, null: int) -> None:
        self._connection = connection
        self._null = null
        self._heard = threading.Event()
        #: Whether it has verified the mount.
        self.verified = False

    def ready(self) -> None:
        """Say that the mount can be used; return when that was verified, and raise MountError if it never will be."""
        os.dup2(self._null, 2)
        os.close(self._null)
        _tell(self._connection, {"ready": True})
        try:
            self.verified = self._connection.recv(len(_VERIFIED)) == _VERIFIED
        except ConnectionError:
            self.verified = False
        self._heard.set()
        if not self.verified:
            raise MountError("the process that asked for the mount is gone", hint="Mount it again.")
        # Wakes the thread that watches, too.
        self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def watch(self, gone: Callable[[], object]) -> None:
        """Call ``gone``, in a thread, if the parent goes or is interrupted before the mount was verified."""
        # Of its own: the other one is closed when the mount was verified.
        connection = self._connection.dup()

        def look() -> None:
            poll = select.poll()
            poll.register(connection, select.POLLRDHUP)
            with connection:
                poll.poll()
            if not self._heard.is_set():
                gone()

        threading.Thread(target=look, name="s3backer-parent", daemon=True).start()

    def end(self, error: S3backerError) -> NoReturn:
        """End this process here and now, and tell why."""
        _tell(self._connection, _failure(error))
        logging.shutdown()
        os._exit(error.exit_code)


def launch(serve: Callable[[Parent], None], verify: Callable[[], None]) -> int:
    """Run ``serve(parent)`` in a daemon; return 0 once it is ``ready`` and ``verify`` has passed here.

    When ``Parent.ready`` raises, ``serve`` must end. The calling process must have no other threads.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _become_daemon(serve, theirs)
    theirs.close()
    with ours:
        try:
            os.waitpid(child, 0)
            if _converse(ours, verify):
                return 0
        except BaseException:
            _wait_for_end(ours)
            raise
    raise MountError(
        "the daemon ended without a word before the mount was ready",
        hint="Run it with --foreground to see why; the kernel's log tells if it was killed.",
    )


def _converse(connection: socket.socket, verify: Callable[[], None]) -> bool:
    """Follow the daemon until it serves; False if it ended without a word, its own error if it had one."""
    with contextlib.suppress(ConnectionError), connection.makefile("r", encoding="utf-8") as messages:
        for line in messages:
            message = json.loads(line)
            if "error" in message:
                raise _told_error(message)
            verify()
            connection.sendall(_VERIFIED)
            # It closes its end when it has understood.
            return not messages.read()
    return False


def _wait_for_end(connection: socket.socket) -> None:
    """Tell the daemon that nobody wants it, and wait until it has ended, which is when its volume is closed."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def _become_daemon(serve: Callable[[Parent], None], connection: socket.socket) -> NoReturn:
    """Cut all ties with the process that asked, and serve. Never returns."""
    code = 1
    try:
        os.setsid()
        # Not being a session's leader it can never get a terminal again.
        if os.fork():
            os._exit(0)
        os.chdir("/")
        os.umask(0o077)
        _close_inherited({0, 1, 2, connection.fileno()})
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        code = _serve(serve, connection, Parent(connection, null))
    except BaseException as error:
        _tell(connection, _failure(out_of_memory(error) or _defect(error)))
    finally:
        logging.shutdown()
        os._exit(code)


def _serve(serve: Callable[[Parent], None], connection: socket.socket, parent: Parent) -> int:
    try:
        serve(parent)
        if not parent.verified:
            raise MountError("it was unmounted before it was ready", hint="Mount it again.")
    except S3backerError as error:
        if parent.verified:
            log.error("%s", error)
        _tell(connection, _failure(error))
        return error.exit_code
    except Exception as error:
        if parent.verified:
            log.critical("the daemon failed", exc_info=error)
        raise
    return 0


def _defect(error: BaseException) -> S3backerError:
    return S3backerError(f"the daemon failed with {error!r}", hint=DEFECT)


def _failure(error: S3backerError) -> dict[str, object]:
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}


def _tell(connection: socket.socket, message: Mapping[str, object]) -> None:
    # The process that asked may be gone, or be content already.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _told_error(message: Mapping[str, object]) -> S3backerError:
    error = S3backerError(str(message["error"]), hint=str(message.get("hint", "")))
    code = message.get("exit_code")
    if isinstance(code, int) and code > 0:
        error.exit_code = code
    return error


def _close_inherited(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            # The descriptor of the listing itself is closed already.
            with contextlib.suppress(OSError):
                os.close(int(name))
