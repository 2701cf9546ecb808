"""The fast lane: what the kernel asks of the disk is answered without waiting for anybody who waits."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from s3backer.admin import create_volume
from s3backer.control.asking import call
from s3backer.errors import S3backerError
from s3backer.opening import VolumeOptions
from s3backer.stores.directory import DirectoryStore
from s3backer.volume import Volume
from tests.support.mounts import CONNECTIONS, PATIENCE, Mounted, filesystem, loop_device, needs_mounts, wait_until
from tests.support.tools import run
from tests.support.workbench import BLOCK, SIZE, Workbench

pytestmark = [needs_mounts, pytest.mark.usefixtures("connections")]

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
#: Blocks of the volume that is larger than its cache.
MANY = 2048


@pytest.fixture
def fast_lane() -> bool:
    """Return that these tests are about the fast lane alone."""
    return True


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def facts(bench: Workbench) -> dict[str, Any]:
    found = call(bench.ident, "info")
    assert found is not None
    return dict(found)


@contextlib.contextmanager
def direct(mount: Mounted) -> Iterator[int]:
    """Open the disk past the kernel's cache."""
    descriptor = os.open(mount.file, os.O_RDWR | os.O_DIRECT)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def page(content: bytes) -> mmap.mmap:
    """Return memory fit for direct I/O."""
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


def pread(descriptor: int, offset: int, length: int = BLOCK) -> bytes:
    memory = mmap.mmap(-1, length)
    return memory[: os.preadv(descriptor, [memory], offset)]


def content(block: int) -> bytes:
    return block.to_bytes(8, "little") * (BLOCK // 8)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a volume of which every block has its own content."""
    directory = tmp_path_factory.mktemp("filled")
    store = DirectoryStore(directory)
    create_volume(store, "", size=MANY * BLOCK, block_size=BLOCK)
    with Volume.open(store, "", VolumeOptions()) as volume:
        volume.write(0, b"".join(map(content, range(MANY))))
    return directory


@pytest.fixture
def large(bench: Workbench, filled: Path) -> Workbench:
    """Return a copy of that volume, most of which cannot be in the cache."""
    shutil.copytree(filled, bench.bucket, dirs_exist_ok=True)
    return bench


# ── holes ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
def test_a_range_becomes_zeros_and_its_objects_go(volume: Workbench, mode: int) -> None:
    with volume.mounted() as mount:
        data = bytes(range(1, 251)) * 100
        with mount.file.open("r+b") as file:
            file.write(data)
        before = len(volume.tree())
        with mount.file.open("r+b") as file:
            fallocate(file.fileno(), mode, 1000, 4 * BLOCK)
        expected = bytearray(data)
        expected[1000 : 1000 + 4 * BLOCK] = bytes(4 * BLOCK)
        assert mount.file.read_bytes()[: len(data)] == expected
        assert volume.stored(0, len(data)) == expected
        assert len(volume.tree()) == before - 3


def test_ranges_and_modes_that_are_refused_change_nothing(volume: Workbench) -> None:
    with volume.mounted() as mount, mount.file.open("r+b", buffering=0) as file:
        file.write(b"x" * SIZE)
        for mode, offset, length, code in (
            (0, 0, BLOCK, errno.EOPNOTSUPP),
            (KEEP_SIZE, 0, BLOCK, errno.EOPNOTSUPP),
            (COLLAPSE_RANGE, 0, BLOCK, errno.EOPNOTSUPP),
            (INSERT_RANGE, 0, BLOCK, errno.EOPNOTSUPP),
            (PUNCH_HOLE, 0, BLOCK, errno.EOPNOTSUPP),
            (PUNCH_HOLE | KEEP_SIZE, SIZE - BLOCK, 2 * BLOCK, errno.ENOSPC),
            (ZERO_RANGE, SIZE, 1, errno.ENOSPC),
            (ZERO_RANGE, 1 << 60, 1 << 60, errno.ENOSPC),
        ):
            where = f"mode {mode}, offset {offset}, length {length}"
            with pytest.raises(OSError) as caught:
                fallocate(file.fileno(), mode, offset, length)
            assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code], where
            assert os.fstat(file.fileno()).st_size == SIZE, where
            assert mount.file.read_bytes() == b"x" * SIZE, where


def test_a_read_only_volume_has_no_holes_punched(volume: Workbench) -> None:
    with volume.mounted(volume={"read_only": True}) as mount, mount.file.open("rb") as file:
        with pytest.raises(OSError) as caught:
            fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 0, BLOCK)
        assert caught.value.errno in (errno.EROFS, errno.EBADF)


