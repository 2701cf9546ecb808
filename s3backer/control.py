"""The control socket: how a command talks to the daemon that serves a volume on this host.

    where      /run/s3backer/ID.sock for root, $XDG_RUNTIME_DIR/s3backer/ID.sock else
               directory 0700, socket 0600; ID names the volume. Where another daemon of the volume listens there
               (it has lost it, or one of both only reads): ID-2.sock, ID-3.sock, ...
    wire       one JSON object per line, at most 64 KiB, UTF-8
    request    {"version": 1, "command": "info", ...arguments}
    answer     any number of  {"version": 1, "progress": {...}}
               then one of    {"version": 1, "ok": true, "result": {...}}
                              {"version": 1, "ok": false, "error": "...", "hint": "...", "exit_code": N}

Guarantees
  * A line that cannot be understood is answered with an error; one that is too long ends its connection.
  * A client that vanishes harms nobody, and neither does one that says nothing.
  * Only the owner and root are served, and a client trusts only a directory and socket of its own user.
  * The socket of a dead daemon is in nobody's way: ``call`` and ``start`` remove it.
  * Of several daemons of a volume ``ask`` means the one that has it: one that has lost it is asked only where there is
    no other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from s3backer.clocks import boot_time
from s3backer.errors import DaemonSilent, S3backerError, UsageError, out_of_memory
from s3backer.hints import command_line
from s3backer.stores.base import ObjectStore
from s3backer.url import volume_id

log = logging.getLogger(__name__)

VERSION = 1
MAX_LINE = 64 * 1024
#: Clients served at once; more are turned away, so that threads stay bounded.
MAX_CLIENTS = 16
#: Daemons of one volume on one host that have a socket.
MAX_DAEMONS = 16
#: Longest silence of a daemon in seconds that a client bears. Handlers report progress more often than that.
SILENCE = 10.0
#: Of that: after which share nothing is begun any more for who asked.
_MOST = 0.9
_CONNECT_SECONDS = 10.0
_SEND_SECONDS = 10.0
_JOIN_SECONDS = 10.0
#: Seconds for a daemon that listens no more to take its socket away, and between two looks at that.
_LEAVE_SECONDS, _LOOK = 2.0, 0.05
#: Seconds for others to have done with the sockets' directory.
_LOCK_SECONDS = 1.0

Progress = Callable[[dict[str, object]], None]
#: A command's work: takes its arguments and a way to report progress, returns the result or raises S3backerError.
Handler = Callable[[Mapping[str, object], Progress], Mapping[str, object]]


def socket_name(store: ObjectStore, prefix: str) -> str:
    """Return by what the socket of a volume's daemon is known: 32 hex digits."""
    return volume_id(store.place, prefix).hex()[:32]


def control_directory() -> Path:
    """Return where daemons of this user listen; it may not exist yet."""
    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if uid == 0:
        # Not XDG_RUNTIME_DIR: root's commands come from logins, cron and boot, which see different ones.
        return Path("/run/s3backer")
    if os.path.isabs(runtime):
        return Path(runtime, "s3backer")
    # Used only if it is private to this user, which _open_directory sees to.
    return Path(f"/tmp/s3backer-{uid}")  # noqa: S108 - see above


def control_path(name: str) -> Path:
    """Return where the daemon of the volume with this ``socket_name`` listens, for this user."""
    return control_directory() / f"{name}.sock"


