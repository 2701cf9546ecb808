"""The system calls on a journal's directory."""

from __future__ import annotations

import os

#: How every file of it is opened.
SAFE = os.O_NOFOLLOW | os.O_CLOEXEC


def read_beginning(name: str, directory: int | None, length: int) -> bytes:
    """Return the first bytes of a file. Not blocking: a FIFO would wait."""
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK | SAFE, dir_fd=directory), "rb") as file:
        return file.read(length)


class System:
    """They do what they say; tests put a recording one in its place."""

    def create(self, name: str, directory: int) -> int:
        """Make a file that is not there and return its descriptor."""
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | SAFE, 0o600, dir_fd=directory)

    def allocate(self, fd: int, length: int) -> None:
        """Give a file all of its blocks, close to each other."""
        os.posix_fallocate(fd, 0, length)

    def write(self, fd: int, data: bytes, position: int) -> None:
        """Write all of the data."""
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view, position)
            view, position = view[count:], position + count

    def sync(self, fd: int) -> None:
        """Return when a file's content, or a directory's, is on the disk."""
        os.fsync(fd)

    def settle(self, fd: int) -> None:
        """Let what is read of a file be what the disk has, and raise if the disk has not what was written."""
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, old: str, new: str, directory: int) -> None:
        """Give a file another name in its directory."""
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)

    def remove(self, name: str, directory: int) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=directory)
