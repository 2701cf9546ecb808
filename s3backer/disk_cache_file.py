r"""The file of the disk cache: copies of one volume's objects, each in a slot of its own.

    offset    field, all little-endian
    0         magic "s3bcopy\n"              ┐ these fields stand here in every version
    8         u32   version, 1               │
    12        u32   incompatible features, 0 │
    16        u32   compatible features      ┘
    20        u32   block size
    24        u32   bytes of a slot
    28        32 bytes, the identity: SHA-256 of endpoint, store and prefix, NULs between them
    60        u32   CRC-32C of bytes 0 to 59
    4096      groups, one after the other:

    group     8192 entries of 8 bytes        u32 block + 1, 0 for none; u32 bytes of the copy
              8192 slots

    slot      u64   CRC-64/NVME of the identity, the block size (u32), and everything below
              u32   block
              u32   bytes of the body
              3 u16 bytes of ETag, Content-Encoding and metadata
              u16   0
              ETag, Content-Encoding, metadata (NAME NUL VALUE NUL …), body

The file ends with a slot, whole or not. An entry is a hint: what counts is the checksum in the slot, which also says
that the copy is of this volume and this block. So nothing is ever synced, and after a crash or a loss of power a
copy is whole or it is none. A slot has room for a block and what encoding adds to it; what is longer is not kept.

Guarantees
  * The file is opened by descriptor, without following a link; it has to be a regular file of this user that nobody
    else can write. One process uses it at a time (flock).
  * No number in it is believed before it was held against the slot size and the length of the file.
  * A file that is not this volume's, or is of a newer version, is left as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
from array import array
from collections.abc import Iterator

from s3backer._checksum import crc32c, crc64nvme
from s3backer.errors import UsageError
from s3backer.hints import command_line
from s3backer.layouts.copies import Copy

MAGIC = b"s3bcopy\n"
VERSION = 1
#: Bytes before the first group.
START = 4096
GROUP = 8192
ENTRY_BYTES = 8
_DIRECTORY_BYTES = GROUP * ENTRY_BYTES
_KNOWN_INCOMPATIBLE = 0
_PREAMBLE = struct.Struct("<8sIII")
_HEADER = struct.Struct("<8sIIIII32s")
_CRC = struct.Struct("<I")
_SUM = struct.Struct("<Q")
_HEAD = struct.Struct("<IIHHHH")
_ENTRY = struct.Struct("<II")
#: Room beside the block: for ETag, encoding and metadata, and what compressing the incompressible adds.
_FACTS = 512
_GROWTH = 1 << 16, 64
#: Slots of large blocks begin on pages, so that replacing one never has to read another's page first.
_LARGE, _PAGE, _SMALL_UNIT = 64 << 10, 4096, 512
_libc = ctypes.CDLL(None, use_errno=True)
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def slot_size(block_size: int) -> int:
    """Return the bytes of a slot for blocks of that size."""
    unit = _PAGE if block_size >= _LARGE else _SMALL_UNIT
    wanted = block_size + _FACTS + block_size // _GROWTH[0] * _GROWTH[1]
    return -(-wanted // unit) * unit


class CopyFormat:
    """Slots of one volume: ``identity`` is 32 bytes."""

    def __init__(self, identity: bytes, block_size: int) -> None:
        self.slot_size = slot_size(block_size)
        self.header = self._header(identity, block_size)
        self._seed = crc64nvme(identity + _CRC.pack(block_size))

    def _header(self, identity: bytes, block_size: int) -> bytes:
        fields = _HEADER.pack(MAGIC, VERSION, 0, 0, block_size, self.slot_size, identity)
        return fields + _CRC.pack(crc32c(fields))

    def encode(self, block: int, copy: Copy) -> bytes | None:
        """Return what stands in a slot before the body; None if the copy does not fit one."""
        parts = [
            _encoded(copy.etag),
            _encoded(copy.content_encoding),
            b"".join(_encoded(text) + b"\0" for item in copy.metadata.items() for text in item),
        ]
        facts = b"".join(parts)
        if _SUM.size + _HEAD.size + len(facts) + len(copy.body) > self.slot_size or len(facts) > 0xFFFF:
            return None
        head = _HEAD.pack(block, len(copy.body), *map(len, parts), 0) + facts
        return _SUM.pack(crc64nvme(copy.body, crc64nvme(head, self._seed))) + head

    def decode(self, block: int, data: bytes) -> Copy | None:
        """Return the copy at the beginning of a slot's bytes; None if it is not whole, or not of this block."""
        start = _SUM.size + _HEAD.size
        if len(data) < start:
            return None
        found, size, *lengths, zero = _HEAD.unpack_from(data, _SUM.size)
        end = start + sum(lengths) + size
        if found != block or zero or end > len(data):
            return None
        if crc64nvme(memoryview(data)[_SUM.size : end], self._seed) != _SUM.unpack_from(data)[0]:
            return None
        etag, encoding, metadata = (
            data[start + sum(lengths[:number]) : start + sum(lengths[: number + 1])].decode(errors="surrogatepass")
            for number in range(3)
        )
        names = metadata.split("\0")
        return Copy(etag, data[end - size : end], encoding, dict(zip(names[::2], names[1::2], strict=False)))


