"""Every way to ask for a flush ends on the disk of the journal, or without one in the bucket, and fails until it is so.

What is on the disk of the journal is seen by copies of its files that are made when they are synced: see
tests/support/mount_runner.py. Nothing else syncs them here.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.mounts import Mounted, filesystem, loop_device, needs_mounts
from tests.support.tools import run
from tests.support.workbench import BLOCK, Workbench

pytestmark = needs_mounts

SIZE = 32 << 20
#: How often a flush is asked for that cannot succeed.
ATTEMPTS = 3


class Bench(Workbench):
    """A workbench that sees what a flush has made safe."""

    journaled: bool

    @property
    def copies(self) -> Path:
        """The journal's files as its disk has them."""
        return self.directory / "synced"

    def serve(self, **request: object) -> AbstractContextManager[Mounted]:
        journal = {"journal": 4 << 20, "journal_directory": str(self.directory / "journals")}
        return self.mounted(
            volume={"memory": 16 << 20, "journal": 0, **(journal if self.journaled else {})},
            synced=str(self.copies),
            request=request,
        )

    def safe(self, data: bytes) -> bool:
        """Whether a block of this content is on the disk of the journal, or without one in the bucket."""
        return _holds(self.copies if self.journaled else self.bucket, data)


def _holds(directory: Path, data: bytes) -> bool:
    return any(data in path.read_bytes() for path in directory.rglob("*") if path.is_file())


@pytest.fixture(params=[True, False], ids=["journal", "none"])
def flushed(bench: Workbench, request: pytest.FixtureRequest) -> Bench:
    bench.__class__ = Bench
    assert isinstance(bench, Bench)
    bench.journaled = request.param
    bench.copies.mkdir()
    bench.create(size=SIZE)
    return bench


with_journal = pytest.mark.parametrize("flushed", [True], ids=["journal"], indirect=True)
without_journal = pytest.mark.parametrize("flushed", [False], ids=["none"], indirect=True)

# ── ways to write and to flush ───────────────────────────────────────────────────────────────────────────────

#: Writes a block, if one is given, flushes, and calls the last argument before anything else is flushed.
Way = Callable[[Path, bytes, Callable[[], None]], None]


@contextmanager
def _opened(file: Path, flags: int = 0) -> Iterator[int]:
    """Open a file; its close is a flush, too, whose failure is of no interest."""
    descriptor = os.open(file, os.O_RDWR | flags)
    try:
        yield descriptor
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    if data:
        with mmap.mmap(-1, len(data)) as page:
            page.write(data)
            assert os.pwritev(descriptor, [page], BLOCK) == len(data)


def _by(sync: Callable[[int], None], flags: int = 0) -> Way:
    def way(file: Path, data: bytes, look: Callable[[], None]) -> None:
        with _opened(file, flags) as descriptor:
            _write(descriptor, data)
            sync(descriptor)
            look()

    return way


def _by_flag(flag: int) -> Way:
    def way(file: Path, data: bytes, look: Callable[[], None]) -> None:
        with _opened(file, flag) as descriptor:
            _write(descriptor, data)
            if not data:
                os.fsync(descriptor)
            look()

    return way


def _by_one_write(file: Path, data: bytes, look: Callable[[], None]) -> None:
    with _opened(file) as descriptor:
        if data:
            os.pwritev(descriptor, [data], BLOCK, os.RWF_DSYNC)
        else:
            os.fsync(descriptor)
        look()


def _by_close(file: Path, data: bytes, look: Callable[[], None]) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        _write(descriptor, data)
    finally:
        os.close(descriptor)
    look()


def _by_barrier(file: Path, data: bytes, look: Callable[[], None]) -> None:
    with loop_device(file) as device:
        _by(os.fsync, os.O_DIRECT)(Path(device), data, look)


WAYS = {
    "fsync": _by(os.fsync),
    "fdatasync": _by(os.fdatasync),
    # As a loop device writes.
    "past the page cache": _by(os.fsync, os.O_DIRECT),
    "O_SYNC": _by_flag(os.O_SYNC),
    "O_DSYNC": _by_flag(os.O_DSYNC),
    "O_DSYNC past the page cache": _by_flag(os.O_DSYNC | os.O_DIRECT),
    "RWF_DSYNC": _by_one_write,
    "close": _by_close,
    "barrier": _by_barrier,
}


# ── they end where the data is safe ──────────────────────────────────────────────────────────────────────────


def test_what_was_written_is_safe_when_a_flush_returns(flushed: Bench) -> None:
    def look() -> None:
        assert flushed.safe(data), f"{name}: what was written before is not safe"

    with flushed.serve() as mount:
        for name in WAYS:
            for _ in range(2):
                data = os.urandom(BLOCK)
                WAYS[name](mount.file, data, look)