def call(
    name: str,
    command: str,
    arguments: Mapping[str, object] | None = None,
    on_progress: Progress | None = None,
    *,
    path: Path | None = None,
    silence: float | None = None,
    keep: bool = False,
) -> dict[str, object] | None:
    """Ask the daemon of a volume and return its result, or None where no daemon listens.

    ``silence``: how long it may say nothing, in seconds. ``keep``: a dead daemon's socket is left for ``has_died``.
    Raises S3backerError with the daemon's message, hint and exit
    code, or if it breaks off, and DaemonSilent if it lives and says nothing.
    """
    where = path or control_path(name)
    silence = SILENCE if silence is None else silence
    connection = _connect(where, keep=keep)
    if connection is None:
        return None
    with connection:
        try:
            connection.settimeout(silence)
            # Who has told its user that there was no answer must not be obeyed later, when the daemon goes on.
            until = boot_time() + silence * _MOST
            request = {"version": VERSION, "command": command, "until": until, "clock": _clock(), **(arguments or {})}
            connection.sendall(_encode(request))
            for line in _lines(connection):
                answer = _decode(line)
                progress = answer.get("progress")
                if isinstance(progress, dict):
                    if on_progress:
                        on_progress(progress)
                    continue
                return result(answer)
        except TimeoutError:
            pid = _peer(connection)[0]
            raise stopped(pid) or DaemonSilent(
                _process(pid),
                f"does not answer: it has said nothing for {silence:.0f} s",
                hint="Its machine may be busy: try again. If it stays so, see its log.",
            ) from None
        except OSError as error:
            raise _broken_off(where, command, error.strerror or str(error)) from None
        except ValueError as error:
            raise _broken_off(where, command, f"it sent {error}") from None
    raise _broken_off(where, command, "it closed the connection")


def _clock() -> str:
    """Return what names the clock of ``boot_time``, which each namespace of times has for itself."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/time")
    return ""


def processes() -> str:
    """Return what names the namespace of processes in which this one's number means it."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def has_died(name: str, *, ended: bool = False) -> bool:
    """Return whether a daemon is gone and has left its socket; one that ends when everything is stored removes it.

    ``ended``: its process is known to be gone, so nothing is waited for, in which others may find it and remove it.
    """
    until = time.monotonic() + (0.0 if ended else _LEAVE_SECONDS)
    # Of one that is about to take it away nobody hears any more either.
    while _is_heard(control_path(name)) is False:
        if time.monotonic() >= until:
            return True
        time.sleep(_LOOK)
    return False


def listens(name: str) -> bool:
    """Return whether some daemon listens there, however busy it is."""
    return _is_heard(control_path(name)) is True


def _is_heard(path: Path) -> bool | None:
    """Return whether somebody listens at a socket; None where there is none, or it cannot be told."""
    try:
        with (
            _opened(path.parent) as directory,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection,
        ):
            connection.setblocking(False)
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    except ConnectionRefusedError:
        return False
    except BlockingIOError:
        # Too many wait for it.
        return True
    except (OSError, S3backerError):
        # Also where somebody else has found it, and removed it.
        return None
    return True


@dataclass(frozen=True, slots=True)
class Found:
    """A daemon that answers: by what name its socket is called, and what it says of its mount."""

    name: str
    facts: dict[str, object]

    @property
    def owns(self) -> bool:
        """Whether it has the volume: it writes, and no other mount has taken the volume from it."""
        return not self.facts.get("lost") and not self.facts.get("read_only")

    def describe(self) -> str:
        """Return where it has mounted the volume, for messages."""
        why = ", which has lost the volume" * bool(self.facts.get("lost"))
        return f"here on {self.facts.get('mountpoint')} by process {self.facts.get('pid')}{why}"


def socket_names(name: str) -> list[str]:
    """Return the names of the sockets of a volume's daemons, the dead among them, for a volume's ``socket_name``."""
    more = control_path(name).parent.glob(f"{name}-*.sock")
    return [name, *sorted(path.stem for path in more)]


def find_daemons(name: str, *, silence: float | None = None) -> list[Found]:
    """Return the daemons of a volume that answer on this host, the one that has the volume first.

    Raises the error of one that does not answer, where that may be the one that has the volume.
    """
    found: list[Found] = []
    trouble: S3backerError | None = None
    for each in socket_names(name):
        try:
            facts = call(each, "info", silence=silence)
        except S3backerError as error:
            trouble = trouble or error
            continue
        if facts is not None:
            found.append(Found(each, facts))
    found.sort(key=_order)
    if trouble is not None and not (found and found[0].owns):
        raise trouble
    return found


def _order(found: Found) -> tuple[bool, bool, bool, float]:
    """Return by what daemons of a volume are sorted: one that serves before one that ends, for example."""
    facts, opened = found.facts, found.facts.get("opened")
    # Of two writers the later one has taken it from the other, which may not have seen that yet.
    since = -opened if isinstance(opened, int | float) else 0.0
    return bool(facts.get("lost")), bool(facts.get("read_only")), bool(facts.get("ending")), since