class CopyFile:
    """The open file; see the module for its form. ``path`` is for messages.

    Raises UsageError, which says what to try, where it cannot be opened or used. Everything else raises OSError.
    """

    def __init__(self, directory: str, name: str, identity: bytes, block_size: int) -> None:
        self.path = os.path.join(directory, name)
        self.format = CopyFormat(identity, block_size)
        self.slot_size = self.format.slot_size
        #: What became of the file's content, if it could not stay: for the log.
        self.emptied = ""
        self._can_punch = True
        self._descriptor = _open(directory, name)
        try:
            self._check_header()
        except OSError as error:
            self.close()
            raise _unusable(self.path, error) from None
        except BaseException:
            self.close()
            raise

    def _check_header(self) -> None:
        ours, found = self.format.header, os.pread(self._descriptor, _HEADER.size + _CRC.size, 0)
        if found[: len(MAGIC)] != MAGIC[: len(found)]:
            raise UsageError(f"{self.path} is no disk cache of s3backer", hint=_ANOTHER)
        if len(found) >= _PREAMBLE.size:
            _, version, incompatible, _ = _PREAMBLE.unpack_from(found)
            if version > VERSION or incompatible & ~_KNOWN_INCOMPATIBLE:
                raise UsageError(f"{self.path} was written by a newer s3backer", hint=_ANOTHER)
        if len(found) == len(ours) and _CRC.pack(crc32c(found[: -_CRC.size])) == found[-_CRC.size :]:
            *_, block_size, size, identity = _HEADER.unpack_from(found)
            if identity != _HEADER.unpack_from(ours)[6]:
                raise UsageError(f"{self.path} is the disk cache of another volume", hint=_ANOTHER)
            if (block_size, size) == _HEADER.unpack_from(ours)[4:6]:
                return
            self.emptied = "the volume has another block size now"
        elif found:
            self.emptied = "its header is damaged"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, ours, 0)

    def entries(self) -> Iterator[tuple[int, int, int]]:
        """Yield (slot, block, bytes of the copy) of what seems to be there, in the order of the slots."""
        end = os.fstat(self._descriptor).st_size
        least = _SUM.size + _HEAD.size
        for group in range(-(-max(0, end - START) // (_DIRECTORY_BYTES + GROUP * self.slot_size))):
            first = group * GROUP
            page = os.pread(self._descriptor, _DIRECTORY_BYTES, self._place(first) - _DIRECTORY_BYTES)
            numbers = array("I")
            numbers.frombytes(page[: len(page) // ENTRY_BYTES * ENTRY_BYTES])
            if sys.byteorder == "big":
                numbers.byteswap()
            for slot, (block, size) in enumerate(zip(numbers[::2], numbers[1::2], strict=True), first):
                if block and least <= size <= self.slot_size and self._place(slot) + size <= end:
                    yield slot, block - 1, size

    def read(self, slot: int, size: int) -> bytes:
        """Return the first ``size`` bytes of a slot, fewer at the end of the file."""
        return os.pread(self._descriptor, size, self._place(slot))

    def write(self, slot: int, block: int, head: bytes, body: bytes) -> None:
        """Put a copy, as ``encode`` gave its head, into a slot."""
        size = len(head) + len(body)
        written = os.pwritev(self._descriptor, [head, body], self._place(slot))
        if written != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        os.pwrite(self._descriptor, _ENTRY.pack(block + 1, size), self._entry(slot))

    def blank(self, slot: int) -> None:
        """Let nothing be found in a slot."""
        os.pwrite(self._descriptor, bytes(ENTRY_BYTES), self._entry(slot))

    def empty(self, slot: int) -> None:
        """Let a slot hold nothing, and give back what it takes where the filesystem can do that."""
        self.blank(slot)
        self.trim(slot, 0)

    def trim(self, slot: int, size: int) -> bool:
        """Give back what a slot takes behind its first ``size`` bytes; False where the filesystem has no holes."""
        if self._can_punch:
            self._can_punch = _punch(self._descriptor, self._place(slot) + size, self.slot_size - size)
        return self._can_punch

    def cut(self, slots: int) -> None:
        """Let the file end with this many slots."""
        if slots % GROUP:
            # Or what comes there later would be taken for what is there now.
            rest = os.pread(self._descriptor, (GROUP - slots % GROUP) * ENTRY_BYTES, self._entry(slots))
            os.pwrite(self._descriptor, bytes(len(rest.rstrip(b"\0"))), self._entry(slots))
        end = self._place(slots - 1) + self.slot_size if slots else START
        if os.fstat(self._descriptor).st_size > end:
            os.ftruncate(self._descriptor, end)

    def space(self) -> tuple[int, int]:
        """Return the bytes that are available on the filesystem, and all that it has."""
        found = os.fstatvfs(self._descriptor)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def removed(self) -> bool:
        """Whether somebody has deleted the file."""
        return os.fstat(self._descriptor).st_nlink == 0

    def close(self) -> None:
        """Close the file, which gives it free."""
        os.close(self._descriptor)

    def _place(self, slot: int) -> int:
        return START + (slot // GROUP + 1) * _DIRECTORY_BYTES + slot * self.slot_size

    def _entry(self, slot: int) -> int:
        return self._place(slot // GROUP * GROUP) - _DIRECTORY_BYTES + slot % GROUP * ENTRY_BYTES


def _encoded(text: str) -> bytes:
    # What came with an object may be no text at all; it is taken as it is.
    return text.encode(errors="surrogatepass")


_ANOTHER = "Remove it if nothing needs it, or name another place with --disk-cache-directory. It was left as it is."


def _unusable(path: str, error: OSError) -> UsageError:
    return UsageError(
        f"{path} cannot be used as disk cache: {error.strerror}",
        hint="Check it and its permissions, or name another place with --disk-cache-directory.",
    )


def _open(directory: str, name: str) -> int:
    """Open the file, make it where it is missing, and lock it."""
    path = os.path.join(directory, name)
    try:
        place = _open_directory(directory)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(name, flags, 0o600, dir_fd=place)
        finally:
            os.close(place)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise UsageError(f"{path} is not a regular file", hint=_ANOTHER)
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o077 or facts.st_nlink != 1:
            raise UsageError(f"{path} is not private to this user", hint=_ANOTHER)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(
            f"the disk cache {path} is in use by another process",
            hint="The volume is mounted here a second time; only the first one has the cache.",
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise _unusable(path, error) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_directory(path: str) -> int:
    """Open a directory, made where it is missing; UsageError if others may put files there."""
    with contextlib.suppress(FileExistsError):
        os.makedirs(path, 0o700)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    facts = os.fstat(directory)
    if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
        os.close(directory)
        raise UsageError(
            f"others than this user can write to {path}",
            hint=f"Make it private ({command_line('chmod', '700', path)}), or name another place with "
            "--disk-cache-directory.",
        )
    return directory


def _punch(descriptor: int, start: int, length: int) -> bool:
    fallocate = getattr(_libc, "fallocate64", _libc.fallocate)
    done = fallocate(descriptor, _PUNCH, ctypes.c_int64(start), ctypes.c_int64(length))
    return bool(done == 0)