@pytest.mark.parametrize("fast_lane", [True], indirect=True)
def test_so_it_is_where_the_kernel_keeps_nothing(flushed: Bench) -> None:
    """Then it asks for no flush after a synchronous write."""

    def look() -> None:
        assert flushed.safe(data), f"{name}: what was written before is not safe"

    with flushed.serve(direct_io=True) as mount:
        for name in WAYS:
            for _ in range(2):
                data = os.urandom(BLOCK)
                WAYS[name](mount.file, data, look)
        with _opened(mount.file) as descriptor:
            data = os.urandom(BLOCK)
            _write(descriptor, data)
            assert not flushed.safe(data)


@without_journal
@pytest.mark.parametrize("fast_lane", [True], indirect=True)
def test_a_synchronous_write_fails_where_the_kernel_keeps_nothing(flushed: Bench) -> None:
    with flushed.serve(direct_io=True) as mount:
        for name in ("O_SYNC", "O_DSYNC", "RWF_DSYNC"):
            _fail_until_safe(flushed, mount.file, name)


def test_what_was_only_written_is_not(flushed: Bench) -> None:
    """It is in the journal, but nobody has synced that: what these tests look at shows the difference."""
    data = os.urandom(BLOCK)
    with flushed.serve() as mount, _opened(mount.file, os.O_DIRECT) as descriptor:
        _write(descriptor, data)
        # The daemon does not hear of this from the kernel.
        assert ctypes.CDLL(None).syncfs(descriptor) == 0
        assert not flushed.safe(data)
        assert _holds(flushed.directory / "journals", data) == flushed.journaled
        os.fsync(descriptor)
        assert flushed.safe(data)


def _fsync_file(place: Path, data: bytes) -> None:
    with (place / "fsync").open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def _sync_filesystem(place: Path, data: bytes) -> None:
    (place / "sync").write_bytes(data)
    run("sync", "-f", str(place))


FILESYSTEM_WAYS = [_fsync_file, _sync_filesystem]


def test_so_it_is_in_a_filesystem(flushed: Bench, tmp_path: Path) -> None:
    with flushed.serve() as mount, loop_device(mount.file) as device:
        run("mkfs.ext4", "-q", "-b", str(BLOCK), device)
        with filesystem(device, tmp_path / "fs") as place:
            for way in FILESYSTEM_WAYS:
                for _ in range(2):
                    data = os.urandom(BLOCK)
                    way(place, data)
                    assert flushed.safe(data), way.__name__


# ── they fail until it is safe ───────────────────────────────────────────────────────────────────────────────


def fails(action: Callable[[], None]) -> None:
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno == errno.EIO


def _fail_until_safe(bench: Bench, file: Path, name: str) -> None:
    way, data = WAYS[name], os.urandom(BLOCK)

    def not_reached() -> None:
        pytest.fail(f"{name}: this flush has succeeded, and nothing is safe")

    with bench.turned("outage"):
        with bench.turned("fail-sync"):
            fails(lambda: way(file, data, not_reached))
        for _ in range(ATTEMPTS):
            # Nothing new, and the journal's disk would work again.
            fails(lambda: way(file, b"", not_reached))
        assert not bench.safe(data)
    way(file, b"", lambda: None)
    assert _holds(bench.bucket, data), name
    # And so is what comes after.
    later = os.urandom(BLOCK)
    way(file, later, lambda: None)
    assert _holds(bench.bucket, later), name


@with_journal
@pytest.mark.parametrize("name", ["fsync", "past the page cache", "O_SYNC", "close", "barrier"])
def test_a_flush_fails_until_the_data_is_safe(flushed: Bench, name: str) -> None:
    """The journal's disk fails to sync, once, and the store is away."""
    with flushed.serve() as mount:
        _fail_until_safe(flushed, mount.file, name)


@without_journal
def test_so_it_does_where_there_is_no_journal(flushed: Bench) -> None:
    with flushed.serve() as mount:
        for name in WAYS:
            _fail_until_safe(flushed, mount.file, name)


@with_journal
def test_a_filesystem_hears_of_it(flushed: Bench, tmp_path: Path) -> None:
    """It gives up then; what is flushed after the next mount of it is safe."""
    with flushed.serve() as mount, loop_device(mount.file) as device:
        run("mkfs.ext4", "-q", "-b", str(BLOCK), device)
        with filesystem(device, tmp_path / "fs") as place, flushed.turned("outage"), flushed.turned("fail-sync"):
            for _ in range(ATTEMPTS):
                with pytest.raises(OSError) as caught:
                    _fsync_file(place, os.urandom(BLOCK))
                assert caught.value.errno in (errno.EIO, errno.EROFS)
        with filesystem(device, tmp_path / "fs") as place:
            data = os.urandom(BLOCK)
            _fsync_file(place, data)
            assert _holds(flushed.bucket, data)
