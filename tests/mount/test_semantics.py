"""What applications see: the file answers what a block device would, the directory is fixed."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import PATIENCE, Mounted, filesystem, loop_device, needs_mounts
from tests.support.tools import run
from tests.support.workbench import BLOCK, SIZE, Workbench, without_lane

pytestmark = needs_mounts

NOBODY = 65534


@pytest.fixture(scope="module", params=[True, False], ids=["lane", "llfuse"])
def fast_lane(request: pytest.FixtureRequest) -> bool:
    """Return the same as for other modules, for a mount that lasts."""
    return bool(request.param)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, fast_lane: bool) -> Iterator[Mounted]:
    """Return a mounted volume that many tests use."""
    bench = Workbench(tmp_path_factory.mktemp("lasting"))
    bench.fast_lane = fast_lane
    bench.create()
    try:
        with bench.mounted() as mount:
            yield mount
    finally:
        bench.close()


@pytest.fixture
def disk(lasting: Mounted) -> Mounted:
    """Return a mounted volume of zeros, with the attributes of a new mount and everything stored."""
    os.chmod(lasting.file, 0o600)
    os.chown(lasting.file, os.getuid(), os.getgid())
    with lasting.file.open("r+b") as file:
        file.write(bytes(SIZE))
    return lasting


@pytest.fixture
def descriptor(disk: Mounted) -> Iterator[int]:
    """Return the open file of a mounted volume."""
    number = os.open(disk.file, os.O_RDWR)
    yield number
    os.close(number)


def refused(code: int, action: Callable[[], object]) -> None:
    """See an action fail with this errno."""
    with pytest.raises(OSError) as caught:
        action()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


# ── the ends of the disk ─────────────────────────────────────────────────────────────────────────────────────


def test_reading_at_and_after_the_end_gives_nothing(descriptor: int) -> None:
    assert os.pread(descriptor, 10, SIZE - 10) == bytes(10)
    for offset in (SIZE, SIZE + 1, SIZE + BLOCK, 1 << 40):
        assert os.pread(descriptor, 10, offset) == b""


def test_reading_over_the_end_is_short(descriptor: int) -> None:
    assert os.pwrite(descriptor, b"the end", SIZE - 7) == 7
    assert os.pread(descriptor, 3 * BLOCK, SIZE - 7) == b"the end"


def test_writing_at_and_after_the_end_has_no_space(descriptor: int) -> None:
    for offset in (SIZE, SIZE + 1, SIZE + BLOCK, 1 << 40):
        refused(errno.ENOSPC, lambda offset=offset: os.pwrite(descriptor, b"x", offset))  # type: ignore[misc]
    assert os.fstat(descriptor).st_size == SIZE


@pytest.mark.parametrize("fitting", [1, 100, BLOCK, BLOCK + 1])
def test_writing_over_the_end_is_short(descriptor: int, fitting: int) -> None:
    data = random.Random(fitting).randbytes(fitting + 2 * BLOCK)
    assert os.pwrite(descriptor, data, SIZE - fitting) == fitting
    assert os.pread(descriptor, len(data), SIZE - fitting) == data[:fitting]
    assert os.fstat(descriptor).st_size == SIZE


def test_appending_has_no_space(disk: Mounted) -> None:
    descriptor = os.open(disk.file, os.O_WRONLY | os.O_APPEND)
    try:
        refused(errno.ENOSPC, lambda: os.write(descriptor, b"x"))
    finally:
        os.close(descriptor)


# ── its size cannot be changed from here ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1, 2 * SIZE])
def test_ftruncate_to_another_size_is_invalid(descriptor: int, size: int) -> None:
    os.pwrite(descriptor, b"kept", 0)
    refused(errno.EINVAL, lambda: os.ftruncate(descriptor, size))
    assert os.fstat(descriptor).st_size == SIZE
    assert os.pread(descriptor, 4, 0) == b"kept"


def test_ftruncate_to_the_same_size_succeeds(descriptor: int) -> None:
    os.ftruncate(descriptor, SIZE)


@pytest.mark.parametrize("size", [0, SIZE])
def test_truncate_to_nothing_or_the_same_size_has_no_effect(disk: Mounted, descriptor: int, size: int) -> None:
    os.pwrite(descriptor, b"kept", 5000)
    os.truncate(disk.file, size)
    assert os.stat(disk.file).st_size == SIZE
    assert os.pread(descriptor, 4, 5000) == b"kept"


def test_truncate_to_another_size_is_invalid(disk: Mounted) -> None:
    for size in (1, SIZE // 2, SIZE + BLOCK):
        refused(errno.EINVAL, lambda size=size: os.truncate(disk.file, size))  # type: ignore[misc]
    assert os.stat(disk.file).st_size == SIZE


def test_opening_with_truncation_has_no_effect(disk: Mounted) -> None:
    with disk.file.open("r+b") as file:
        file.write(b"kept")
    # What a shell does for "dd of=..." or "> file".
    with disk.file.open("wb") as file:
        assert os.fstat(file.fileno()).st_size == SIZE
        file.seek(4)
        file.write(b" and more")
    assert disk.file.read_bytes() == b"kept and more".ljust(SIZE, b"\0")


# ── names and attributes ─────────────────────────────────────────────────────────────────────────────────────


def test_attributes_of_the_file(disk: Mounted) -> None:
    status = os.stat(disk.file)
    assert (status.st_size, status.st_blocks, status.st_blksize) == (SIZE, SIZE // 512, BLOCK)
    assert status.st_mode == stat.S_IFREG | 0o600
    assert (status.st_uid, status.st_gid, status.st_nlink) == (os.getuid(), os.getgid(), 1)
    assert stat.S_ISDIR(os.stat(disk.mountpoint).st_mode)


def test_writing_changes_the_times_and_reading_does_not(disk: Mounted, descriptor: int) -> None:
    before = os.stat(disk.file).st_mtime_ns
    os.pread(descriptor, 10, 0)
    assert os.stat(disk.file).st_mtime_ns == before
    os.pwrite(descriptor, b"x", 0)
    assert os.stat(disk.file).st_mtime_ns > before


def test_mode_and_owner_can_be_changed(disk: Mounted) -> None:
    os.chmod(disk.file, 0o640)
    os.chown(disk.file, NOBODY, NOBODY)
    os.utime(disk.file, ns=(1, 2))
    status = os.stat(disk.file)
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, NOBODY, NOBODY)
    assert (status.st_atime_ns, status.st_mtime_ns) == (1, 2)


def test_the_directory_has_two_names(disk: Mounted) -> None:
    assert sorted(os.listdir(disk.mountpoint)) == ["file", "stats"]
    kinds = {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(disk.mountpoint)}
    assert kinds == {"file": True, "stats": True}
    refused(errno.ENOENT, lambda: os.stat(disk.mountpoint / "other"))


def test_other_names_modes_and_no_stats(volume: Workbench) -> None:
    request = {"file_name": "disk ümlaut", "file_mode": 0o644, "stats_name": None}
    with volume.mounted(request=request) as mount:
        assert os.listdir(mount.mountpoint) == ["disk ümlaut"]
        assert stat.S_IMODE(os.stat(mount.mountpoint / "disk ümlaut").st_mode) == 0o644


def test_nothing_can_be_made_moved_or_removed(disk: Mounted, tmp_path: Path) -> None:
    directory, file = disk.mountpoint, disk.file
    new = directory / "new"
    actions: list[Callable[[], object]] = [
        lambda: os.open(new, os.O_CREAT | os.O_WRONLY),
        lambda: os.mkdir(new),
        lambda: os.mkfifo(new),
        lambda: os.symlink("file", new),
        lambda: os.link(file, new),
        lambda: os.rename(file, new),
        lambda: os.rename(directory / "stats", file),
        lambda: os.unlink(file),
    ]
    for action in actions:
        refused(errno.EPERM, action)
    refused(errno.EEXIST, lambda: os.mkdir(file))
    refused(errno.EEXIST, lambda: os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    refused(errno.ENOTDIR, lambda: os.rmdir(file))
    refused(errno.ENOTDIR, lambda: os.listdir(file))
    refused(errno.EINVAL, lambda: os.readlink(file))
    refused(errno.EXDEV, lambda: os.rename(file, tmp_path / "elsewhere"))
    assert sorted(os.listdir(directory)) == ["file", "stats"]


def test_statvfs_shows_a_full_disk_of_the_volumes_size(disk: Mounted) -> None:
    facts = os.statvfs(disk.mountpoint)
    assert facts.f_frsize * facts.f_blocks == SIZE
    assert facts.f_bavail == 0


# ── the statistics ───────────────────────────────────────────────────────────────────────────────────────────


def test_stats_are_text_of_the_size_that_is_shown(disk: Mounted) -> None:
    with disk.stats.open("rb") as file:
        text = file.read()
        assert os.fstat(file.fileno()).st_size == len(text)
    assert b"http_gets" in text
    assert stat.S_IMODE(os.stat(disk.stats).st_mode) == 0o444
    refused(errno.EACCES, lambda: os.open(disk.stats, os.O_WRONLY))
    refused(errno.EPERM, lambda: os.chmod(disk.stats, 0o600))
    refused(errno.EPERM, lambda: os.truncate(disk.stats, 0))


def test_removing_the_stats_file_makes_it_count_from_zero(disk: Mounted, descriptor: int) -> None:
    def counts() -> dict[str, str]:
        return dict(line.split(maxsplit=1) for line in disk.stats.read_text().splitlines())

    os.pwrite(descriptor, b"x" * BLOCK, BLOCK)
    os.fsync(descriptor)
    before = counts()
    assert (before["http_puts"], before["http_normal_blocks_written"]) != ("0", "0")
    with disk.stats.open() as kept:
        os.unlink(disk.stats)
        after = counts()
        assert (after["http_puts"], after["http_normal_blocks_written"], after["block_cache_write_misses"]) == (
            "0",
        ) * 3
        assert after["http_avg_put_time"] == "0.000 sec"
        # What is, and not what was counted, stays; so does what was opened before.
        assert after["block_cache_current_size"] == before["block_cache_current_size"] != "0 blocks"
        assert kept.read() != disk.stats.read_text()
    os.pwrite(descriptor, b"y" * BLOCK, BLOCK)
    os.fsync(descriptor)
    assert counts()["http_puts"] == "1"
    assert sorted(os.listdir(disk.mountpoint)) == ["file", "stats"]


@without_lane
def test_stats_are_fresh_at_each_open_and_steady_in_one(bench: Workbench) -> None:
    with bench.mounted(fake=True) as mount, mount.stats.open("rb") as kept:
        # The fake counts its calls into every line, so a text of two moments would show.
        first = kept.read()
        counts = {first.split()[-1]}
        for _ in range(20):
            text = mount.stats.read_bytes()
            numbers = {line.split()[-1] for line in text.splitlines()}
            assert len(numbers) == 1
            assert not numbers & counts
            counts |= numbers
        kept.seek(0)
        assert kept.read() == first


# ── content ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_any_pread_and_pwrite_agrees_with_an_array(volume: Workbench, seed: int) -> None:
    source = random.Random(seed)
    oracle = bytearray(SIZE)
    # A budget of a few blocks, so that most reads and writes meet a full cache.
    with volume.mounted(volume={"memory": 40 * BLOCK, "threads": 4, "write_delay": 0.01}) as mount:
        descriptor = os.open(mount.file, os.O_RDWR)
        try:
            for step in range(400):
                offset = source.randrange(SIZE + 100)
                length = source.choice((1, 7, 512, BLOCK - 1, BLOCK, source.randrange(1, 5 * BLOCK)))
                where = f"seed {seed}, step {step}, offset {offset}, length {length}"
                if offset < SIZE and source.random() < 0.5:
                    data = bytes(length) if source.random() < 0.2 else source.randbytes(length)
                    taken = os.pwrite(descriptor, data, offset)
                    assert taken == min(length, SIZE - offset), where
                    oracle[offset : offset + taken] = data[:taken]
                else:
                    if source.random() < 0.3:
                        # Without this most reads would be answered by the kernel's pages.
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    assert os.pread(descriptor, length, offset) == oracle[offset : offset + length], where
        finally:
            os.close(descriptor)
        assert mount.file.read_bytes() == oracle
    assert volume.stored(0, SIZE) == oracle


def test_ext4_on_a_loop_device_with_direct_io(bench: Workbench, tmp_path: Path) -> None:
    bench.create(size=64 << 20, block_size=128 << 10)
    source = random.Random(5)
    tree = {f"{n}.bin": source.randbytes(source.randrange(200_000)) for n in range(40)}
    tree["big.bin"] = source.randbytes(9_000_001)
    place = tmp_path / "ext4"

    def compare() -> None:
        assert {name: (place / name).read_bytes() for name in tree} == tree

    with bench.mounted() as mount:
        with loop_device(mount.file) as device:
            assert Path("/sys/block", Path(device).name, "loop/dio").read_text().strip() == "1"
            run("mkfs.ext4", "-q", device)
            with filesystem(device, place):
                for name, content in tree.items():
                    (place / name).write_bytes(content)
            with filesystem(device, place):
                compare()
        mount.umount()
        mount.wait()
    with bench.mounted() as mount, loop_device(mount.file) as device, filesystem(device, place, "-o", "ro"):
        compare()


# ── who may do what ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_read_only_mount(volume: Workbench) -> None:
    with volume.mounted() as mount, mount.file.open("r+b") as file:
        file.write(b"content")
    before = volume.tree()
    with volume.mounted(volume={"read_only": True}) as mount:
        assert volume.tree() == before
        assert stat.S_IMODE(os.stat(mount.file).st_mode) == 0o400
        with mount.file.open("rb") as file:
            assert file.read(7) == b"content"
        refused(errno.EROFS, lambda: os.open(mount.file, os.O_RDWR))
        refused(errno.EROFS, lambda: os.truncate(mount.file, 0))
        assert b"http_gets" in mount.stats.read_bytes()
    assert volume.tree() == before


AS_NOBODY = """
import os, sys
os.setgid(65534); os.setuid(65534)
print(os.listdir(sys.argv[1]))
for name, flags in (("stats", os.O_RDONLY), ("file", os.O_RDONLY), ("file", os.O_WRONLY), ("new", os.O_CREAT)):
    try:
        number = os.open(os.path.join(sys.argv[1], name), flags)
        print(name, "opened", len(os.read(number, 1 << 21)) if flags == os.O_RDONLY else "")
    except OSError as error:
        print(name, os.strerror(error.errno))
"""


def as_nobody(mount: Mounted) -> list[str]:
    # Nobody may not pass the directories above; an inherited directory is enough.
    directory = os.open(mount.mountpoint, os.O_RDONLY)
    try:
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, f"/proc/self/fd/{directory}"],
            pass_fds=[directory],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
    finally:
        os.close(directory)
    return done.stdout.splitlines()


def test_others_see_the_mount_of_root_and_its_modes_bind_them(volume: Workbench) -> None:
    with volume.mounted() as mount:
        names, stats, *others = as_nobody(mount)
        assert "file" in names and stats.startswith("stats opened ") and stats != "stats opened 0"
        assert others == ["file Permission denied", "file Permission denied", "new Permission denied"]
        os.chmod(mount.file, 0o644)
        assert as_nobody(mount)[2:4] == [f"file opened {SIZE}", "file Permission denied"]
