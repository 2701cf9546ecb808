"""A full disk, a disk that fails, calls that do only a part, and a process that is killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from s3backer import _fast
from s3backer._journal import JOURNAL_BUSY, JOURNAL_FAILED, JOURNAL_FULL
from s3backer.errors import JournalError
from s3backer.journal.files import System
from tests.support.journals import BLOCK, BLOCKS, SmallJournal, files_of, scan_path
from tests.support.power_loss import Calls


class Disk:
    """Does what it is told to: everything, a part, or nothing with an error."""

    def __init__(self, small: SmallJournal) -> None:
        # ``room``: bytes that are written before the error.
        self.write_error = self.sync_error = self.room = 0
        self.most = 1 << 30
        self.interrupted = 0
        self.writes = self.syncs = 0
        self.syncing, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.calls = Calls(self.write, self.sync)
        self.calls.interpose(small.core)

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


def test_short_and_interrupted_writes(tmp_path: Path) -> None:
    source = random.Random(1)
    with SmallJournal(tmp_path / "j") as small:
        disk = Disk(small)
        expected = []
        for most in (1, 63, 64, 65, 500, 4096, 5000):
            disk.most, disk.interrupted = most, 2
            data = source.randbytes(700)
            small.write(source.randrange(20) * BLOCK + 100, data)
            expected.append(data)
    _, writes = scan_path(tmp_path / "j")
    assert [data for _, data in writes] == expected


@pytest.mark.parametrize(("error", "after"), [(errno.EIO, 0), (errno.EIO, 100), (errno.ENOSPC, 100)])
def test_a_write_that_fails_is_the_end(tmp_path: Path, error: int, after: int) -> None:
    """If the disk has no room, then only after a part was written."""
    with SmallJournal(tmp_path / "j") as small:
        disk = Disk(small)
        small.write(0, b"a" * 512)
        small.core.sync()
        small.write(512, b"b" * 512)
        disk.write_error, disk.room = error, after
        assert small.core.write(1024, b"c" * 512, 0.0) == (0, JOURNAL_FAILED)
        disk.write_error = 0
        written, synced = disk.writes, disk.syncs
        # For good.
        assert small.core.write(0, b"d", 0.0) == (0, JOURNAL_FAILED)
        assert small.core.write_zeros(0, 512, 0.0) == (0, JOURNAL_FAILED)
        assert not small.journal.intend(0, 1, "", "")
        assert not small.journal.done(0, 1, "")
        for _ in range(2):
            with pytest.raises(JournalError) as caught:
                small.core.sync()
        assert os.strerror(error) in caught.value.message and "00000001 cannot be written" in caught.value.message
        assert caught.value.hint and caught.value.exit_code == 9
        assert (disk.writes, disk.syncs) == (written, synced)
        assert not small.journal.wait(60)
    _, writes = scan_path(tmp_path / "j")
    assert [data for _, data in writes] == [b"a" * 512, b"b" * 512]


@pytest.mark.parametrize("key", [None, b"a key"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_had_no_room_for_a_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: int, key: bytes | None
) -> None:
    """As where files are not written in place: it waits, whatever was to be written, and goes on as if it never was."""
    now = 0.0
    with SmallJournal(tmp_path / "j", key=key, monotonic=lambda: now) as small:
        disk = Disk(small)
        small.write(0, b"a" * BLOCK)
        small.journal.prepare()
        number, appended = small.core.number, files_of(tmp_path / "j")
        disk.write_error = error
        assert small.core.write(100, b"b" * 64, 0.0) == (0, JOURNAL_BUSY)
        assert small.core.write_zeros(BLOCK, BLOCK, 0.0) == (0, JOURNAL_BUSY)
        assert not small.journal.intend(0, 1, "", "") and not small.journal.done(1, 1, "")
        small.core.sync()
        assert (small.core.number, small.core.failure) == (number, None)
        assert files_of(tmp_path / "j") == appended
        # Nobody tries for ever without a pause.
        for _ in range(3):
            assert not small.journal.wait(0.0)
            now += 1
        now += 5
        assert small.journal.wait(0.0) and not small.journal.wait(0.0)
        assert caplog.text.count("has no room: writers wait") == 1
        assert small.core.write(100, b"c" * 64, 0.0) == (0, JOURNAL_BUSY)
        disk.write_error = 0
        while small.core.files < 3:
            small.write(100, b"d" * 64)
        small.journal.prepare()
        # A MARK that is to free a file is like the rest.
        disk.write_error = error
        small.core.stored(0, small.slab.sequence)
        small.journal.prepare()
        assert small.core.files == 3 and not small.journal.wait(0.0)
        disk.write_error, now = 0, now + 10
        assert small.journal.wait(0.0)
        small.journal.prepare()
        assert small.core.files == 1
        small.write(0, b"e" * BLOCK)
    _, writes = scan_path(tmp_path / "j", key=key)
    assert writes[-1][1] == b"e" * BLOCK
    assert {data for _, data in writes[:-1]} == {b"d" * 64}


def test_nothing_is_given_up_once_the_journal_has_failed(tmp_path: Path) -> None:
    """What is in the bucket may be older than all that is in the files, until everything is there."""
    with SmallJournal(tmp_path / "j") as small:
        disk = Disk(small)
        while small.core.files < 3:
            small.write(0, b"x" * BLOCK)
        small.core.sync()
        names = small.directory.numbers()
        disk.sync_error = errno.EIO
        small.write(0, b"y" * BLOCK)
        with pytest.raises(JournalError):
            small.core.sync()
        disk.sync_error = 0
        small.core.stored(0, small.slab.sequence)
        assert small.core.entries == 0
        with pytest.raises(JournalError, match="cannot be synced"):
            small.journal.prepare()
        assert small.core.take_freed() is None
        assert small.directory.numbers() == names


def test_a_sync_that_fails_is_the_end(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        disk = Disk(small)
        small.write(0, b"a" * 512)
        durable = small.core.sync()
        small.write(512, b"b" * 512)
        disk.sync_error = errno.EIO
        with pytest.raises(JournalError, match="00000001 cannot be synced: Input/output error"):
            small.core.sync()
        disk.sync_error, syncs = 0, disk.syncs
        # The kernel has marked the pages clean: a second fdatasync would succeed and mean nothing.
        with pytest.raises(JournalError):
            small.core.sync()
        assert disk.syncs == syncs
        assert small.core.durable == durable
        assert small.core.write(0, b"c", 0.0) == (0, JOURNAL_FAILED)


def test_those_who_wait_for_a_sync_that_fails(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        disk = Disk(small)
        small.write(0, b"a" * 512)
        disk.go_on.clear()
        disk.sync_error = errno.EIO
        failed = []

        def sync() -> None:
            with pytest.raises(JournalError):
                small.core.sync()
            failed.append(1)

        threads = [threading.Thread(target=sync) for _ in range(5)]
        threads[0].start()
        assert disk.syncing.wait(60)
        for thread in threads[1:]:
            thread.start()
        while small.core.waiting < 5:
            pass
        disk.go_on.set()
        for thread in threads:
            thread.join(60)
        assert len(failed) == 5 and small.core.waiting == 0 and disk.syncs == 1


def test_one_sync_serves_all_who_asked_before_it_began(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        disk = Disk(small)
        disk.go_on.clear()
        small.write(0, b"a" * 512)
        first = threading.Thread(target=small.core.sync)
        first.start()
        assert disk.syncing.wait(60)
        # They have written after it began, so they need the next one: one for all of them.
        results = []
        others = []
        for number in range(1, 9):
            small.write(number * 512, b"b" * 512)
            others.append(threading.Thread(target=lambda: results.append(small.core.sync())))
            others[-1].start()
        while small.core.waiting < 9:
            pass
        disk.go_on.set()
        for thread in [first, *others]:
            thread.join(60)
        assert disk.syncs == 2 == small.core.syncs
        assert results == [9] * 8
        # Nothing has been written since.
        assert small.core.sync() == 9
        assert disk.syncs == 2


def test_files_that_were_left_are_synced_too(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        synced: set[int] = set()
        calls = Calls(lambda fd, data, at: os.pwrite(fd, data, at), synced.add)
        calls.interpose(small.core)
        while small.core.files < 3:
            small.write(0, b"x" * BLOCK)
            small.journal.prepare()
        small.core.sync()
        assert len(synced) == 3
        synced.clear()
        small.write(0, b"y")
        small.core.sync()
        assert len(synced) == 1


def test_a_full_journal(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j", files=3) as small:
        reasons = set()
        for turn in range(200):
            _, reason = small.core.write(turn % BLOCKS * BLOCK, b"x" * BLOCK, 0.0)
            if reason == JOURNAL_BUSY:
                small.journal.prepare()
            elif reason == JOURNAL_FULL:
                break
            else:
                reasons.add(reason)
        else:
            raise AssertionError("it is never full")
        assert reasons == {_fast.DONE}
        assert (small.core.files, small.core.spares) == (3, 0)
        assert small.core.fill > 0.9
        unchanged = small.slab.sequence
        # Nothing has changed, and there is room for notes.
        assert small.core.write(0, b"y" * BLOCK, 0.0) == (0, JOURNAL_FULL)
        assert small.slab.sequence == unchanged
        small.core.sync()
        for block in range(BLOCKS):
            assert small.journal.done(block, small.slab.sequence, '"e"')
        assert small.core.entries == 0
        small.journal.prepare()
        assert (small.core.files, small.core.spares) == (1, 2)
        assert small.core.write(0, b"y" * BLOCK, 0.0) == (BLOCK, _fast.DONE)
    recovered, writes = scan_path(tmp_path / "j")
    assert list(recovered.pending) == [0] and writes[-1][1] == b"y" * BLOCK


def test_a_full_journal_that_nobody_syncs(tmp_path: Path) -> None:
    """Once everything is in the bucket it has room again, and its keeper is told so."""
    with SmallJournal(tmp_path / "j", files=3) as small:
        for turn in range(500):
            _, reason = small.core.write(turn % BLOCKS * BLOCK, b"x" * BLOCK, 0.0)
            if reason == JOURNAL_FULL:
                assert not small.journal.wait(0.0)
                for block in range(BLOCKS):
                    small.core.stored(block, small.slab.sequence)
            if reason in (JOURNAL_FULL, JOURNAL_BUSY):
                assert small.journal.wait(0.0), f"it is stuck after {turn} writes"
                small.journal.prepare()
        assert small.core.syncs > 3


def test_the_keeper_is_woken(tmp_path: Path) -> None:
    """By a write that makes all that is left in a file needless."""
    woken: list[float] = []

    def wait() -> None:
        began = time.monotonic()
        assert small.core.wait_for_work(20.0, 0)
        woken.append(time.monotonic() - began)

    with SmallJournal(tmp_path / "j", files=3) as small:
        while small.core.files < 2:
            small.write(0, b"x" * 512)
        small.write(0, b"y" * BLOCK)
        small.core.sync()
        assert not small.core.wait_for_work(0.0, 0)
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.2)
        small.write(0, b"z" * 512)
        waiter.join()
        assert woken[0] < 10


def test_the_keeper_is_woken_by_the_last_reader_of_a_file(tmp_path: Path) -> None:
    for attempt in range(100):
        with SmallJournal(tmp_path / str(attempt), files=20, capacity=2000) as small:
            core = small.core
            for _ in range(1500):
                small.write(0, b"x" * 64)
            core.sync()
            reader = threading.Thread(target=core.load, args=(0, bytearray(BLOCK)))
            reader.start()
            while not core.loading and reader.is_alive():
                pass
            core.stored(0, small.slab.sequence)
            began = time.monotonic()
            reading = not core.wait_for_work(0.0, 0) and core.loading
            woken = core.wait_for_work(20.0, 0)
            reader.join()
            if reading:
                assert woken and time.monotonic() - began < 10
                return
    raise AssertionError("no reader was slow enough")


def test_a_full_map(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j", files=20, capacity=64) as small:
        for turn in range(64):
            small.write(turn % BLOCKS * BLOCK, b"x" * 512)
        assert small.core.fill == 1
        assert small.core.write(0, b"y", 0.0) == (0, JOURNAL_FULL)
        small.core.stored(0, small.slab.sequence)
        assert small.core.write(0, b"y", 0.0) == (1, _fast.DONE)


def test_a_block_that_is_rewritten_for_ever_needs_no_more_than_its_last_state(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j", files=3, capacity=64) as small:
        for turn in range(300):
            count, reason = small.core.write(BLOCK, bytes([1 + turn % 250]) * BLOCK, 0.0)
            if reason == JOURNAL_BUSY:
                small.journal.prepare()
                continue
            assert (count, reason) == (BLOCK, _fast.DONE)
            small.core.sync()
        assert small.core.entries <= 3


def test_what_is_durable_is_kept_until_a_newer_state_of_the_whole_block_is(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"a" * 512)
        small.core.sync()
        small.write(0, b"b" * BLOCK)
        small.write(0, b"c" * 512)
        assert small.core.entries == 3
        small.core.sync()
        small.write(0, b"d" * 512)
        # The first one has gone.
        assert small.core.entries == 3
        assert small.core.load(0, bytearray(BLOCK))[0] == [(0, BLOCK), (0, 512), (0, 512)]


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("failing", range(9))
def test_a_file_that_cannot_be_given_up_or_made_now(tmp_path: Path, failing: int, times: int) -> None:
    """It is tried again, nothing newer is made or given up before that, and what is left can always be read."""
    system = Failing()
    with SmallJournal(tmp_path / "j", files=4, system=system) as small:
        while small.core.files < 3:
            small.write(0, b"x" * BLOCK)
            small.journal.prepare()
        small.store_all()
        small.write(0, b"y" * BLOCK)
        small.core.sync()
        system.first, system.last = failing, failing + times - 1
        for _ in range(times + 1):
            with suppress(JournalError):
                small.journal.prepare()
        system.last = -1
        small.journal.prepare()
        assert small.core.files == 1
        assert [path.suffix for path in (tmp_path / "j").iterdir()].count(".journal") == 1 + small.core.spares
        # Until the files beside which it would have been left are gone.
        for turn in range(60):
            small.write(turn % 20 * BLOCK, b"z" * BLOCK)
        small.core.sync()
    recovered, writes = scan_path(tmp_path / "j")
    assert writes[-1][1] == b"z" * BLOCK and recovered.pending
    assert not [file for file in (tmp_path / "j").iterdir() if file.suffix == ".spare"]


class Failing(System):
    """Of all renames, removals and syncs those from ``first`` to ``last`` fail; a sync after it took effect."""

    first, last = 0, -1
    count = 0

    def _count(self) -> None:
        if self.last < 0:
            return
        self.count += 1
        if self.first < self.count <= self.last + 1:
            raise OSError(errno.EIO, "Input/output error")

    def rename(self, old: str, new: str, directory: int) -> None:
        self._count()
        super().rename(old, new, directory)

    def remove(self, name: str, directory: int) -> None:
        self._count()
        super().remove(name, directory)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self._count()


@pytest.fixture
def small_disk(tmp_path: Path):
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "s3backer-test", str(path)]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("needs root, to mount a tmpfs")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_without_room_for_another_file(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The journal goes on in what it has, then writers wait; what could not be made is gone."""
    with SmallJournal(small_disk / "j", files=20) as small:
        for turn in range(200):
            _, reason = small.core.write(turn % BLOCKS * BLOCK, b"x" * BLOCK, 0.0)
            if reason == JOURNAL_BUSY:
                small.journal.prepare()
            elif reason == JOURNAL_FULL:
                break
        assert reason == JOURNAL_FULL
        assert "no room for another file: No space left" in caplog.text
        assert small.core.failure is None
        assert sorted(os.listdir(small_disk / "j"))[-1] == "lock"
        small.store_all()
        small.journal.prepare()
        assert small.core.write(0, b"x" * BLOCK, 0.0) == (BLOCK, _fast.DONE)


