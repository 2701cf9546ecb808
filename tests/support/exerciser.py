"""One file that is written, mapped, copied, cut, punched and synced at random, as fsx does, until its device dies.

    Exerciser ──starts──► this module as a program ──► the file
        ▲                        │ "B n": operation n begins, "E n": it has ended
        └────────────────────────┘

A process of its own does it, as whoever touches a mapping of a device that has died is killed (SIGBUS). What it does
follows from its seed: it says how far it came, and the one who asks does the same to a ``Model``. Every read is
compared at once. After the crash each byte has to be what was synced last, or what something wrote there since.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import punch_hole

#: Bytes that the file has at most, and an operation touches at most.
LARGEST, MOST = 256 << 10, 16 << 10
_PAGE = 4096
_KINDS = {"write": 30, "map": 15, "copy": 10, "punch": 8, "truncate": 8, "read": 15, "fsync": 9, "fdatasync": 5}
_LINE = struct.Struct("<cI")
_BEGINS, _ENDED, _WRONG = b"B", b"E", b"X"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Operation:
    """``data``: what is written; ``source``: where a copy comes from."""

    kind: str
    offset: int
    length: int
    data: bytes = b""
    source: int = 0


def operations(seed: int) -> Iterator[Operation]:
    """Yield what is done to the file, without an end."""
    source, size = random.Random(seed), 0
    kinds, weights = list(_KINDS), list(_KINDS.values())
    while True:
        kind = source.choices(kinds, weights)[0]
        if size == 0 and kind not in ("fsync", "fdatasync"):
            kind = "write"
        # All but writes stay inside the file.
        room = LARGEST if kind in ("write", "truncate") else max(size, 1)
        offset = source.randrange(room)
        if source.random() < 0.5:
            offset -= offset % _PAGE
        length = source.randint(1, min(MOST, room - offset))
        if source.random() < 0.5:
            length = max(length - length % _PAGE, min(_PAGE, room - offset))
        if kind == "copy":
            start = source.randrange(size)
            start -= start % _PAGE if source.random() < 0.7 else 0
            length = min(length, size - start, abs(offset - start))
            kind = "copy" if length else "read"
            yield Operation(kind, offset, length or 1, source=start)
        elif kind in ("write", "map"):
            yield Operation(kind, offset, length, source.randbytes(length))
            size = max(size, offset + length)
        else:
            yield Operation(kind, offset, length)
            size = offset if kind == "truncate" else size


class Model:
    """What the file holds, and what it may hold after a crash."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._synced = b""
        #: What was put where since the last sync, and how long the file was.
        self._since: list[tuple[int, bytes]] = []
        self._sizes = [0]

    def apply(self, operation: Operation) -> None:
        """Do it, or a part of it."""
        offset, length, size = operation.offset, operation.length, len(self.content)
        match operation.kind:
            case "write" | "map":
                self._put(offset, operation.data)
            case "copy":
                self._put(offset, bytes(self.content[operation.source : operation.source + length]))
            case "punch":
                self._put(offset, bytes(length))
            case "truncate" if offset < size:
                self._since.append((offset, bytes(size - offset)))
                del self.content[offset:]
            case "truncate":
                self._put(offset, b"")
        self._sizes.append(len(self.content))

    def _put(self, offset: int, data: bytes) -> None:
        gap = offset - len(self.content)
        if gap > 0:
            self._put(len(self.content), bytes(gap))
        self.content[offset : offset + len(data)] = data
        self._since.append((offset, data))

    def synced(self) -> None:
        """A sync has succeeded."""
        self._synced = bytes(self.content)
        self._since.clear()
        self._sizes = [len(self.content)]

    def check(self, found: bytes) -> None:
        """Fail unless a crash may have left this."""
        least, most = min(self._sizes), max(self._sizes)
        assert least <= len(found) <= most, f"{len(found)} bytes are left, not {least} to {most}"
        # Where the file has grown something may not have arrived.
        expected = self._synced[: len(found)].ljust(len(found), b"\0")
        for position in range(len(found) if found != expected else 0):
            byte = found[position]
            assert byte == expected[position] or any(
                start <= position < start + len(data) and data[position - start] == byte for start, data in self._since
            ), f"byte {position} is {byte}, not {expected[position]} or what was written there since"