def test_fstrim_on_ext4_deletes_objects(bench: Workbench, tmp_path: Path) -> None:
    bench.create(size=64 << 20, block_size=64 << 10)
    with bench.mounted() as mount, loop_device(mount.file) as device:
        run("mkfs.ext4", "-q", device)
        with filesystem(device, tmp_path / "ext4") as place:
            (place / "big").write_bytes(os.urandom(20 << 20))
            run("sync", "-f", str(place))
            full = len(bench.tree())
            (place / "big").unlink()
            run("sync", "-f", str(place))
            run("fstrim", str(place))
            run("sync", "-f", str(place))
            assert full - len(bench.tree()) >= 300


# ── nobody waits for who waits ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("at_once", [False, True])
def test_a_thousand_reads_wait_for_the_store_and_nobody_for_them(large: Workbench, at_once: bool) -> None:
    with large.mounted(volume={"cache_blocks": 300, "list_blocks": False}) as mount, direct(mount) as descriptor:
        assert pread(descriptor, 0) == content(0)
        waiting = CONNECTIONS / str(os.minor(os.fstat(descriptor).st_dev)) / "waiting"
        with ThreadPoolExecutor(1000) as pool, large.turned("hold-get"):
            with mount.stopped() if at_once else contextlib.nullcontext():
                reads = [pool.submit(pread, descriptor, block * BLOCK) for block in range(100, 1100)]
                if at_once:
                    wait_until(lambda: int(waiting.read_text()) == 1000, "a thousand reads wait in the kernel")
            wait_until(lambda: facts(large)["lane_waiting"] == 1000, "a thousand reads wait")
            for block in range(50):
                assert pread(descriptor, 0) == content(0)
                assert os.pwritev(descriptor, [page(content(block + 7))], (block + 1) * BLOCK) == BLOCK
                assert pread(descriptor, (block + 1) * BLOCK) == content(block + 7)
            os.stat(mount.file)
            assert b"http_gets" in mount.stats.read_bytes()
            assert not any(read.done() for read in reads)
            large.release("hold-get")
            assert [read.result(PATIENCE) for read in reads] == [content(block) for block in range(100, 1100)]


def test_writers_that_wait_keep_no_reader_out(large: Workbench) -> None:
    # Without direct I/O the kernel lets one write at a time come here.
    options: dict[str, Any] = {"volume": {"cache_blocks": 64, "threads": 4}, "request": {"direct_io": True}}
    with large.mounted(**options) as mount, direct(mount) as descriptor:
        with ThreadPoolExecutor(200) as pool, large.turned("hold-put"):
            assert pread(descriptor, 0) == content(0)
            writes = [
                pool.submit(os.pwritev, descriptor, [page(content(block + 1))], block * BLOCK)
                for block in range(200, 400)
            ]
            wait_until(lambda: facts(large)["lane_waiting"] >= 100, "writers wait")
            done = sum(write.done() for write in writes)
            assert done < 100
            for _ in range(100):
                assert pread(descriptor, 0) == content(0)
            assert pread(descriptor, 500 * BLOCK) == content(500)
            os.stat(mount.file)
            large.release("hold-put")
            assert [write.result(PATIENCE) for write in writes] == [BLOCK] * 200
        os.fsync(descriptor)
        assert large.stored(200 * BLOCK, 200 * BLOCK) == b"".join(content(block + 1) for block in range(200, 400))


# ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────

CHILD = """
import mmap, os, sys
what, name, number = sys.argv[1:]
memory = mmap.mmap(-1, 4096)
memory[:] = b"late" * 1024
descriptor = os.open(name, os.O_RDWR | os.O_DIRECT)
print("ready", flush=True)
sys.stdin.readline()
match what:
    case "read":
        os.preadv(descriptor, [memory], int(number) * 4096)
    case "write":
        os.pwritev(descriptor, [memory], int(number) * 4096)
    case "fsync":
        os.fsync(descriptor)
print("done", flush=True)
"""


