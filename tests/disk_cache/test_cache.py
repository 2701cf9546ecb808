"""The thread, the disk and the room: what a disk cache does when the disk is slow, full, failing, gone or shared."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3backer import disk_cache
from s3backer._fast import slot_bytes
from s3backer.admin import create_volume
from s3backer.disk_cache import DiskCache, allowance, cache_directory, open_disk_cache
from s3backer.disk_cache_file import START, CopyFile
from s3backer.geometry import MIB, least_memory, plan_memory
from s3backer.layouts.copies import Copy
from s3backer.opening import VolumeOptions
from s3backer.stores.memory import MemoryStore
from s3backer.volume import Volume
from tests.support.mounts import wait_until

BLOCK = 4096
GIB = 1 << 30
#: Bytes beside what is counted: the header, and what the filesystem may need to find the pieces of the file.
OVERHEAD = START + 8192
PLACE = bytes(range(32))


class Disk(CopyFile):
    """A file whose filesystem says what a test says, and whose calls can be made to fail."""

    room: tuple[int, int] = (100 * GIB, 200 * GIB)

    def __init__(self, directory: Path, block_size: int = BLOCK) -> None:
        self.fail: dict[str, OSError] = {}
        super().__init__(str(directory), "cache", bytes(32), block_size)

    def _check(self, call: str) -> None:
        if call in self.fail:
            raise self.fail[call]

    def read(self, slot: int, size: int) -> bytes:
        self._check("read")
        return super().read(slot, size)

    def write(self, slot: int, block: int, head: bytes, body: bytes) -> None:
        self._check("write")
        super().write(slot, block, head, body)

    def space(self) -> tuple[int, int]:
        self._check("space")
        return self.room


Made = Callable[..., tuple[DiskCache, Disk]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Made]:
    caches: list[DiskCache] = []

    def made(size: int = MIB, queue_bytes: int = MIB, block_size: int = BLOCK) -> tuple[DiskCache, Disk]:
        while caches:
            caches.pop().close()
        disk = Disk(tmp_path / "disk", block_size)
        cache = DiskCache(disk, size=size, index_bytes=100_000, queue_bytes=queue_bytes)
        caches.append(cache)
        return cache, disk

    yield made
    for cache in caches:
        cache.close()


def copy(block: int, size: int = BLOCK) -> Copy:
    return Copy(f'"{block}"', random.Random(block).randbytes(size))


def fill(cache: DiskCache, blocks: range, size: int = BLOCK) -> None:
    for block in blocks:
        cache.keep(block, copy(block, size))
        cache.settle()


def there(cache: DiskCache, blocks: range, size: int = BLOCK) -> list[int]:
    """Return the blocks whose copies are found, all of which have to be right."""
    found = {block: cache.find(block) for block in blocks}
    assert all(found[block] in (None, copy(block, size)) for block in blocks)
    return [block for block in blocks if found[block] is not None]


# ── room ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("size", "used", "available", "total", "allowed"),
    [
        (20 * GIB, 0, 500 * GIB, 1000 * GIB, 20 * GIB),
        # A twentieth stays free, 10 GiB at most, 1 GiB at least, and never more than a quarter of all.
        (100 * GIB, 0, 60 * GIB, 100 * GIB, 55 * GIB),
        (100 * GIB, 0, 60 * GIB, 4000 * GIB, 50 * GIB),
        (100 * GIB, 0, 9 * GIB, 10 * GIB, 8 * GIB),
        (100 * GIB, 0, GIB, 2 * GIB, GIB // 2),
        # What it takes itself may stay.
        (20 * GIB, 3 * GIB, 6 * GIB, 100 * GIB, 4 * GIB),
        (20 * GIB, 3 * GIB, 4 * GIB, 100 * GIB, 2 * GIB),
        (20 * GIB, 3 * GIB, 0, 100 * GIB, 0),
    ],
)
def test_how_much_it_may_take(size: int, used: int, available: int, total: int, allowed: int) -> None:
    assert allowance(size, used, available, total) == allowed


def test_it_never_takes_more_than_it_may(make: Made) -> None:
    cache, _ = make(size=100_000)
    fill(cache, range(60))
    found = there(cache, range(60))
    assert 15 < len(found) < 25
    assert os.stat(cache.path).st_blocks * 512 <= 100_000 + OVERHEAD
    assert cache.facts()["copies"] == len(found)
    # Less the next time: what does not fit has to go, the rest stays.
    cache, _ = make(size=50_000)
    assert set(there(cache, range(60))) <= set(found)
    assert 8 <= len(there(cache, range(60))) <= 12
    assert os.stat(cache.path).st_blocks * 512 <= 50_000 + OVERHEAD


def test_it_shrinks_before_the_disk_is_full_and_grows_again(
    make: Made, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "_LOOK_SECONDS", 0.02)
    cache, disk = make(size=300_000)
    fill(cache, range(50))
    assert len(there(cache, range(50))) == 50
    size = os.stat(cache.path).st_size
    # Somebody else fills the disk, while nothing is written here. What is given back is available again.
    room = 10 * GIB - 150_000 + size
    monkeypatch.setattr(disk, "space", lambda: (room - os.stat(cache.path).st_size, 200 * GIB))
    wait_until(lambda: os.stat(cache.path).st_size < size - 140_000, "the file is shorter")
    left = there(cache, range(50))
    assert 5 < len(left) < 25
    room = 0
    wait_until(lambda: os.stat(cache.path).st_size == START, "the file is empty")
    fill(cache, range(50, 55))
    assert there(cache, range(60)) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is getting full" in caplog.text
    room = 100 * GIB
    wait_until(lambda: cache.facts()["limit"] == 300_000 - START, "it has looked")
    fill(cache, range(50))
    assert len(there(cache, range(50))) == 50
    assert cache.facts()["failure"] is None


def test_a_size_that_does_not_fit_is_said(make: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Disk.room, before = (10 * GIB + 100_000, 200 * GIB), Disk.room
    try:
        cache, _ = make(size=GIB)
    finally:
        Disk.room = before
    assert "takes only about 97.7 KiB of 1 GiB" in caplog.text
    fill(cache, range(60))
    assert 15 < len(there(cache, range(60))) < 25


def test_smaller_copies_take_less(make: Made) -> None:
    large = 128 << 10
    cache, _ = make(size=10 * large, block_size=large)
    fill(cache, range(100), 10_000)
    assert len(there(cache, range(100), 10_000)) == 100
    fill(cache, range(100), large)
    assert 6 <= len(there(cache, range(100), large)) <= 10
    assert os.stat(cache.path).st_blocks * 512 <= 10 * large + OVERHEAD
    fill(cache, range(100), 10_000)
    assert len(there(cache, range(100), 10_000)) >= 60


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_takes_no_more_makes_it_smaller(make: Made, code: int) -> None:
    """Though it says that it has room, as with a quota."""
    cache, disk = make(size=400_000)
    fill(cache, range(40))
    before = cache.facts()["used"]
    disk.fail["write"] = OSError(code, os.strerror(code))
    fill(cache, range(40, 42))
    assert int(str(cache.facts()["used"])) < int(str(before)) and cache.facts()["failure"] is None
    assert len(there(cache, range(40))) > 20
    del disk.fail["write"]
    fill(cache, range(50, 60))
    assert there(cache, range(50, 60))
    assert int(str(cache.facts()["used"])) < int(str(before))


# ── disks that fail ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", ["read", "write", "space"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_disk_that_fails_turns_it_off_and_is_said_once(
    make: Made, call: str, code: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "_LOOK_SECONDS", 0.02)
    cache, disk = make()
    fill(cache, range(10))
    disk.fail[call] = OSError(code, os.strerror(code))
    fill(cache, range(10, 12))
    cache.find(3)
    wait_until(lambda: cache.facts()["failure"] and caplog.records, "it is off and says so")
    assert there(cache, range(20)) == []
    fill(cache, range(10, 20))
    cache.drop(4)
    assert [record.getMessage() for record in caplog.records] == [
        f"the disk cache {cache.path} is off until the next mount: {os.strerror(code)}"
    ]
    cache, _ = make()
    assert set(there(cache, range(20))) >= set(range(10)), "what was kept is not lost"


def test_a_file_that_was_removed_turns_it_off(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "_LOOK_SECONDS", 0.02)
    cache, _ = make()
    fill(cache, range(10))
    os.unlink(cache.path)
    wait_until(lambda: cache.facts()["failure"], "it is off")
    assert there(cache, range(10)) == []


def test_a_slow_disk_delays_nobody(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, disk = make(queue_bytes=5 * BLOCK)
    begun, go = threading.Event(), threading.Event()
    write = disk.write

    def slow(*args: Any) -> None:
        begun.set()
        assert go.wait(60)
        write(*args)

    monkeypatch.setattr(disk, "write", slow)
    cache.keep(0, copy(0))
    assert begun.wait(60)
    for block in range(1, 20):
        cache.keep(block, copy(block))
    # One is being written, five wait, of the others none is kept; all that is there is found.
    assert there(cache, range(20)) == list(range(6))
    assert cache.counts.skipped == 14
    # What is replaced or dropped on its way never comes back.
    for block in (0, 1):
        cache.drop(block)
    cache.keep(2, copy(102))
    assert [cache.find(block) for block in (0, 1, 2)] == [None, None, copy(102)]
    go.set()
    cache.settle()
    assert [cache.find(block) for block in (0, 1, 2)] == [None, None, copy(102)]
    assert there(cache, range(3, 20)) == [3, 4, 5]


def test_what_waits_at_the_end_is_written(make: Made) -> None:
    cache, _ = make()
    for block in range(20):
        cache.keep(block, copy(block))
    cache, _ = make()
    assert there(cache, range(20)) == list(range(20))


def test_readers_and_writers_at_once(make: Made) -> None:
    """A slot that is read is not written: nothing that is found is torn, and nothing is taken for damaged."""
    cache, _ = make(size=60_000)
    stop = threading.Event()
    failures: list[object] = []

    def read(seed: int) -> None:
        source = random.Random(seed)
        while not stop.is_set():
            block = source.randrange(30)
            found = cache.find(block)
            if found not in (None, copy(block)):
                failures.append(found)
            if source.random() < 0.1:
                cache.drop(block)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for number in range(600):
        cache.keep(number * 7 % 30, copy(number * 7 % 30))
    stop.set()
    for thread in threads:
        thread.join()
    cache.settle()
    assert not failures and cache.counts.damaged == 0
    cache._index.check_invariants()


def test_a_damaged_copy_is_forgotten(make: Made, caplog: pytest.LogCaptureFixture) -> None:
    cache, disk = make()
    fill(cache, range(10))
    for slot, block, size in disk.entries():
        if block in (3, 4):
            data = disk.read(slot, size)
            disk.write(slot, block, data[:100], data[100:-1] + b"x")
    assert there(cache, range(10)) == [0, 1, 2, 5, 6, 7, 8, 9]
    assert there(cache, range(10)) == [0, 1, 2, 5, 6, 7, 8, 9]
    assert (cache.counts.damaged, cache.facts()["copies"]) == (2, 8)
    assert len(caplog.records) == 1, "a storm is one line"


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory() == Path("/elsewhere/s3backer")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cache_directory() == Path("/var/cache/s3backer")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_directory() == Path("/home/me/.cache/s3backer")


def open_it(directory: Path, **more: Any) -> DiskCache | None:
    options = {"size": MIB, "index_bytes": 100_000, "queue_bytes": MIB, **more}
    return open_disk_cache(PLACE, BLOCK, directory=str(directory), **options)


def test_without_it_the_volume_is_opened_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    create_volume(store, "", size=MIB, block_size=BLOCK)
    (tmp_path / "file").touch()
    options = VolumeOptions(memory=4 * MIB, threads=2, disk_cache=MIB, disk_cache_directory=str(tmp_path / "file"))
    with Volume.open(store, "", options) as volume:
        assert volume.read(0, 10) == bytes(10)
        assert volume.facts()["disk_cache"] is None
    assert "going on without a disk cache" in caplog.text and str(tmp_path / "file") in caplog.text


def test_a_second_mount_of_the_volume_goes_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = open_it(tmp_path)
    assert first is not None
    assert open_it(tmp_path) is None
    assert "in use by another process; going on without" in caplog.text
    first.close()
    second = open_it(tmp_path)
    assert second is not None
    second.close()


def test_too_little_memory_for_the_size_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_it(tmp_path, size=10 * MIB, index_bytes=10_000)
    assert cache is not None
    assert "give more memory for more" in caplog.text
    fill(cache, range(600))
    assert cache.facts()["copies"] == 400
    cache.close()


def test_the_log_says_that_a_file_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for block_size in (BLOCK, 2 * BLOCK):
        cache = open_disk_cache(
            PLACE, block_size, directory=str(tmp_path), size=MIB, index_bytes=100_000, queue_bytes=MIB
        )
        assert cache is not None
        cache.close()
    assert "begins anew: the volume has another block size now" in caplog.text


@pytest.mark.parametrize("block_size", [512, 4096, 128 << 10, 1 << 20])
@pytest.mark.parametrize("copies", [2, 4])
def test_its_memory_is_part_of_the_budget(block_size: int, copies: int) -> None:
    least = least_memory(block_size, copies, disk_cache=True)
    assert plan_memory(least, block_size, 64, copies=copies, disk_cache=True).slots >= 4
    memory = 256 * MIB
    without = plan_memory(memory, block_size, 16, copies=copies)
    plan = plan_memory(memory, block_size, 16, copies=copies, disk_cache=True)
    taken = (without.slots - plan.slots + 1) * slot_bytes(block_size)
    assert plan.disk_index + plan.disk_queue <= taken
    assert plan.disk_index == memory // 16


def test_the_volume_counts_and_shows_it(tmp_path: Path) -> None:
    store = MemoryStore()
    create_volume(store, "", size=MIB, block_size=BLOCK)
    options = VolumeOptions(memory=4 * MIB, threads=2, disk_cache=MIB, disk_cache_directory=str(tmp_path))
    with Volume.open(store, "", options) as volume:
        volume.write(0, b"x" * (8 * BLOCK))
        volume.flush()
    with Volume.open(store, "", options) as volume:
        before = store.counters.snapshot()["get"].bytes_received
        assert volume.read(0, 8 * BLOCK) == b"x" * (8 * BLOCK)
        assert store.counters.snapshot()["get"].bytes_received == before
        found = dict(line.split(maxsplit=1) for line in volume.stats_text().splitlines())
        assert (found["disk_cache_verified"], found["disk_cache_bytes_read"]) == ("8", str(8 * BLOCK))
        facts = volume.facts()["disk_cache"]
        assert isinstance(facts, dict)
        assert (facts["copies"], facts["size"], facts["failure"]) == (8, MIB, None)
        assert str(facts["path"]).startswith(f"{tmp_path}/")
        volume.reset_stats()
        assert "disk_cache_verified          0\n" in volume.stats_text()


def test_the_next_mount_finds_no_former_copy(make: Made) -> None:
    """Also where the one that counts lies before the place in which the former one was."""
    cache, _ = make()
    for block in (1, 2):
        cache.keep(block, Copy('"old"', b"old" * 100, "", {}))
    cache.settle()
    cache.drop(2)
    cache.drop(1)
    cache.keep(2, Copy('"new"', b"new" * 100, "", {}))
    cache.settle()
    cache, _ = make()
    assert cache.find(1) is None
    found = cache.find(2)
    assert found is not None and found.etag == '"new"'
