"""The disk cache of a mounted volume, over restarts, other writers, damage and full disks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3backer.stores.directory import DirectoryStore
from tests.support.mounts import PATIENCE, Mounted, environment, mounted, needs_mounts, umount
from tests.support.workbench import BLOCK, Workbench, lane_first

pytestmark = needs_mounts

BLOCKS = 100
SIZE = 4 << 20


class Bench(Workbench):
    """A workbench whose mounts have a disk cache, of 2 MiB unless said otherwise."""

    cache: Path
    size = 2 << 20
    #: Enough for all that is written here to wait for the disk at once: nothing is left out.
    memory = 32 << 20

    def what(self, **more: object) -> dict[str, object]:
        volume = {"memory": self.memory, "threads": 4, "disk_cache": self.size, "disk_cache_directory": str(self.cache)}
        return super().what(volume=volume, **more)  # type: ignore[arg-type]


@pytest.fixture
def cached(bench: Workbench) -> Bench:
    bench.__class__ = Bench
    assert isinstance(bench, Bench)
    bench.cache = bench.directory / "cache"
    bench.create(size=SIZE)
    return bench


def text(block: int, letter: int = 65) -> bytes:
    return (b"%d-%d;" % (block, letter) * BLOCK)[:BLOCK]


WHOLE = b"".join(text(block) for block in range(BLOCKS))


def write(mount: Mounted) -> None:
    with mount.file.open("r+b") as file:
        file.write(WHOLE)
        file.flush()
        os.fsync(file.fileno())


def read(mount: Mounted) -> bytes:
    """Read with nothing in between that has it already."""
    descriptor = os.open(mount.file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(descriptor, len(WHOLE), 0)
    finally:
        os.close(descriptor)


def statistics(mount: Mounted) -> dict[str, int]:
    lines = [line.split() for line in mount.stats.read_text().splitlines()]
    return {name: int(value) for name, value, *_ in lines if value.isdecimal()}


def info(bench: Bench) -> str:
    command = [sys.executable, "-m", "s3backer", "info", f"file://{bench.bucket}"]
    done = subprocess.run(
        command, env=environment(bench.directory), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@lane_first
def test_after_a_restart_no_body_is_downloaded_again(cached: Bench) -> None:
    with cached.mounted() as mount:
        write(mount)
        mount.umount()
        mount.wait()
    [path] = cached.cache.iterdir()
    assert (cached.cache.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    with cached.mounted() as mount:
        before = statistics(mount)["http_bytes_received"]
        assert read(mount) == WHOLE
        found = statistics(mount)
        assert found["http_bytes_received"] - before < 2 * BLOCK
        assert found["disk_cache_verified"] >= BLOCKS - 2
        assert found["disk_cache_damaged"] == 0
        said = info(cached)
        assert f"of 2 MiB, {path}" in said and "disk cache" in said


@lane_first
def test_what_another_writer_changed_in_between_is_seen(cached: Bench) -> None:
    with cached.mounted() as mount:
        write(mount)
        mount.umount()
        mount.wait()
    store = DirectoryStore(cached.bucket)
    store.put(f"{7:08x}", text(7, 66), content_type="application/x-s3backer-block")
    store.delete(f"{9:08x}")
    with cached.mounted() as mount:
        found = read(mount)
        assert found[7 * BLOCK : 8 * BLOCK] == text(7, 66)
        assert found[9 * BLOCK : 10 * BLOCK] == bytes(BLOCK)
        assert found[10 * BLOCK :] == WHOLE[10 * BLOCK :]


@lane_first
def test_a_damaged_file_does_no_harm(cached: Bench) -> None:
    with cached.mounted() as mount:
        write(mount)
        mount.signal(9)
        umount(mount.mountpoint)
        mount.wait()
    cached.token.unlink()
    [path] = cached.cache.iterdir()
    data = bytearray(path.read_bytes())
    for place in range(70_000, len(data), 9000):
        data[place : place + 30] = os.urandom(30)
    path.write_bytes(data[:-2000])
    with cached.mounted() as mount:
        assert read(mount) == WHOLE
        assert statistics(mount)["disk_cache_damaged"] > 10
        assert read(mount) == WHOLE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a filesystem of 1 MiB, of which 256 KiB are to stay free."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", path], check=True, timeout=PATIENCE)
    try:
        yield path
    finally:
        umount(path)


def test_a_full_disk_stops_nothing(cached: Bench, small_disk: Path) -> None:
    cached.cache = small_disk / "cache"
    # So little that not all of the volume stays in memory.
    cached.memory = 512 << 10
    with cached.mounted() as mount:
        write(mount)
        assert read(mount) == WHOLE
        [path] = cached.cache.iterdir()
        assert path.stat().st_blocks * 512 > 40_000
        space = os.statvfs(small_disk)
        assert space.f_bavail * space.f_frsize >= 250_000
        # Somebody else takes all that is left.
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "other").write_bytes(bytes(2 << 20))
        with mount.file.open("r+b") as file:
            for block in range(BLOCKS):
                file.write(text(block, 66))
        assert read(mount) == b"".join(text(block, 66) for block in range(BLOCKS))
        mount.umount()
        mount.wait()
    # A disk that takes nothing at all, as far as one can be had.
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True, timeout=PATIENCE)
    with cached.mounted() as mount:
        assert read(mount) == b"".join(text(block, 66) for block in range(BLOCKS))


@lane_first
def test_a_second_mount_goes_without_and_says_so(cached: Bench) -> None:
    with cached.mounted() as mount:
        write(mount)
        (cached.directory / "second").mkdir()
        what = cached.what(mountpoint=str(cached.directory / "second"))
        what["volume"] = {**what["volume"], "read_only": True}  # type: ignore[dict-item]
        with mounted(what, cached.directory) as second:
            assert read(second) == WHOLE
            second.umount()
            assert second.process.stderr is not None
            assert "in use by another process; going on without a disk cache" in second.process.stderr.read()