@contextlib.contextmanager
def child(what: str, mount: Mounted, block: int) -> Iterator[subprocess.Popen[str]]:
    """Start a process that does something to the disk once it is told to.

    It has to begin before this process opens the disk: it would close what it inherits, and that waits as well.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, what, str(mount.file), str(block)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def wait_for_waiting(bench: Workbench, count: int) -> None:
    wait_until(lambda: facts(bench)["lane_waiting"] == count, f"{count} requests wait")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("what", ["read", "write", "fsync"])
def test_whoever_waits_can_be_killed(large: Workbench, what: str, number: int) -> None:
    options: dict[str, Any] = {"volume": {"cache_blocks": 32, "threads": 2}, "request": {"direct_io": True}}
    with (
        large.mounted(**options) as mount,
        child(what, mount, 1500) as process,
        direct(mount) as descriptor,
        ThreadPoolExecutor(1) as pool,
    ):
        with large.turned("hold-put"), large.turned("hold-get"):
            # For fsync one write has to be unsaved, and none under way: the kernel would let it wait for that.
            filler = pool.submit(fill, descriptor, {"read": 0, "write": 64, "fsync": 1}[what])
            others = int(what == "write")
            wait_until(lambda: filler.done() or facts(large)["writers"] == "wait for room", "they are made, or wait")
            wait_for_waiting(large, others)
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            wait_for_waiting(large, others + 1)
            process.send_signal(number)
            # Its end closes the disk, which waits for a flush of its own, until that is called off too.
            assert process.wait(PATIENCE) == -number
            wait_for_waiting(large, others)
        filler.result(PATIENCE)
        os.fsync(descriptor)
        # A write that was called off is not made later, over what others write.
        assert pread(descriptor, 1500 * BLOCK) == content(1500)


def test_a_writer_that_waits_for_the_bucket_can_be_killed(large: Workbench) -> None:
    options: dict[str, Any] = {"volume": {"write_through": True}, "request": {"direct_io": True}}
    with large.mounted(**options) as mount, child("write", mount, 1500) as process, large.turned("hold-put"):
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        large.wait_reached("hold-put")
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        wait_for_waiting(large, 0)


def fill(descriptor: int, blocks: int) -> None:
    """Write so many blocks; 64 are more than may be unsaved."""
    for block in range(blocks):
        os.pwritev(descriptor, [page(content(block + 1))], block * BLOCK)


def test_a_signal_that_kills_nobody_ends_a_read_with_eintr(large: Workbench) -> None:
    options: dict[str, Any] = {"request": {"direct_io": True}}
    with large.mounted(**options) as mount, direct(mount) as descriptor, large.turned("hold-get"):
        libc = ctypes.CDLL(None, use_errno=True)
        memory = mmap.mmap(-1, BLOCK)
        buffer = (ctypes.c_char * BLOCK).from_buffer(memory)
        found: list[tuple[int, int]] = []

        def read() -> None:
            found.append((libc.pread(descriptor, buffer, BLOCK, ctypes.c_long(900 * BLOCK)), ctypes.get_errno()))

        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            thread = threading.Thread(target=read)
            thread.start()
            wait_for_waiting(large, 1)
            assert thread.ident is not None
            signal.pthread_kill(thread.ident, signal.SIGUSR1)
            thread.join(PATIENCE)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert found == [(-1, errno.EINTR)]
        large.release("hold-get")
        assert pread(descriptor, 900 * BLOCK) == content(900)


# ── at the same time ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_sector_that_is_read_and_written_is_never_torn(volume: Workbench) -> None:
    with volume.mounted() as mount, direct(mount) as descriptor:
        over = threading.Event()

        def write(number: int) -> None:
            turn = 0
            while not over.is_set():
                turn += 1
                os.pwritev(descriptor, [page(bytes([(number * 64 + turn) % 256]) * 512)], number % 2 * 512)

        def read() -> int:
            for turn in range(3000):
                sector = pread(descriptor, turn % 2 * 512, 512)
                assert len(set(sector)) == 1, sector
            return 1

        with ThreadPoolExecutor(6) as pool:
            writers = [pool.submit(write, number) for number in range(4)]
            readers = [pool.submit(read) for _ in range(2)]
            try:
                assert [reader.result(PATIENCE) for reader in readers] == [1, 1]
            finally:
                over.set()
            for writer in writers:
                writer.result(PATIENCE)


def test_cached_requests_do_not_meet_python(volume: Workbench) -> None:
    with volume.mounted() as mount, direct(mount) as descriptor:
        os.pwritev(descriptor, [page(content(3))], 0)
        before = facts(volume)
        for _ in range(200):
            assert pread(descriptor, 0) == content(3)
            os.pwritev(descriptor, [page(content(3))], 0)
        after = facts(volume)
        assert after["lane_answered"] - before["lane_answered"] >= 400
        assert after["lane_waited"] == before["lane_waited"]


def test_the_kernel_keeps_nothing_with_direct_io(volume: Workbench) -> None:
    def asked(mount: Mounted) -> int:
        before = facts(volume)["lane_answered"]
        with mount.file.open("rb", buffering=0) as file:
            for _ in range(10):
                file.seek(0)
                file.read(BLOCK)
        return int(facts(volume)["lane_answered"] - before)

    for wanted in (False, True):
        with volume.mounted(request={"fast_lane": True, "direct_io": wanted}) as mount:
            with mount.file.open("r+b") as file:
                file.write(b"x" * SIZE)
            asked(mount)
            assert (asked(mount) >= 10) == wanted
            # It can be mapped all the same, as a loop device or a virtual machine may want it.
            with mount.file.open("r+b") as file, mmap.mmap(file.fileno(), BLOCK) as mapped:
                assert mapped[:10] == b"x" * 10


def test_times_follow_the_last_write(volume: Workbench) -> None:
    with volume.mounted() as mount, mount.file.open("r+b", buffering=0) as file:
        before = os.stat(mount.file).st_mtime_ns
        time.sleep(0.05)
        # More often than the kernel's coarse clock moves.
        for number in range(50):
            os.pwrite(file.fileno(), b"x", number)
            written = os.stat(mount.file).st_mtime_ns
            assert written > before
            os.utime(mount.file, ns=(1, 2_000_000_000))
            assert os.stat(mount.file).st_mtime_ns == 2_000_000_000
            before = written


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_connection_that_is_cut_off_ends_the_daemon_and_everything_is_stored(volume: Workbench) -> None:
    with volume.mounted() as mount:
        with direct(mount) as descriptor:
            os.pwritev(descriptor, [page(content(9))], 5 * BLOCK)
            number = os.minor(os.stat(mount.mountpoint).st_dev)
            (CONNECTIONS / str(number) / "abort").write_text("1")
            with pytest.raises(OSError):
                os.pwritev(descriptor, [page(content(10))], 5 * BLOCK)
        mount.wait()
    assert volume.stored(5 * BLOCK, BLOCK) == content(9)
    volume.wait_for_nothing()


def end_lazily(mount: Mounted) -> None:
    mount.umount("-l")


def end_by_signal(mount: Mounted) -> None:
    mount.signal(signal.SIGTERM)


@pytest.mark.parametrize("end", [end_lazily, end_by_signal])
def test_requests_that_wait_at_the_end(large: Workbench, end: Callable[[Mounted], None]) -> None:
    with large.mounted(volume={"cache_blocks": 200, "threads": 32}) as mount:
        with direct(mount) as descriptor, ThreadPoolExecutor(8) as pool, large.turned("hold-get"):
            os.pwritev(descriptor, [page(content(77))], 3 * BLOCK)
            reads = [pool.submit(pread, descriptor, block * BLOCK) for block in range(1000, 1800, 100)]
            wait_for_waiting(large, 8)
            end(mount)
            if end is end_by_signal:
                # The connection is closed: nobody waits any longer for a store that does not answer.
                for read in reads:
                    with pytest.raises(OSError):
                        read.result(PATIENCE)
            large.release("hold-get")
        mount.wait()
    assert large.stored(3 * BLOCK, BLOCK) == content(77)
    large.wait_for_nothing()


def test_a_resize_while_a_read_waits_for_the_store_holds_up_nobody_and_no_end(large: Workbench) -> None:
    with large.mounted() as mount:
        reader = os.open(mount.file, os.O_RDONLY)
        with ThreadPoolExecutor(2) as pool, large.turned("hold-get"):
            # Not past the kernel's cache, which has pages locked meanwhile.
            read = pool.submit(os.pread, reader, BLOCK, 1000 * BLOCK)
            wait_until(lambda: facts(large)["lane_waiting"] >= 1, "a read waits")
            resize = pool.submit(call, large.ident, "resize", {"size": 2 * MANY * BLOCK})
            wait_until(lambda: facts(large)["size"] == 2 * MANY * BLOCK, "the volume is larger")
            time.sleep(0.5)
            subprocess.run(["ls", str(mount.mountpoint / "nothing")], check=False, capture_output=True, timeout=10)
            end_by_signal(mount)
            with pytest.raises(OSError):
                read.result(PATIENCE)
            with contextlib.suppress(S3backerError):
                resize.result(PATIENCE)
            large.release("hold-get")
        mount.wait()
        with contextlib.suppress(OSError):
            os.close(reader)
    large.wait_for_nothing()
