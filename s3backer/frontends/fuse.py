"""The FUSE front end: one directory with the disk as a file, and the stats file, served by llfuse.

    inode 1        /          directory, 0755
    inode 2        the disk   regular file of the volume's size; answers what a block device would
    inode 3        stats      regular file, 0444; seen as inode 3, see below

    read at or after the end       0 bytes           ftruncate, truncate to another size   EINVAL
    write at or after the end      ENOSPC            open(O_TRUNC), truncate to 0 or size  success, no effect
    read or write over the end     what fits         create, mkdir, rename, unlink, link   EPERM
    unlink of the stats file       counts from 0
    fsync, close                   wait for the bucket; EIO (or the cause) where it did not get there

Guarantees
  * A request that waits holds no lock of llfuse, so it stops nobody else while a worker is free.
  * No exception reaches llfuse's loop, which would end on it: each becomes an errno and a log line.

The stats file. llfuse always tells the kernel to keep cached pages over an open, and an asynchronous
invalidation may come after the read that it was meant for. So every look-up makes a new inode that holds the
text of that moment and never changes; ``getattr`` reports inode 3 for all of them. Nothing can be stale, cut short
or mixed of two texts. The kernel's FORGET frees it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol

import llfuse

from s3backer.frontends.errnos import errno_of
from s3backer.logs import RateLimited
from s3backer.stores.base import Buffer

log = logging.getLogger(__name__)

ROOT_INODE: int = llfuse.ROOT_INODE
FILE_INODE = 2
STATS_INODE = 3
#: The handle of the disk: "s3backer", which no other reply to the kernel has in this place.
FILE_HANDLE = int.from_bytes(b"s3backer", "little")
#: Inodes of the stats file's snapshots begin here.
_FIRST_SNAPSHOT = 1 << 32
#: Seconds for which the kernel may remember the disk's name and attributes; a resize invalidates them.
_TIMEOUT = 300.0


class Disk(Protocol):
    """What is shown as a file: a Volume, or anything like it."""

    name: str
    block_size: int
    read_only: bool

    @property
    def size(self) -> int:
        """Size in bytes."""

    def read_buffer(self, offset: int, length: int) -> Buffer:
        """Return up to ``length`` bytes from ``offset``."""

    def write(self, offset: int, data: Buffer) -> int:
        """Write and return the bytes taken."""

    def flush(self) -> None:
        """Return when every earlier write is in the bucket, else raise."""

    def stats_text(self) -> str:
        """Return the text of the stats file."""

    def reset_stats(self) -> None:
        """Let the stats file count from zero again."""


class DiskOperations(llfuse.Operations):  # type: ignore[misc]
    """Answers the kernel's requests from a Disk. File handles are inode numbers.

    ``lazy_fsync``: fsync and close are answered at once, whatever is unsaved.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        file_name: str = "file",
        file_mode: int = 0o600,
        stats_name: str | None = "stats",
        lazy_fsync: bool = False,
        owner: tuple[int | None, int | None] = (None, None),
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__()
        self._disk = disk
        self._lazy_fsync = lazy_fsync
        self._clock = clock
        self._started = clock()
        self._file_name = os.fsencode(file_name)
        self._stats_name = None if stats_name is None else os.fsencode(stats_name)
        self._snapshots: dict[int, tuple[bytes, int, int]] = {}
        self._next_snapshot = itertools.count(_FIRST_SNAPSHOT)
        self._limited = RateLimited(log)
        self._mode = file_mode & 0o7777
        uid, gid = owner
        self._owner = os.getuid() if uid is None else uid, os.getgid() if gid is None else gid
        self._uid, self._gid = self._owner
        self._atime = self._mtime = self._ctime = self._started
        #: When the last write was answered by the fast lane, and who knows.
        self._written = 0
        self.wrote_at: Callable[[], int] = lambda: 0
        #: Set when the kernel has said its first word, so the loop runs and its signal handlers are in place.
        self.serving = threading.Event()
        #: Handles of files that were opened and not released: while there are any, nothing can be unmounted.
        self.open_files = 0

    def init(self) -> None:
        """Take note that the kernel and llfuse talk to each other."""
        self.serving.set()

    def resized(self) -> None:
        """Make the kernel ask for the disk's size again; with a smaller one it forgets the pages beyond it.

        Not told to forget pages here: it would wait, in the middle of taking our message, for those that are being
        read. While the store is away no further reply would reach it, and the end of the mount would wait for ever.
        """
        llfuse.invalidate_inode(FILE_INODE, attr_only=True)

    @property
    def snapshots(self) -> int:
        """How many texts of the stats file are held for the kernel."""
        return len(self._snapshots)

    # ── names and attributes ─────────────────────────────────────────────────────────────────────────

    def lookup(self, parent_inode: int, name: bytes, ctx: object = None) -> Any:
        """Return the attributes of a name in the directory."""
        if parent_inode == ROOT_INODE:
            if name == self._file_name:
                return self._file_attributes()
            if name == self._stats_name:
                inode = next(self._next_snapshot)
                self._snapshots[inode] = (self._stats_text(), self._clock(), 1)
                return self._stats_attributes(inode, shown=inode)
        raise llfuse.FUSEError(errno.ENOENT)

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Free snapshots that the kernel knows no more."""
        for inode, count in inode_list:
            held = self._snapshots.get(inode)
            if held is not None:
                if held[2] <= count:
                    del self._snapshots[inode]
                else:
                    self._snapshots[inode] = (held[0], held[1], held[2] - count)

    def getattr(self, inode: int, ctx: object = None) -> Any:
        """Return the attributes of an inode."""
        if inode == FILE_INODE:
            return self._file_attributes()
        if inode == ROOT_INODE:
            return self._root_attributes()
        return self._stats_attributes(inode, shown=STATS_INODE)

    def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: object = None) -> Any:
        """Change the disk's mode, owner and times, kept until unmount; its size never."""
        if inode != FILE_INODE:
            raise llfuse.FUSEError(errno.EPERM)
        if fields.update_size and attr.st_size != self._disk.size and (fh is not None or attr.st_size != 0):
            raise llfuse.FUSEError(errno.EINVAL)
        self._note_writes()
        if fields.update_mode:
            self._mode = stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            self._uid = attr.st_uid
        if fields.update_gid:
            self._gid = attr.st_gid
        if fields.update_atime:
            self._atime = attr.st_atime_ns
        if fields.update_mtime:
            self._mtime = attr.st_mtime_ns
        self._ctime = self._clock()
        return self._file_attributes()

    def _note_writes(self) -> None:
        """Take note of when the fast lane answered the last write."""
        if (at := self.wrote_at()) > self._written:
            self._written = self._mtime = self._ctime = at

    def _root_attributes(self) -> Any:
        entry = self._entry(ROOT_INODE, stat.S_IFDIR | 0o755, 0)
        entry.st_nlink = 2
        return entry

    def _file_attributes(self) -> Any:
        size = self._disk.size
        self._note_writes()
        entry = self._entry(FILE_INODE, stat.S_IFREG | self._mode, size)
        entry.st_uid, entry.st_gid = self._uid, self._gid
        entry.st_blksize = self._disk.block_size
        entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = self._atime, self._mtime, self._ctime
        return entry

    def _stats_attributes(self, inode: int, *, shown: int) -> Any:
        text, taken, _ = self._snapshot(inode)
        entry = self._entry(shown, stat.S_IFREG | 0o444, len(text))
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = taken
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _entry(self, inode: int, mode: int, size: int) -> Any:
        entry = llfuse.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = mode
        entry.st_uid, entry.st_gid = self._owner
        entry.st_size = size
        # In units of 512 bytes, and never 0 for a file with content: archivers would take it for one hole.
        entry.st_blocks = -(-size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._started
        entry.entry_timeout = entry.attr_timeout = _TIMEOUT
        return entry

    def _snapshot(self, inode: int) -> tuple[bytes, int, int]:
        try:
            return self._snapshots[inode]
        except KeyError:
            raise llfuse.FUSEError(errno.ENOENT) from None

    def _stats_text(self) -> bytes:
        try:
            return self._disk.stats_text().encode()
        except Exception as error:
            self._fail("making the stats file of", error)

    def opendir(self, inode: int, ctx: object = None) -> int:
        """Open the directory."""
        return inode

    def readdir(self, fh: int, off: int) -> Iterator[tuple[bytes, Any, int]]:
        """List the directory from entry ``off``."""
        names = [(b".", ROOT_INODE, stat.S_IFDIR), (b"..", ROOT_INODE, stat.S_IFDIR)]
        names.append((self._file_name, FILE_INODE, stat.S_IFREG))
        if self._stats_name is not None:
            names.append((self._stats_name, STATS_INODE, stat.S_IFREG))
        for number, (name, inode, kind) in enumerate(names[off:], off + 1):
            entry = llfuse.EntryAttributes()
            entry.st_ino, entry.st_mode = inode, kind
            yield name, entry, number

    def access(self, inode: int, mode: int, ctx: object = None) -> bool:
        """Allow what the kernel's own check of the mode bits has allowed."""
        return True

    def statfs(self, ctx: object = None) -> Any:
        """Report the volume's blocks, all of them in use."""
        answer = llfuse.StatvfsData()
        answer.f_bsize = answer.f_frsize = self._disk.block_size
        answer.f_blocks = self._disk.size // self._disk.block_size
        answer.f_files = 3
        answer.f_namemax = 255
        return answer

    # ── content ──────────────────────────────────────────────────────────────────────────────────────

    def open(self, inode: int, flags: int, ctx: object = None) -> int:
        """Open the disk or a snapshot of the stats."""
        if inode != FILE_INODE:
            self._snapshot(inode)
            if flags & os.O_ACCMODE != os.O_RDONLY:
                raise llfuse.FUSEError(errno.EACCES)
        self.open_files += 1
        return FILE_HANDLE if inode == FILE_INODE else inode

    def read(self, fh: int, off: int, size: int) -> Buffer:
        """Return up to ``size`` bytes from ``off``."""
        if fh != FILE_HANDLE:
            return self._snapshot(fh)[0][off : off + size]
        try:
            with llfuse.lock_released:
                return self._disk.read_buffer(off, size)
        except Exception as error:
            self._fail(f"reading {size} bytes at {off} of", error)

    def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write and return the number of bytes taken."""
        if fh != FILE_HANDLE:
            raise llfuse.FUSEError(errno.EACCES)
        try:
            with llfuse.lock_released:
                taken = self._disk.write(off, buf)
        except Exception as error:
            self._fail(f"writing {len(buf)} bytes at {off} of", error)
        self._mtime = self._ctime = self._clock()
        return taken

    def fsync(self, fh: int, datasync: bool) -> None:
        """Return when everything written before is in the bucket."""
        self._flush(fh, "fsync of")

    def flush(self, fh: int) -> None:
        """Answer one close(2), which is when an application learns whether its data is safe."""
        self._flush(fh, "closing")

    def _flush(self, fh: int, what: str) -> None:
        if fh != FILE_HANDLE or self._lazy_fsync:
            return
        try:
            with llfuse.lock_released:
                self._disk.flush()
        except Exception as error:
            self._fail(what, error)

    def release(self, fh: int) -> None:
        """Take note that a file is open once less; handles hold no other state."""
        self.open_files -= 1

    def releasedir(self, fh: int) -> None:
        """Take note of nothing: handles hold no state."""

    def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Succeed: the directory never changes."""

    def _fail(self, what: str, error: Exception) -> NoReturn:
        """Log the error and raise what llfuse understands."""
        raise llfuse.FUSEError(errno_of(error, f"{what} {self._disk.name}", self._limited)) from None

    # ── what a directory of two fixed names refuses ──────────────────────────────────────────────────

    def _refuse(self, *_: object) -> NoReturn:
        raise llfuse.FUSEError(errno.EPERM)

    create = link = mkdir = mknod = rename = rmdir = symlink = _refuse

    def unlink(self, parent_inode: int, name: bytes, ctx: object = None) -> None:
        """Reset the statistics where their file is removed, as the original does; it stays. Refuse all else."""
        if parent_inode != ROOT_INODE or name != self._stats_name:
            self._refuse()
        self._disk.reset_stats()

    def readlink(self, inode: int, ctx: object = None) -> NoReturn:
        """Refuse: there are no symbolic links."""
        raise llfuse.FUSEError(errno.EINVAL)

    # Extended attributes stay with llfuse's default, ENOSYS: the kernel then answers "not supported" itself and
    # saves one request per write, in which it would ask for security.capability.
