"""A disk that fails, calls that do only a part, who waits meanwhile, and a process that is killed."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from s3backer import _fast
from s3backer._journal import JOURNAL_BUSY, JOURNAL_FAILED, JOURNAL_FULL
from s3backer.errors import JournalError, JournalGone
from s3backer.journal.system import System
from tests.support.journals import BLOCK, BLOCKS, SmallJournal, being_read, scan_path
from tests.support.power_loss import Calls, FaultyDisk


def test_short_and_interrupted_writes(tmp_path: Path) -> None:
    source = random.Random(1)
    with SmallJournal(tmp_path / "j") as small:
        disk = FaultyDisk(small.core)
        expected = []
        for most in (1, 63, 64, 65, 500, 4096, 5000):
            disk.most, disk.interrupted = most, 2
            data = source.randbytes(700)
            small.write(source.randrange(20) * BLOCK + 100, data)
            expected.append(data)
    _, writes = scan_path(tmp_path / "j")
    assert [data for _, data in writes] == expected


@pytest.mark.parametrize(
    ("error", "after", "length", "key"),
    [
        (errno.EIO, 0, 512, None),
        (errno.EIO, 100, 512, None),
        # If the disk has no room, then only after a part of many or encrypted records was written.
        (errno.ENOSPC, 100, 2048, None),
        (errno.ENOSPC, 100, 512, b"a key"),
    ],
)
def test_a_write_that_fails_is_the_end(tmp_path: Path, error: int, after: int, length: int, key: bytes | None) -> None:
    with SmallJournal(tmp_path / "j", key=key) as small:
        disk = FaultyDisk(small.core)
        small.write(0, b"a" * 512)
        small.core.sync()
        small.write(512, b"b" * 512)
        disk.write_error, disk.room = error, after
        assert small.core.write(1024, b"c" * length, 0.0) == (0, JOURNAL_FAILED)
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
    _, writes = scan_path(tmp_path / "j", key=key)
    assert [data for _, data in writes] == [b"a" * 512, b"b" * 512]


def test_nothing_is_given_up_once_the_journal_has_failed(tmp_path: Path) -> None:
    """What is in the bucket may be older than all that is in the files, until everything is there."""
    with SmallJournal(tmp_path / "j") as small:
        disk = FaultyDisk(small.core)
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
        disk = FaultyDisk(small.core)
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
        disk = FaultyDisk(small.core)
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
        disk = FaultyDisk(small.core)
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
        with being_read(tmp_path / str(attempt)) as (core, join):
            began = time.monotonic()
            reading = not core.wait_for_work(0.0, 0) and core.loading
            woken = core.wait_for_work(20.0, 0)
            join()
            if reading:
                assert woken and time.monotonic() - began < 10
                return
    raise AssertionError("no reader was slow enough")


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("failing", range(9))
def test_a_file_that_cannot_be_given_up_or_made_now(tmp_path: Path, failing: int, times: int) -> None:
    """It is tried again, and what is left can always be read. What can be neither used again nor removed is the end."""
    system = Failing()
    with SmallJournal(tmp_path / "j", files=4, system=system) as small:
        while small.core.files < 3:
            small.write(0, b"x" * BLOCK)
            small.journal.prepare()
        small.store_all()
        small.write(0, b"y" * BLOCK)
        small.core.sync()
        system.first, system.last = failing, failing + times - 1
        with suppress(JournalError):
            small.journal.prepare()
        system.last = -1
        if small.core.failed:
            assert times > 1
        else:
            small.journal.prepare()
            assert small.core.files == 1
            assert [path.suffix for path in (tmp_path / "j").iterdir()].count(".journal") == 1 + small.core.spares
            # Until the files beside which it would have been left are gone.
            for turn in range(60):
                small.write(turn % 20 * BLOCK, b"z" * BLOCK)
            small.core.sync()
        last = b"y" if small.core.failed else b"z"
    recovered, writes = scan_path(tmp_path / "j")
    assert writes[-1][1] == last * BLOCK and recovered.pending
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


class Refusing(System):
    """Every change of the directory fails with ``error``, if there is one; so does writing a header, if it is full."""

    error = 0

    def _refuse(self) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def create(self, name: str, directory: int) -> int:
        self._refuse()
        return super().create(name, directory)

    def write(self, fd: int, data: bytes, position: int) -> None:
        if self.error == errno.ENOSPC:
            self._refuse()
        super().write(fd, data, position)

    def rename(self, old: str, new: str, directory: int) -> None:
        if self.error != errno.ENOSPC:
            self._refuse()
        super().rename(old, new, directory)

    def remove(self, name: str, directory: int) -> None:
        if self.error != errno.ENOSPC:
            self._refuse()
        super().remove(name, directory)


def write_until_refused(small: SmallJournal, now: list[float]) -> int:
    """Write, store and do what a keeper does, until nothing of that helps any more; return the last reason."""
    source, refused, reason = random.Random(1), 0, 0
    for _ in range(1000):
        offset = source.randrange(BLOCKS) * BLOCK
        _, reason = small.core.write(offset, source.randbytes(BLOCK), 0.0)
        refused = 0 if reason == _fast.DONE else refused + 1
        if refused == 20 or reason == JOURNAL_FAILED:
            return reason
        if reason == JOURNAL_FULL:
            small.store_all()
        now[0] += 0.3
        with suppress(JournalError):
            small.journal.carry()
            if small.journal.wait(0.0):
                small.journal.prepare()
    return reason


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENOENT, errno.ESTALE])
def test_a_directory_that_cannot_be_changed_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    """No file could ever be freed: the journal has failed, and nobody waits."""
    now, system = [0.0], Refusing()
    with SmallJournal(tmp_path / "j", files=8, system=system, monotonic=lambda: now[0]) as small:
        small.write(0, b"x" * BLOCK)
        system.error = error
        assert write_until_refused(small, now) == JOURNAL_FAILED
        failure = small.core.failure
        assert failure is not None and os.strerror(error) in failure.message and "mount again" in failure.hint
        with pytest.raises(JournalError, match=os.strerror(error)):
            small.core.sync()
    assert "no room" not in caplog.text + failure.message


def test_a_disk_that_is_full_for_headers_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on btrfs. The last two files are kept, and it goes on when there is room."""
    now, system = [0.0], Refusing()
    with SmallJournal(tmp_path / "j", files=8, system=system, monotonic=lambda: now[0]) as small:
        small.write(0, b"x" * BLOCK)
        system.error = errno.ENOSPC
        assert write_until_refused(small, now) == JOURNAL_BUSY
        assert small.core.failure is None and small.core.blocks == 0
        assert len([path for path in (tmp_path / "j").iterdir() if path.stat().st_size]) == 2
        # Nobody tries for ever without a pause.
        assert not small.journal.wait(0.0)
        system.error, now[0] = 0, now[0] + 10
        assert small.journal.wait(0.0)
        small.journal.prepare()
        assert small.core.files + small.core.spares > 2
        small.write(BLOCK, b"y" * BLOCK)
    assert "the 0 blocks" not in caplog.text and "cannot prepare a file: No space left" in caplog.text
    _, writes = scan_path(tmp_path / "j")
    assert writes[-1][1] == b"y" * BLOCK


