"""A disk whose every write is recorded, and what may be left of it when the power fails at any moment.

Content   each sector of a file has one of the versions that it had since the file was last synced, whichever
Names     of what happened to a directory since it was last synced, the first so many steps have happened
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3backer._journal import Journal
from s3backer.journal.system import System

SECTOR = 512


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_PWRITEV = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_int, ctypes.c_long, use_errno=True
)
_FDATASYNC = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, use_errno=True)
_KEPT: list[object] = []


class Calls:
    """C functions in place of pwritev(2) and fdatasync(2) that call Python's.

    ``write`` gets (descriptor, bytes, position) and returns how many were written, ``sync`` gets a descriptor; both
    may raise OSError. ``before`` is called before a write's bytes are looked at.
    """

    def __init__(
        self,
        write: Callable[[int, bytes, int], int],
        sync: Callable[[int], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        def pwritev(fd: int, vectors: Any, count: int, position: int) -> int:
            before()
            pieces = [ctypes.string_at(vectors[i].base, vectors[i].length) for i in range(count)]
            try:
                return write(fd, b"".join(pieces), position)
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return -1

        def fdatasync(fd: int) -> int:
            try:
                sync(fd)
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return -1
            return 0

        self._functions = (_PWRITEV(pwritev), _FDATASYNC(fdatasync))
        # A journal may call them for as long as it lives, whoever has forgotten this object.
        _KEPT.append(self._functions)

    def interpose(self, journal: Journal) -> None:
        addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in self._functions]
        journal.interpose(addresses[0], addresses[1])


class FaultyDisk:
    """Does what it is told to: everything, a part, or nothing with an error."""

    def __init__(self, journal: Journal) -> None:
        # ``room``: bytes that are written before the error.
        self.write_error = self.sync_error = self.room = 0
        self.most = 1 << 30
        self.interrupted = 0
        self.writes = self.syncs = 0
        self.syncing, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.calls = Calls(self.write, self.sync)
        self.calls.interpose(journal)

    def write(self, fd: int, data: bytes, position: int) -> int:
        self.writes += 1
        if self.interrupted:
            self.interrupted -= 1
            raise OSError(errno.EINTR, "")
        if self.write_error:
            if not self.room:
                raise OSError(self.write_error, "")
            data, self.room = data[: self.room], 0
        return os.pwrite(fd, data[: self.most], position)

    def sync(self, fd: int) -> None:
        self.syncs += 1
        self.syncing.set()
        self.go_on.wait(60)
        if self.sync_error:
            raise OSError(self.sync_error, "")


@dataclass(frozen=True)
class Step:
    """One thing that happened: what, to which inode or name, and with what."""

    what: str
    inode: int = 0
    names: tuple[str, ...] = ()
    position: int = 0
    data: bytes = b""
    note: Any = None


@dataclass
class Recorder(System):
    """Carries everything out, and remembers it.

    While a file of the journal is synced ``meanwhile`` is called, which may write: before or after what is synced is
    on the disk.
    """

    steps: list[Step] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.calls = Calls(self._pwrite, self._fdatasync)

    def note(self, note: Any) -> None:
        """Remember what the caller knows at this moment."""
        self.steps.append(Step("note", note=note))

    def _pwrite(self, fd: int, data: bytes, position: int) -> int:
        self.steps.append(Step("write", os.fstat(fd).st_ino, position=position, data=data))
        return os.pwrite(fd, data, position)

    def _fdatasync(self, fd: int) -> None:
        self.meanwhile()
        self.steps.append(Step("sync", os.fstat(fd).st_ino))
        self.meanwhile()

    def create(self, name: str, directory: int) -> int:
        fd = super().create(name, directory)
        self.steps.append(Step("create", os.fstat(fd).st_ino, (name,)))
        return fd

    def allocate(self, fd: int, length: int) -> None:
        super().allocate(fd, length)
        self.steps.append(Step("allocate", os.fstat(fd).st_ino, position=length))

    def write(self, fd: int, data: bytes, position: int) -> None:
        self._pwrite(fd, data, position)

    def sync(self, fd: int) -> None:
        self.steps.append(Step("sync", os.fstat(fd).st_ino))

    def rename(self, old: str, new: str, directory: int) -> None:
        super().rename(old, new, directory)
        self.steps.append(Step("rename", names=(old, new)))

    def remove(self, name: str, directory: int) -> None:
        super().remove(name, directory)
        self.steps.append(Step("remove", names=(name,)))


class _File:
    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[Step] = []

    def settle(self) -> None:
        for step in self.pending:
            apply(self.durable, step)
        self.pending.clear()


def apply(content: bytearray, step: Step) -> None:
    """Carry out a write or an allocation."""
    end = step.position + len(step.data)
    content.extend(bytes(max(0, end - len(content))))
    content[step.position : end] = step.data


class Disk:
    """What the disk holds after some of the steps: take them one by one, and let the power fail in between."""

    def __init__(self, directory: Path) -> None:
        """Begin with what a directory holds now."""
        self._directory = directory.stat().st_ino
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        self._pending_names: list[Step] = []
        for path in sorted(directory.iterdir()):
            inode = self._names[path.name] = path.stat().st_ino
            self._files[inode] = _File()
            self._files[inode].durable += path.read_bytes()

    def take(self, step: Step) -> None:
        match step.what:
            case "create":
                self._files[step.inode] = _File()
                self._pending_names.append(step)
            case "write" | "allocate":
                self._files[step.inode].pending.append(step)
            case "sync" if step.inode == self._directory:
                for pending in self._pending_names:
                    _rename(self._names, pending)
                self._pending_names.clear()
            case "sync":
                self._files[step.inode].settle()
            case "rename" | "remove":
                self._pending_names.append(step)

    @property
    def unsettled(self) -> bool:
        return bool(self._pending_names) or any(file.pending for file in self._files.values())

    def fail(self, source: random.Random, where: Path) -> None:
        """Put into a directory what may be left."""
        names = dict(self._names)
        for step in self._pending_names[: source.randint(0, len(self._pending_names))]:
            _rename(names, step)
        way = source.choice((_nothing, _everything, _some_writes, _all_but_one_sector, _any_sector, _any_sector))
        where.mkdir(mode=0o700)
        for name, inode in names.items():
            file = self._files[inode]
            content = bytearray(file.durable)
            way(source, content, file.pending)
            (where / name).write_bytes(content)


def _rename(names: dict[str, int], step: Step) -> None:
    match step.what:
        case "create":
            names[step.names[0]] = step.inode
        case "rename":
            names[step.names[1]] = names.pop(step.names[0])
        case "remove":
            names.pop(step.names[0])


def _nothing(source: random.Random, content: bytearray, pending: list[Step]) -> None:
    for step in pending:
        if step.what == "allocate":
            apply(content, step)


def _everything(source: random.Random, content: bytearray, pending: list[Step]) -> None:
    for step in pending:
        apply(content, step)


def _some_writes(source: random.Random, content: bytearray, pending: list[Step]) -> None:
    """Whole writes are there or not."""
    for step in pending:
        if source.random() < 0.5:
            apply(content, step)


def _any_sector(source: random.Random, content: bytearray, pending: list[Step]) -> None:
    """Each sector is as it was after any of the writes."""
    versions = [bytes(content)]
    for step in pending:
        after = bytearray(versions[-1])
        apply(after, step)
        versions.append(bytes(after))
    content.extend(bytes(len(versions[-1]) - len(content)))
    chance = source.choice((0.1, 0.5, 0.9))
    for start in range(0, len(content), SECTOR):
        last = versions[-1][start : start + SECTOR]
        chosen = last if source.random() < chance else source.choice(versions)[start : start + SECTOR]
        content[start : start + len(last)] = chosen.ljust(len(last), b"\0")


def _all_but_one_sector(source: random.Random, content: bytearray, pending: list[Step]) -> None:
    before = bytes(content)
    _everything(source, content, pending)
    changed = [
        start
        for start in range(0, len(content), SECTOR)
        if content[start : start + SECTOR] != before[start : start + SECTOR].ljust(SECTOR, b"\0")
    ]
    if changed:
        start = source.choice(changed)
        content[start : start + SECTOR] = before[start : start + SECTOR].ljust(SECTOR, b"\0")