def test_no_room_for_another_file_is_a_full_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Writers wait for blocks to be stored, nobody asks the disk all the time, and it goes on when there is room."""

    class Full(System):
        full, asked = False, 0

        def create(self, name: str, directory: int) -> int:
            self.asked += 1
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().create(name, directory)

    now, system = 0.0, Full()
    with SmallJournal(tmp_path / "j", files=20, system=system, monotonic=lambda: now) as small:
        system.full = True
        for turn in range(200):
            _, reason = small.core.write(turn % BLOCKS * BLOCK, b"x" * BLOCK, 0.0)
            if reason == JOURNAL_FULL:
                break
            if reason == JOURNAL_BUSY:
                assert small.journal.wait(0.0)
                small.journal.prepare()
        assert reason == JOURNAL_FULL and small.core.fill > 0.8
        asked = system.asked
        for _ in range(100):
            assert not small.journal.wait(0.0)
        small.store_all()
        assert small.journal.wait(0.0)
        small.journal.prepare()
        # What was freed is used again, and only that.
        assert small.core.spares and system.asked == asked
        assert small.core.write(0, b"x" * BLOCK, 0.0) == (BLOCK, _fast.DONE)
        for again in range(3):
            now += 10
            assert small.journal.wait(0.0)
            small.journal.prepare()
            assert not small.journal.wait(0.0)
            assert system.asked <= asked + again + 1
            while small.core.spares:
                small.core.write(0, b"x" * BLOCK, 0.0)
        assert caplog.text.count("no room for another file") == 1
        system.full, now = False, now + 10
        assert small.journal.wait(0.0)
        small.journal.prepare()
        assert small.core.spares == 2


_KILLED = """
import random, sys
from pathlib import Path
from tests.support.journals import BLOCK, BLOCKS, SmallJournal
small = SmallJournal(Path(sys.argv[1]), files=6)
source = random.Random(int(sys.argv[2]))
while True:
    length = source.choice((512, 700, BLOCK))
    offset = source.randrange(BLOCKS * BLOCK - 3 * BLOCK)
    small.write(offset, source.randbytes(length))
    sys.stdout.write(f"{small.slab.sequence}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_loses_nothing(tmp_path: Path, seed: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path / "j"), str(seed)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged > 400 + 100 * seed:
            process.send_signal(signal.SIGKILL)
            break
    acknowledged = max([acknowledged, *map(int, process.stdout.read().split("\n")[:-1])])
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL
    recovered, _ = scan_path(tmp_path / "j")
    assert recovered.last_sequence >= acknowledged
    with SmallJournal(tmp_path / "j", files=6) as small:
        assert small.slab.sequence >= acknowledged
        assert sorted(small.core.pending(BLOCKS)) == sorted(recovered.pending)
