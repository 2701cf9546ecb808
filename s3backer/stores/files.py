"""Files by descriptor: nothing here follows a symbolic link or depends on the current directory.

Everything raises OSError as the system gives it. ``place`` is the descriptor of an open directory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import heapq
import io
import os
import secrets
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

OPEN = os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | OPEN
#: Bytes of a file that are in memory at once while its digest is taken.
_PIECE = 1 << 20


def open_directory(place: int, name: str) -> int:
    """Open a directory in a directory; ELOOP for a symbolic link (the kernel would say ENOTDIR)."""
    try:
        return os.open(name, OPEN_DIRECTORY, dir_fd=place)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from None
        raise


@contextmanager
def _open_file(place: int, name: str, at_most: int | None = None) -> Iterator[io.FileIO]:
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | OPEN, dir_fd=place)
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "this is not a regular file", name)
        if at_most is not None and facts.st_size > at_most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
        with io.FileIO(descriptor, closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_file(place: int, name: str, *, at_most: int | None = None) -> bytes:
    """Return a regular file's content.

    FileNotFoundError for a directory, other OSErrors for links, devices and files over ``at_most`` bytes.
    """
    with _open_file(place, name, at_most) as file:
        return file.readall()


@dataclass(frozen=True, slots=True)
class FileRange:
    """The bytes of a range of a file, the file's size in bytes, and its MD5 in hex if that was asked for."""

    body: bytes
    size: int
    digest: str = ""


def read_range(place: int, name: str, start: int, length: int, *, with_digest: bool) -> FileRange:
    """Return what a regular file has of a range; raises what ``read_file`` does, EAGAIN if it shrinks meanwhile."""
    with _open_file(place, name) as file:
        digest = _digest(file)[1] if with_digest else ""
        size = os.fstat(file.fileno()).st_size
        fits = max(0, min(length, size - start))
        found: list[bytes] = []
        left = fits
        while left:
            found.append(os.pread(file.fileno(), left, start + fits - left))
            if not found[-1]:
                raise OSError(errno.EAGAIN, "another program changed it while it was read", name)
            left -= len(found[-1])
        return FileRange(b"".join(found), size, digest)


def digest_file(place: int, name: str) -> tuple[int, str]:
    """Return a regular file's size in bytes and its MD5 in hex, in little memory; raises what ``read_file`` does."""
    with _open_file(place, name) as file:
        return _digest(file)


def _digest(file: io.FileIO) -> tuple[int, str]:
    digest = hashlib.md5(usedforsecurity=False)
    size = 0
    while piece := file.read(_PIECE):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def exists(place: int, name: str) -> bool:
    """Return whether there is anything of this name, a dangling link included."""
    try:
        os.stat(name, dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def create_temporary(place: int) -> tuple[str, int]:
    """Create a temporary file, locked by us; return its name and descriptor."""
    while True:
        name = secrets.token_hex(8)
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN, 0o600, dir_fd=place)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Swept by another process between the two calls: begin again.
            if os.fstat(descriptor).st_nlink:
                return name, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def walk(
    place: int, base: bytes, prefix: bytes, after: bytes, enough: int, skip: str
) -> Generator[tuple[str, int], None, None]:
    """Yield (key, size) of the files below a directory in key order, at least the first ``enough``.

    Also of links, pipes and devices: they cannot be read, and what stands in a listing is not taken for absent.
    ``base`` is the directory's own key with a slash (empty for the root). Entries called ``skip`` do not exist.
    """
    # A directory stands where its first key would: its name with the slash.
    files: dict[bytes, os.DirEntry[str]] = {}
    directories: dict[bytes, str] = {}
    with os.scandir(place) as scan:
        for entry in scan:
            path = base + os.fsencode(entry.name)
            if entry.name == skip:
                continue
            if not entry.is_dir(follow_symlinks=False):
                if path.startswith(prefix) and path > after:
                    files[path] = entry
            else:
                path += b"/"
                wanted = path.startswith(prefix) or prefix.startswith(path)
                if wanted and (path > after or after.startswith(path)):
                    directories[path] = entry.name
        for path in heapq.nsmallest(enough + len(directories), [*files, *directories]):
            if path in directories:
                with suppress(FileNotFoundError, NotADirectoryError):
                    below = open_directory(place, directories[path])
                    try:
                        yield from walk(below, path, prefix, after, enough, skip)
                    finally:
                        os.close(below)
                continue
            # A file whose name is no UTF-8, or which has gone meanwhile, is no object.
            with suppress(UnicodeDecodeError, FileNotFoundError):
                yield path.decode(), files[path].stat(follow_symlinks=False).st_size
