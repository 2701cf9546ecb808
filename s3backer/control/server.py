"""The daemon's side: it listens, runs commands and answers.

Guarantees
  * A line that cannot be understood is answered with an error; one that is too long ends its connection.
  * A client that vanishes harms nobody, and neither does one that says nothing.
  * Only the owner and root are served.
  * A daemon that ends takes its socket away, and no other one's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from s3backer.clocks import boot_time
from s3backer.control.messages import VERSION, Progress, clock_name, decode, encode, failure, lines, success
from s3backer.control.sockets import changing, connect, control_path, identity, opened_directory, peer, socket_in
from s3backer.errors import S3backerError, UsageError, out_of_memory

log = logging.getLogger(__name__)

#: Clients served at once; more are turned away, so that threads stay bounded.
MAX_CLIENTS = 16
#: Daemons of one volume on one host that have a socket.
MAX_DAEMONS = 16
_SEND_SECONDS = 10.0
_JOIN_SECONDS = 10.0

#: A command's work: takes its arguments and a way to report progress, returns the result or raises S3backerError.
Handler = Callable[[Mapping[str, object], Progress], Mapping[str, object]]


def listen(name: str, handlers: Mapping[str, Handler]) -> ControlServer:
    """Return a server, started, by the first name of a volume at which no daemon listens.

    Raises S3backerError where there is no such name, or the place is not safe to use.
    """
    trouble: S3backerError | None = None
    for number in range(1, MAX_DAEMONS + 1):
        server = ControlServer(control_path(f"{name}-{number}" if number > 1 else name), handlers)
        try:
            server.start()
        except S3backerError as error:
            trouble = trouble or error
        else:
            return server
    assert trouble is not None
    raise trouble


class ControlServer:
    """Listens on one socket and runs ``handlers`` by command, each connection in a thread of its own."""

    def __init__(self, socket_path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = socket_path
        self._handlers = dict(handlers)
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, socket.socket] = {}
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._inode = (0, 0)
        self._stopping = False

    def start(self) -> None:
        """Listen. Raises S3backerError if another daemon listens there or the place is not safe to use."""
        name = self._path.name
        with opened_directory(self._path.parent, create=True) as directory:
            running = connect(self._path)
            if running is not None:
                running.close()
                raise S3backerError(
                    f"another daemon serves this volume at {self._path}", hint="Ask it with 's3backer info'."
                )
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            new = f"{name}.{os.getpid()}.new"
            place = socket_in(directory, new)
            try:
                # It has its name only when it listens: before, it would be taken for a dead daemon's.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(place)
                listener.bind(place)
                os.chmod(place, 0o600)
                listener.listen(MAX_CLIENTS)
                self._inode = identity(directory, new)
                try:
                    with changing(directory):
                        os.link(place, socket_in(directory, name))
                finally:
                    os.unlink(place)
            except OSError as error:
                listener.close()
                raise S3backerError(
                    f"the control socket {self._path} cannot be made: {error.strerror}",
                    hint="Check the directory and its permissions.",
                ) from None
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, name="s3backer-control", daemon=True)
        self._thread.start()

    def stop(self, *, keep: bool = False) -> None:
        """Stop listening, let running commands end and answer, and remove the socket.

        ``keep``: leave it, as who dies does: who is not heard any more must not be taken for one that ended well.
        """
        if self._listener is None or self._thread is None:
            return
        self._stopping = True
        # Unlike close, this wakes the thread that waits in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        # Before it is closed: afterwards the filesystem may give the inode's number to the socket of another daemon.
        if not keep:
            self._remove()
        self._listener.close()
        self._listener = None
        with self._lock:
            clients = dict(self._clients)
        for connection in clients.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        for thread in clients:
            thread.join(_JOIN_SECONDS)

    def _remove(self) -> None:
        with contextlib.suppress(OSError, S3backerError), opened_directory(self._path.parent) as directory:
            try:
                with changing(directory):
                    self._remove_ours(directory)
            except TimeoutError:
                # What is left would be taken for a dead daemon's.
                self._remove_ours(directory)

    def _remove_ours(self, directory: int) -> None:
        name = self._path.name
        if identity(directory, name) == self._inode:
            os.unlink(name, dir_fd=directory)

    def _accept(self) -> None:
        listener = self._listener
        assert listener is not None
        number = 0
        while not self._stopping:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._stopping or error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    return
                time.sleep(0.1)
                continue
            number += 1
            thread = threading.Thread(
                target=self._serve, args=(connection,), name=f"s3backer-control-{number}", daemon=True
            )
            with self._lock:
                busy = len(self._clients) >= MAX_CLIENTS
                if not busy:
                    self._clients[thread] = connection
            if busy:
                connection.close()
                continue
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                # The next one may find room again; without this loop nobody would.
                log.warning("no thread for a control client: %s", error)
                with self._lock:
                    del self._clients[thread]
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                # Sends are bounded, so that a client that does not read cannot hold a thread for ever.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_SEND_SECONDS), 0))
                if peer(connection)[1] not in (0, os.geteuid()):
                    return
                for line in lines(connection):
                    connection.sendall(encode(self._answer(line, connection)))
        except (OSError, ValueError) as error:
            log.debug("a control connection ended: %s", error)
        finally:
            with self._lock:
                self._clients.pop(threading.current_thread(), None)

    def _answer(self, line: bytes, connection: socket.socket) -> dict[str, object]:
        def progress(facts: dict[str, object]) -> None:
            try:
                connection.sendall(encode({"version": VERSION, "progress": facts}))
            except OSError:
                # The command goes on when the client that asked for it is gone, but half a line must be the last.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

        try:
            request = decode(line)
            if request.pop("version", None) != VERSION:
                raise UsageError(
                    f"the request is not of version {VERSION}", hint="Use the command of the daemon's version."
                )
            until, clock = request.pop("until", None), request.pop("clock", None)
            command = request.pop("command", None)
            # What only asks does no harm. Another namespace has another clock.
            late = isinstance(until, int | float) and boot_time() > until and clock == clock_name()
            if late and command != "info":
                raise S3backerError("it was asked too long ago, and nothing was done", hint="Ask again.")
            handler = self._handlers.get(command) if isinstance(command, str) else None
            if handler is None:
                raise UsageError(
                    f"the daemon does not know the command {command!r}",
                    hint=f"It knows {', '.join(sorted(self._handlers))}.",
                )
            return success(handler(request, progress))
        except S3backerError as error:
            return failure(error.message, error.hint, error.exit_code)
        except OSError as error:
            return failure(error.strerror or str(error), "", 1)
        except Exception as error:
            if (known := out_of_memory(error)) is not None:
                return failure(known.message, known.hint, known.exit_code)
            log.error("a control request failed unexpectedly: %r", error)
            log.debug("where it happened", exc_info=error)
            return failure(f"unexpected {type(error).__name__} in the daemon", "See its log; this is a defect.", 1)