class Stepwise(Refusing):
    """Of what use_again does the step of that number fails, before or after it took effect."""

    def __init__(self) -> None:
        self.failing, self.after, self.step = -1, False, 0

    def _fail(self, act: Callable[[], None]) -> None:
        self.step += 1
        failing = self.step - 1 == self.failing
        if not failing or self.after:
            act()
        if failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, fd: int, data: bytes, position: int) -> None:
        self._fail(lambda: System.write(self, fd, data, position))

    def sync(self, fd: int) -> None:
        self._fail(lambda: System.sync(self, fd))

    def rename(self, old: str, new: str, directory: int) -> None:
        self._fail(lambda: System.rename(self, old, new, directory))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("failing", range(6))
def test_the_last_file_but_one_is_used_again_wherever_that_stopped(tmp_path: Path, failing: int, after: bool) -> None:
    now, system = 0.0, Stepwise()
    with SmallJournal(tmp_path / "j", files=2, system=system, monotonic=lambda: now) as small:
        while small.core.files < 2:
            small.write(0, b"x" * BLOCK)
        small.store_all()
        small.write(BLOCK, b"y" * BLOCK)
        small.core.sync()
        system.failing, system.after, system.step = failing, after, 0
        small.journal.prepare()
        assert system.step == failing + 1 and (small.core.files, small.core.spares) == (1, 0)
        # Who comes now finds all that is needed.
        shutil.copytree(tmp_path / "j", tmp_path / "copy")
        assert scan_path(tmp_path / "copy")[1][-1][1] == b"y" * BLOCK
        system.failing, now = -1, 10.0
        assert small.journal.wait(0.0)
        small.journal.prepare()
        assert (small.core.files, small.core.spares) == (1, 1)
        for turn in range(60):
            small.write(turn % BLOCKS * BLOCK, b"z" * BLOCK)
        small.core.sync()
    _, writes = scan_path(tmp_path / "j")
    assert writes[-1][1] == b"z" * BLOCK
    assert not list((tmp_path / "j").glob("*.spare"))


@pytest.mark.parametrize("name", ["*", "00000001.journal", "00000002.journal"])
def test_files_that_somebody_has_removed_are_missed(tmp_path: Path, name: str) -> None:
    with SmallJournal(tmp_path / "j", files=8) as small:
        while small.core.files < 3:
            small.write(0, b"x" * BLOCK)
            small.journal.check()
        for path in (tmp_path / "j").glob(name):
            path.unlink()
        with pytest.raises(JournalGone, match="somebody has removed"):
            small.journal.check()
        assert small.core.write(0, b"y", 0.0) == (0, JOURNAL_FAILED)


def test_no_flush_says_yes_from_a_file_that_was_removed(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"x" * BLOCK)
        shutil.rmtree(tmp_path / "j")
        with pytest.raises(JournalError, match="00000001 cannot be found any more") as caught:
            small.core.sync()
        assert "Somebody has removed it" in caught.value.hint
        assert small.core.write(0, b"y", 0.0) == (0, JOURNAL_FAILED)
        # What the slab has let go of can still be read.
        out = bytearray(BLOCK)
        small.core.load(0, out)
        assert out == b"x" * BLOCK
        with pytest.raises(JournalGone, match=r"somebody has removed .*/lock"):
            small.journal.end(settled=True)