def ask(
    name: str,
    command: str,
    arguments: Mapping[str, object] | None = None,
    on_progress: Progress | None = None,
    *,
    silence: float | None = None,
) -> dict[str, object] | None:
    """Do what ``call`` does, with the daemon that has the volume where there are several."""
    if len(socket_names(name)) > 1:
        found = find_daemons(name, silence=silence)
        if not found:
            return None
        name = found[0].name
    return call(name, command, arguments, on_progress, silence=silence)


def stopped(pid: int) -> DaemonSilent | None:
    """Return what to say of a daemon that does not go on because somebody has stopped it; None where it does."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return None
    if state not in (b"T", b"t"):
        return None
    return DaemonSilent(_process(pid), "does not answer: it is stopped", hint=f"Let it go on: kill -CONT {pid}")


def _process(pid: int) -> str:
    # 0: it is in another namespace of processes.
    return f"process {pid}" if pid else "a process that is not seen from here"


def _broken_off(where: Path, command: str, reason: str) -> S3backerError:
    return S3backerError(
        f"the daemon at {where} did not answer {command!r}: {reason}",
        hint="It may have ended meanwhile; see its log and ask again.",
    )


def result(answer: Mapping[str, object]) -> dict[str, object]:
    """Return what an answer has to say, or raise the error that it tells."""
    found = answer.get("result")
    if answer.get("ok") is True and isinstance(found, dict):
        return found
    error = S3backerError(
        str(answer.get("error") or "the daemon's answer was not understood"), hint=str(answer.get("hint") or "")
    )
    code = answer.get("exit_code")
    if isinstance(code, int) and 0 < code < 126:
        error.exit_code = code
    raise error


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
        directory = _open_directory(self._path.parent, create=True)
        try:
            place = f"/proc/self/fd/{directory}/{self._path.name}"
            # Binding by the directory's descriptor: nobody can swap it, and its path may be longer than 107 bytes.
            running = _connect(self._path)
            if running is not None:
                running.close()
                raise S3backerError(
                    f"another daemon serves this volume at {self._path}", hint="Ask it with 's3backer info'."
                )
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            new = f"{place}.{os.getpid()}.new"
            try:
                # It has its name only when it listens: before, it would be taken for a dead daemon's.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)
                listener.bind(new)
                os.chmod(new, 0o600)
                listener.listen(MAX_CLIENTS)
                self._inode = _identity(os.stat(new, follow_symlinks=False))
                try:
                    with _changing(directory):
                        os.link(new, place)
                finally:
                    os.unlink(new)
            except OSError as error:
                listener.close()
                raise S3backerError(
                    f"the control socket {self._path} cannot be made: {error.strerror}",
                    hint="Check the directory and its permissions.",
                ) from None
        finally:
            os.close(directory)
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
        with contextlib.suppress(OSError, S3backerError), _opened(self._path.parent) as directory:
            try:
                with _changing(directory):
                    self._remove_ours(directory)
            except TimeoutError:
                # What is left would be taken for a dead daemon's.
                self._remove_ours(directory)

    def _remove_ours(self, directory: int) -> None:
        name = self._path.name
        if _identity(os.stat(name, dir_fd=directory, follow_symlinks=False)) == self._inode:
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
                if _peer(connection)[1] not in (0, os.geteuid()):
                    return
                for line in _lines(connection):
                    connection.sendall(_encode(self._answer(line, connection)))
        except (OSError, ValueError) as error:
            log.debug("a control connection ended: %s", error)
        finally:
            with self._lock:
                self._clients.pop(threading.current_thread(), None)

    def _answer(self, line: bytes, connection: socket.socket) -> dict[str, object]:
        def progress(facts: dict[str, object]) -> None:
            try:
                connection.sendall(_encode({"version": VERSION, "progress": facts}))
            except OSError:
                # The command goes on when the client that asked for it is gone, but half a line must be the last.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

        try:
            request = _decode(line)
            if request.pop("version", None) != VERSION:
                raise UsageError(
                    f"the request is not of version {VERSION}", hint="Use the command of the daemon's version."
                )
            until, clock = request.pop("until", None), request.pop("clock", None)
            command = request.pop("command", None)
            # What only asks does no harm. Another namespace has another clock.
            late = isinstance(until, int | float) and boot_time() > until and clock == _clock()
            if late and command != "info":
                raise S3backerError("it was asked too long ago, and nothing was done", hint="Ask again.")
            handler = self._handlers.get(command) if isinstance(command, str) else None
            if handler is None:
                raise UsageError(
                    f"the daemon does not know the command {command!r}",
                    hint=f"It knows {', '.join(sorted(self._handlers))}.",
                )
            return {"version": VERSION, "ok": True, "result": dict(handler(request, progress))}
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


def failure(message: str, hint: str, exit_code: int) -> dict[str, object]:
    """Return how an error is told; ``result`` raises it."""
    return {"version": VERSION, "ok": False, "error": message, "hint": hint, "exit_code": exit_code}


def _encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _decode(line: bytes) -> dict[str, object]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise UsageError("the line is not a JSON object", hint="Send one JSON object per line.")
    return message


def _lines(connection: socket.socket) -> Iterator[bytes]:
    """Yield the lines that arrive; ValueError for one that is too long."""
    pending = bytearray()
    while True:
        end = pending.find(b"\n")
        if end >= 0:
            line = bytes(pending[:end])
            del pending[: end + 1]
            if line.strip():
                yield line
            continue
        if len(pending) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} bytes")
        data = connection.recv(MAX_LINE)
        if not data:
            return
        pending += data


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


@contextlib.contextmanager
def _changing(directory: int) -> Iterator[None]:
    """Let nobody else give a name in the sockets' directory, or take one away.

    Raises TimeoutError where somebody has it locked for long, as to keep it from being cleaned (tmpfiles.d).
    """
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, "its directory is locked by another process") from None
            time.sleep(_LOOK)
    try:
        yield
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open_directory(path: Path, *, create: bool) -> int:
    """Return a descriptor of the sockets' directory, which must be a real one, this user's and nobody else's."""
    try:
        if create:
            # A parent that is missing is the system's to make, except in a bare container.
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if not create and error.errno == errno.ENOENT:
            raise
        raise S3backerError(
            f"the control directory {path} cannot be used: {error.strerror}", hint="Check its owner and permissions."
        ) from None
    status = os.fstat(directory)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(directory)
        raise S3backerError(
            f"the control directory {path} is not private to this user",
            hint=f"Make it so, or remove it: {command_line('chown', str(os.geteuid()), str(path))}; "
            f"{command_line('chmod', '700', str(path))}",
        )
    return directory


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    directory = _open_directory(path, create=False)
    try:
        yield directory
    finally:
        os.close(directory)