class Exerciser:
    """Exercises a file until everything fails, or ``close`` is called. The file is there, synced, when this is made."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        # Not a pipe, which would be full some time.
        self._saying = tempfile.TemporaryFile()  # noqa: SIM115, as close() closes it
        self._said = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.exerciser", str(path), str(seed)],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._saying,
        )
        while self.alive and not os.fstat(self._saying.fileno()).st_size:
            time.sleep(0.01)

    @property
    def alive(self) -> bool:
        """Whether nothing has failed yet."""
        return self._process.poll() is None

    def join(self) -> None:
        """See it end, as its device has died."""
        try:
            self._process.wait(60)
        finally:
            self.close()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if not self._saying.closed:
            self._saying.seek(0)
            self._said = self._saying.read()
            self._saying.close()

    def check(self, path: Path) -> int:
        """Compare the file with what it may hold, at the end; return how many operations there were."""
        model, begun, ended = Model(), 0, 0
        for kind, number in _LINE.iter_unpack(self._said):
            assert kind != _WRONG, f"exerciser of seed {self.seed}: operation {number} read what was not written"
            begun, ended = (number, ended) if kind == _BEGINS else (begun, number)
        for number, operation in zip(range(1, begun + 1), operations(self.seed), strict=False):
            if not operation.kind.endswith("sync"):
                model.apply(operation)
            elif number <= ended:
                model.synced()
        try:
            model.check(path.read_bytes())
        except BaseException as error:
            error.add_note(f"exerciser of seed {self.seed}, operation {begun}")
            raise
        return begun


def exercise(path: Path, seed: int) -> None:
    """Do it, and say on standard output how far it is."""
    descriptor, directory = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), os.open(path.parent, os.O_RDONLY)
    sync_file(descriptor)
    sync_file(directory)
    os.close(directory)
    model = Model()
    for number, operation in enumerate(operations(seed), 1):
        _say(_BEGINS, number)
        if operation.kind == "read":
            found = os.pread(descriptor, operation.length, operation.offset)
            if found != model.content[operation.offset : operation.offset + operation.length]:
                # Of a device that has died anything may be read.
                sync_file(descriptor)
                _say(_WRONG, number)
                return
        else:
            _do(descriptor, operation, len(model.content))
            model.apply(operation)
        _say(_ENDED, number)


def _say(kind: bytes, number: int) -> None:
    os.write(1, _LINE.pack(kind, number))


def _do(descriptor: int, operation: Operation, size: int) -> None:
    offset, length = operation.offset, operation.length
    match operation.kind:
        case "write":
            assert os.pwrite(descriptor, operation.data, offset) == length
        case "map":
            with mmap.mmap(descriptor, size) as mapping:
                mapping[offset : offset + length] = operation.data
        case "copy":
            done = 0
            while done < length:
                done += os.copy_file_range(
                    descriptor, descriptor, length - done, operation.source + done, offset + done
                )
        case "punch":
            punch_hole(descriptor, offset, length)
        case "truncate":
            os.ftruncate(descriptor, offset)
        case "fsync":
            sync_file(descriptor)
        case "fdatasync":
            sync_file(descriptor, os.fdatasync)


def sync_file(descriptor: int, sync: Callable[[int], None] = os.fsync) -> None:
    """Sync a file, and fail where its filesystem has given up meanwhile, whatever it said.

    btrfs says yes to a sync that waits for the commit of somebody else's, when that commit fails: it finds no
    transaction any more then, and takes that for one that is on the disk (``btrfs_sync_file``, Linux 6.18; whatever the
    device is). It is read-only by that time.
    """
    sync(descriptor)
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


if __name__ == "__main__":
    try:
        exercise(Path(sys.argv[1]), int(sys.argv[2]))
    except OSError:
        sys.exit(1)
