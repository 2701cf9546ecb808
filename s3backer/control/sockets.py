"""Where the daemons of this user listen.

    /run/s3backer/ID.sock for root, $XDG_RUNTIME_DIR/s3backer/ID.sock else
    directory 0700, socket 0600; ID names the volume. Where another daemon of the volume listens there
    (it has lost it, or one of both only reads): ID-2.sock, ID-3.sock, ...

Guarantees
  * Only a directory of this user's is used, to which nobody else has access, and only a socket of this user's.
  * All goes by the directory's descriptor: nobody can swap it, and its path may be longer than 107 bytes.
  * The socket of a dead daemon is removed by who finds it, and no other one by mistake: whoever gives a name there or
    takes one away locks the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from s3backer.errors import DaemonSilent, S3backerError
from s3backer.hints import command_line
from s3backer.stores.base import ObjectStore
from s3backer.url import volume_id

#: Seconds for a daemon to take a connection.
_CONNECT_SECONDS = 10.0
#: Seconds for others to have done with the directory, and between two looks at that.
_LOCK_SECONDS, _LOOK = 1.0, 0.05


def socket_name(store: ObjectStore, prefix: str) -> str:
    """Return by what the socket of a volume's daemon is known: 32 hex digits."""
    return volume_id(store.place, prefix).hex()[:32]


def socket_names(name: str) -> list[str]:
    """Return the names of the sockets of a volume's daemons, the dead among them, for a volume's ``socket_name``."""
    more = control_directory().glob(f"{name}-*.sock")
    return [name, *sorted(path.stem for path in more)]


def all_socket_names() -> list[str]:
    """Return the names of the sockets of all daemons of this user, the dead among them."""
    return [path.stem for path in sorted(control_directory().glob("*.sock"))]


def control_directory() -> Path:
    """Return where daemons of this user listen; it may not exist yet."""
    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if uid == 0:
        # Not XDG_RUNTIME_DIR: root's commands come from logins, cron and boot, which see different ones.
        return Path("/run/s3backer")
    if os.path.isabs(runtime):
        return Path(runtime, "s3backer")
    # Used only if it is private to this user, which opened_directory sees to.
    return Path(f"/tmp/s3backer-{uid}")  # noqa: S108 - see above


def control_path(name: str) -> Path:
    """Return where the daemon of the volume with this ``socket_name`` listens, for this user."""
    return control_directory() / f"{name}.sock"


@contextlib.contextmanager
def opened_directory(path: Path, *, create: bool = False) -> Iterator[int]:
    """Give a descriptor of the sockets' directory, which must be a real one, this user's and nobody else's.

    Raises FileNotFoundError where there is none and none is to be made, S3backerError where it cannot be used.
    """
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
    try:
        status = os.fstat(directory)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise S3backerError(
                f"the control directory {path} is not private to this user",
                hint=f"Make it so, or remove it: {command_line('chown', str(os.geteuid()), str(path))}; "
                f"{command_line('chmod', '700', str(path))}",
            )
        yield directory
    finally:
        os.close(directory)


@contextlib.contextmanager
def changing(directory: int) -> Iterator[None]:
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


def socket_in(directory: int, name: str) -> str:
    """Return the path of a socket in an open directory, as ``bind`` and ``connect`` take it."""
    return f"/proc/self/fd/{directory}/{name}"


def identity(directory: int, name: str) -> tuple[int, int]:
    """Return what tells a socket from another one of that name, while there is one. Raises OSError."""
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return status.st_dev, status.st_ino


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end. 0: the process is in another namespace."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def connect(path: Path, *, keep: bool = False) -> socket.socket | None:
    """Return a connection to the daemon, or None where none listens; a dead daemon's socket is removed, or kept."""
    try:
        with opened_directory(path.parent) as directory:
            found = identity(directory, path.name)
            try:
                connection = _open_connection(directory, path.name, _CONNECT_SECONDS)
            except ConnectionRefusedError:
                if not keep:
                    _remove_dead(directory, path.name, found)
                return None
    except FileNotFoundError:
        return None
    except (BlockingIOError, TimeoutError):
        raise DaemonSilent(
            f"the daemon at {path}",
            "does not answer: too many wait for it already",
            hint="It may be stopped (kill -CONT), or its machine busy: try again. If it stays so, see its log.",
        ) from None
    except OSError as error:
        raise S3backerError(
            f"the control socket {path} cannot be used: {error.strerror}", hint="Check its owner and permissions."
        ) from None
    if peer(connection)[1] not in (0, os.geteuid()):
        connection.close()
        raise S3backerError(f"{path} belongs to another user", hint="Remove it.")
    return connection


def is_heard(path: Path) -> bool | None:
    """Return whether somebody listens at a socket; None where there is none, or it cannot be told."""
    try:
        with opened_directory(path.parent) as directory:
            _open_connection(directory, path.name, 0.0).close()
    except ConnectionRefusedError:
        return False
    except BlockingIOError:
        # Too many wait for it.
        return True
    except (OSError, S3backerError):
        # Also where somebody else has found it, and removed it.
        return None
    return True


def _remove_dead(directory: int, name: str, found: tuple[int, int]) -> None:
    """Remove the socket that was found at a name and refused."""
    with contextlib.suppress(OSError), changing(directory):
        try:
            # Only one that refuses still: a new daemon may have put its own there in between, with the same inode
            # number.
            _open_connection(directory, name, 0.0).close()
        except ConnectionRefusedError:
            if identity(directory, name) == found:
                os.unlink(name, dir_fd=directory)


def _open_connection(directory: int, name: str, seconds: float) -> socket.socket:
    """Return a connection to a socket, having waited for it no longer than so many ``seconds``. Raises OSError.

    ConnectionRefusedError where nobody listens, BlockingIOError or TimeoutError where too many wait.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(seconds)
        connection.connect(socket_in(directory, name))
    except BaseException:
        connection.close()
        raise
    return connection