def _connect(path: Path, *, keep: bool = False) -> socket.socket | None:
    """Return a connection to the daemon, or None where none listens; a dead daemon's socket is removed, or kept."""
    try:
        directory = _open_directory(path.parent, create=False)
    except FileNotFoundError:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_CONNECT_SECONDS)
        place = f"/proc/self/fd/{directory}/{path.name}"
        before = _identity(os.stat(place, follow_symlinks=False))
        connection.connect(place)
        if _peer(connection)[1] not in (0, os.geteuid()):
            raise S3backerError(f"{path} belongs to another user", hint="Remove it.")
        return connection
    except FileNotFoundError:
        connection.close()
        return None
    except ConnectionRefusedError:
        connection.close()
        if keep:
            return None
        # Only one that refuses still: a new daemon may have put its own there in between, with the same inode number.
        with (
            contextlib.suppress(OSError),
            _changing(directory),
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as again,
        ):
            again.setblocking(False)
            try:
                again.connect(place)
            except ConnectionRefusedError:
                if _identity(os.stat(path.name, dir_fd=directory, follow_symlinks=False)) == before:
                    os.unlink(path.name, dir_fd=directory)
        return None
    except (BlockingIOError, TimeoutError):
        connection.close()
        raise DaemonSilent(
            f"the daemon at {path}",
            "does not answer: too many wait for it already",
            hint="It may be stopped (kill -CONT), or its machine busy: try again. If it stays so, see its log.",
        ) from None
    except (OSError, S3backerError) as error:
        connection.close()
        if isinstance(error, S3backerError):
            raise
        raise S3backerError(
            f"the control socket {path} cannot be used: {error.strerror}", hint="Check its owner and permissions."
        ) from None
    finally:
        os.close(directory)
