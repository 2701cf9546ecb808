"""The original's disk cache file, read only: which blocks in it never reached the bucket, and their data.

    offset  field, all little-endian and packed
    0       u32   signature e496f17b
    4       u32   header size: 64 (1.5.0 and later), 32 (before)
    8       u32   4, the size of the next kind of number
    12      u32   4, the size of a block number
    16      u32   block size
    20      u32   alignment of the data, the page size
    24      u32   flags: 1 with a header of 64, 0 with one of 32
    28      u32   slots
    32      i32   mount token, 0 after a clean unmount ┐ header of 64 only
    36      u32   × 7, zero                            ┘
    ──      directory, one entry a slot: u32 block, 16 bytes ETag [, u32 flags, bit 0 dirty: header of 64 only]
    ──      data from the next multiple of the alignment: block size bytes a slot, as far as slots were ever used

An entry of zeros is a free slot. A dirty entry has an ETag of zeros. The older form cannot say that a block is dirty.
Written by s3backer 1.5.4 and 2.1.x alike; the original takes no lock on the file. It writes data before the entry
that names them, so that what an entry names is there, unless the file was damaged.

Guarantees
  * The file is opened for reading only and never changed.
  * No number in it is believed before it was held against the length of the file.
  * Memory: one piece of the directory, and about 150 bytes for each used slot.
  * Whatever the file holds, the errors are CorruptObject, UsageError and VolumeInUse, and name the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from s3backer.errors import CorruptObject, S3backerError, UsageError, VolumeInUse
from s3backer.layouts.classic import MAX_BLOCKS
from s3backer.layouts.token import SHARED_TOKEN

SIGNATURE = 0xE496F17B
_HEADER = struct.Struct("<8I")
_TOKEN = struct.Struct("<i7I")
_ENTRY = struct.Struct("<I16sI")
_OLD_ENTRY = struct.Struct("<I16s")
_NO_ETAG = bytes(16)
_DIRTY = 1
#: Entries read at once.
_ENTRIES = 4096
_DAMAGED = "It is damaged or no cache file of s3backer. Keep it; restore it from a copy if there is one."


@dataclass(frozen=True, slots=True)
class CacheHeader:
    """What the header says. Sizes in bytes. ``token`` 0: cleanly unmounted, or the older form."""

    block_size: int
    slots: int
    token: int
    has_flags: bool
    directory_offset: int
    data_offset: int

    @property
    def entry(self) -> struct.Struct:
        """The form of an entry of the directory."""
        return _ENTRY if self.has_flags else _OLD_ENTRY


class CacheFile:
    """An open cache file. A context manager that closes it.

    Raises UsageError where it cannot be opened, CorruptObject where it cannot be what the original wrote, VolumeInUse
    where somebody else on this host uses it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = _open(path)
        try:
            self._status = os.fstat(self._descriptor)
            if not stat.S_ISREG(self._status.st_mode):
                raise UsageError(
                    f"{path} is not a regular file", hint="Name the file that was given to blockCacheFile."
                )
            self._refuse_if_used()
            self.header = self._read_header()
            self._dirty = self._read_directory()
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def dirty_blocks(self) -> list[int]:
        """The blocks that never reached the bucket, in order."""
        return sorted(self._dirty)

    def read(self, block: int) -> bytes:
        """Return the data of a dirty block, ``block_size`` bytes."""
        offset = self.header.data_offset + self._dirty[block] * self.header.block_size
        data = self._read_at(offset, self.header.block_size)
        if len(data) != self.header.block_size:
            raise self._corrupt(f"has become shorter, the data of block {block} are gone")
        return data

    def check_unchanged(self) -> None:
        """Raise VolumeInUse if somebody has changed the file since it was opened, or is about to."""
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise VolumeInUse(
                f"{self.path} was changed by somebody else just now", hint="End whatever uses it, then try again."
            )
        self._refuse_if_used()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _corrupt(self, what: str) -> CorruptObject:
        return CorruptObject(f"{self.path} {what}", hint=_DAMAGED)

    def _read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``, fewer at the end of the file."""
        pieces = []
        while length:
            try:
                piece = os.pread(self._descriptor, length, offset)
            except OSError as error:
                raise S3backerError(
                    f"{self.path} cannot be read at byte {offset}: {error.strerror}",
                    hint="Copy what can be read to another disk (ddrescue) before anything else.",
                ) from None
            if not piece:
                break
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def _read_header(self) -> CacheHeader:
        raw = self._read_at(0, _HEADER.size)
        if len(raw) >= 4 and int.from_bytes(raw[:4], "big") == SIGNATURE:
            raise CorruptObject(
                f"{self.path} was written on a machine of the other byte order (big-endian)",
                hint="Mount it there, with the program that wrote it and blockCacheRecoverDirtyBlocks.",
            )
        if len(raw) >= 4 and int.from_bytes(raw[:4], "little") != SIGNATURE:
            raise self._corrupt(f"is no cache file of s3backer: it begins with {raw[:4].hex()}")
        if len(raw) < _HEADER.size:
            raise self._corrupt(f"is too short for a cache file: {len(raw)} bytes")
        _, header_size, number_size, block_number_size, block_size, alignment, flags, slots = _HEADER.unpack(raw)
        if header_size not in (32, 64):
            raise self._corrupt(f"says that its header has {header_size} bytes; 32 and 64 are known")
        if (number_size, block_number_size) != (4, 4):
            raise self._corrupt(f"says that its numbers have {number_size} and {block_number_size} bytes, not 4")
        if flags != (header_size == 64):
            raise self._corrupt(f"has unknown flags {flags:#x} in its header")
        if block_size < 512 or block_size & (block_size - 1):
            raise self._corrupt(f"says that a block has {block_size} bytes, which is no power of two from 512")
        if alignment < 512 or alignment & (alignment - 1):
            raise self._corrupt(f"says that its data are aligned to {alignment} bytes, no power of two from 512")
        token = 0
        if header_size == 64:
            rest = self._read_at(_HEADER.size, _TOKEN.size)
            if len(rest) < _TOKEN.size:
                raise self._corrupt("ends within its header")
            token, *unused = _TOKEN.unpack(rest)
            if any(unused):
                raise self._corrupt("has something in that part of its header which is always zero")
            if not 0 <= token < SHARED_TOKEN:
                raise self._corrupt(f"names a mount token {token & 0xFFFFFFFF:08x}, which no mount with a cache has")
        entry_size = _ENTRY.size if header_size == 64 else _OLD_ENTRY.size
        end = header_size + slots * entry_size
        if end > self._status.st_size:
            raise self._corrupt(
                f"is truncated: its directory of {slots} slots ends at byte {end}, the file at {self._status.st_size}"
            )
        return CacheHeader(
            block_size, slots, token, header_size == 64, header_size, (end + alignment - 1) & ~(alignment - 1)
        )

    def _entries(self) -> Iterator[tuple[int, int, bytes, int]]:
        """Yield (slot, block, ETag, flags) of every slot that is not free."""
        header = self.header
        form = header.entry
        first = 0
        while (first := self._skip_hole(first)) < header.slots:
            count = min(_ENTRIES, header.slots - first)
            piece = self._read_at(header.directory_offset + first * form.size, count * form.size)
            if len(piece) != count * form.size:
                raise self._corrupt("has become shorter while it was read")
            if piece.count(0) != len(piece):
                for slot, (block, etag, *flags) in enumerate(form.iter_unpack(piece), first):
                    if block or flags[:1] > [0] or etag != _NO_ETAG:
                        yield slot, block, etag, flags[0] if flags else 0
            first += count

    def _skip_hole(self, slot: int) -> int:
        """Return the first slot from ``slot`` that does not lie in a hole, where all are free."""
        start, size = self.header.directory_offset, self.header.entry.size
        try:
            data = os.lseek(self._descriptor, start + slot * size, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                # This filesystem does not tell.
                return slot
            if os.fstat(self._descriptor).st_size < self._status.st_size:
                raise self._corrupt("has become shorter while it was read") from None
            return self.header.slots
        return max(slot, (data - start) // size)

    def _read_directory(self) -> dict[int, int]:
        """Return the slot of every dirty block."""
        header = self.header
        dirty: dict[int, int] = {}
        seen: set[int] = set()
        for slot, block, etag, flags in self._entries():
            if flags & ~_DIRTY:
                raise self._corrupt(f"has unknown flags {flags:#x} at slot {slot} (block {block})")
            if block >= MAX_BLOCKS:
                raise self._corrupt(f"names a block {block} at slot {slot}, which no volume has")
            if block in seen:
                raise self._corrupt(f"has block {block} twice, the second time at slot {slot}")
            seen.add(block)
            if not flags:
                continue
            if etag != _NO_ETAG:
                raise self._corrupt(f"has block {block} at slot {slot} both as stored and as not stored")
            end = header.data_offset + (slot + 1) * header.block_size
            if end > self._status.st_size:
                raise self._corrupt(
                    f"is truncated: the data of dirty block {block} (slot {slot}) end at byte {end}, "
                    f"the file at {self._status.st_size}"
                )
            dirty[block] = slot
        return dirty

    def _refuse_if_used(self) -> None:
        """Raise VolumeInUse if another process of this host has the file open for writing, or imports it."""
        hint = "That mount is alive: unmount it, which stores everything. If it hangs, end that process first."
        for pid in _writers(self._descriptor):
            raise VolumeInUse(f"{self.path} is in use by process {pid} ({_name(pid)})", hint=hint)
        try:
            # Of two imports at once one would write after the other has given the volume free. Not every file system
            # has such locks.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VolumeInUse(f"{self.path} is being imported already", hint="Wait for that to end.") from None
        except OSError:
            pass
        # The kernel grants a read lease only while nobody has the file open for writing, whoever that is; /proc shows
        # us only our own processes. It is given back at once: held, it would delay who opens the file, and its default
        # signal would end us.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._descriptor, fcntl.F_SETSIG, signal.SIGURG)
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except BlockingIOError:
                raise VolumeInUse(f"{self.path} is open for writing in another process", hint=hint) from None
            fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _open(path: str) -> int:
    try:
        # Not blocking: a FIFO would wait for a writer.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:
        raise UsageError(f"{path!r} is no name of a file", hint="Name the file given to blockCacheFile.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a symbolic link", hint="Name the file itself.") from None
        raise UsageError(
            f"{path} cannot be opened: {error.strerror}", hint="Name the file that was given to blockCacheFile."
        ) from None


def _writers(descriptor: int) -> Iterator[int]:
    """Yield the other processes, as far as we may look into them, that have an open file open for writing."""
    status = os.fstat(descriptor)
    inode = _facts(Path(f"/proc/self/fdinfo/{descriptor}")).get("ino")
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):
            for handle in (process / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    facts = _facts(process / "fdinfo" / handle.name)
                    # Who asks a mount that hangs for a file would hang, too: only what may be this one is asked for.
                    if facts.get("ino") != inode:
                        continue
                    there = handle.stat()
                    writes = int(facts["flags"], 8) & os.O_ACCMODE != os.O_RDONLY
                    if writes and (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino):
                        yield int(process.name)


def _facts(file: Path) -> dict[str, str]:
    """Return what /proc says of an open file; its inode since Linux 5.14."""
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "which has just ended"
