"""What keeps the oldest file, or the map, and cannot be stored: it is carried, and everybody else goes on."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3backer import _fast
from s3backer._journal import JOURNAL_BUSY, JOURNAL_FULL
from s3backer.errors import JournalDamaged
from s3backer.journal.system import System
from tests.support.journals import BLOCK, BLOCKS, SmallJournal
from tests.support.power_loss import Calls


class Clock:
    """Goes on when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield Clock()


class FullDisk(System):
    """A disk with room for so many files."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def create(self, name: str, directory: int) -> int:
        if sum(there.endswith(".journal") for there in os.listdir(directory)) >= self.limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(name, directory)


class Case:
    """A journal of which some blocks are never stored. ``content``: what those hold."""

    def __init__(self, small: SmallJournal, clock: Clock, stuck: int) -> None:
        self.small, self.clock = small, clock
        self.stuck = range(stuck)
        self.content = bytearray(BLOCKS * BLOCK)
        self.source = random.Random(stuck)

    def store(self) -> None:
        """Store all that can be, and let the keeper work."""
        for block in self.small.core.pending(BLOCKS):
            if block not in self.stuck:
                self.small.journal.done(block, self.small.slab.sequence, '"e"')
        for _ in range(self.small.core.most_files):
            self.clock.now += 1.5
            self.small.journal.carry()
            self.small.journal.prepare()

    def write(self, offset: int, data: bytes) -> bool:
        """Write, with all that may be needed for that; False if it is never possible."""
        for _ in range(4):
            count, reason = self.small.core.write(offset, data, 0.0)
            if reason == _fast.DONE:
                # As its keeper does, who is told when a file was begun.
                self.small.journal.prepare()
                assert count == len(data)
                self.content[offset : offset + len(data)] = data
                return True
            if reason == JOURNAL_FULL:
                self.store()
            self.small.journal.prepare()
        return False

    def fill(self, length: int = 170) -> None:
        """Write, in no time, until all that the oldest file has is more than can be carried at once.

        What is needed of a block lies in ten ranges.
        """
        reason = _fast.DONE
        while reason != JOURNAL_FULL:
            offset = self.source.randrange(BLOCKS) * BLOCK + self.source.randrange(10) * ((BLOCK - length) // 9)
            reason = self.small.core.write(offset, bytes([7]) * length, 0.0)[1]
            if reason == _fast.DONE:
                self.content[offset : offset + length] = bytes([7]) * length
            self.small.journal.prepare()

    def go_on(self, turns: int = 400) -> None:
        """Write to blocks that are stored, and see that this is possible and that nothing of the others is lost."""
        for turn in range(turns):
            block = self.source.randrange(len(self.stuck), BLOCKS)
            assert self.write(block * BLOCK, self.source.randbytes(BLOCK)), f"after {turn} writes nothing goes on"
        for block in self.stuck:
            out = bytearray(BLOCK)
            self.small.core.load(block, out)
            assert out == self.content[block * BLOCK : (block + 1) * BLOCK]


def test_a_block_that_is_written_again_and_again(tmp_path: Path, clock: Clock) -> None:
    with SmallJournal(tmp_path / "j", files=8, capacity=4000, monotonic=clock) as small:
        case = Case(small, clock, 1)
        for turn in range(3000):
            assert case.write(64 * (turn % 8), bytes([1 + turn % 250]) * 64), f"after {turn} writes nothing goes on"
        case.go_on()


@pytest.mark.parametrize(
    ("files", "stuck"), [(4, 1), (4, 8), (4, 12), *((files, n) for files in (8, 16) for n in (1, 8, 12, 14, 17, 20))]
)
def test_blocks_of_any_density(tmp_path: Path, clock: Clock, files: int, stuck: int) -> None:
    """Also where what is needed comes together in one file."""
    with SmallJournal(tmp_path / "j", files=files, capacity=4000, monotonic=clock) as small:
        case = Case(small, clock, stuck)
        for block in range(stuck):
            assert case.write(block * BLOCK, case.source.randbytes(BLOCK - 64))
            if files > 4:
                for _ in range(5):
                    other = case.source.randrange(stuck, BLOCKS)
                    assert case.write(other * BLOCK, case.source.randbytes(BLOCK))
        case.go_on()


@pytest.mark.parametrize("capacity", [1024, 1100])
def test_a_map_that_one_block_has_filled(tmp_path: Path, clock: Clock, capacity: int) -> None:
    """Within one file: nothing of it can be given back."""
    with SmallJournal(tmp_path / "j", file_bytes=1 << 20, capacity=capacity, monotonic=clock) as small:
        case = Case(small, clock, 1)
        for turn in range(3 * capacity):
            assert case.write(64 * (turn % 8), b"z" * 64), f"after {turn} writes nothing goes on"
        assert small.core.files == 1
        case.go_on(20)


@pytest.mark.parametrize("limit", [4, 6])
def test_a_disk_without_room_for_more_files(tmp_path: Path, clock: Clock, limit: int) -> None:
    with SmallJournal(tmp_path / "j", files=16, capacity=4000, monotonic=clock, system=FullDisk(limit)) as small:
        case = Case(small, clock, 3)
        for block in case.stuck:
            assert case.write(block * BLOCK, case.source.randbytes(1900))
        case.go_on()
        assert small.core.files <= limit


@pytest.mark.parametrize("limit", [2, 3])
@pytest.mark.parametrize("stuck", [1, 2])
@pytest.mark.parametrize("size", [100, 1000, 1900, BLOCK])
def test_a_disk_with_room_for_few_files(tmp_path: Path, clock: Clock, limit: int, stuck: int, size: int) -> None:
    """None of them is left to what is carried, but the end of the last one is."""
    with SmallJournal(tmp_path / "j", files=16, capacity=4000, monotonic=clock, system=FullDisk(limit)) as small:
        case = Case(small, clock, stuck)
        for block in case.stuck:
            assert case.write(block * BLOCK, case.source.randbytes(size))
        case.go_on()
        assert small.core.files <= limit


def test_nothing_is_carried_for_ever(tmp_path: Path, clock: Clock) -> None:
    """Where nothing is written any more, the disk has rest."""
    with SmallJournal(tmp_path / "j", files=8, capacity=4000, monotonic=clock) as small:
        case = Case(small, clock, 20)
        for turn in range(4 * 20):
            assert case.write(turn % 20 * BLOCK + 64 * (turn // 20), case.source.randbytes(64 + 16 * turn))
        for _ in range(100):
            case.store()
        number = small.core.number
        for _ in range(100):
            case.store()
        assert small.core.number == number


@pytest.mark.parametrize("spilled", [False, True])
def test_the_disk_loses_what_was_carried(tmp_path: Path, clock: Clock, spilled: bool) -> None:
    """Its fdatasync fails, and the page cache forgets it: where it stood before it still stands."""
    on_disk: dict[int, bytes] = {}
    failing = False

    def sync(fd: int) -> None:
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        on_disk[fd] = os.pread(fd, 1 << 20, 0)

    with SmallJournal(tmp_path / "j", files=8, capacity=4000, monotonic=clock) as small:
        calls = Calls(lambda fd, data, at: os.pwrite(fd, data, at), sync)
        calls.interpose(small.core)
        case = Case(small, clock, 1)
        assert case.write(0, b"A" * 1500)
        while small.core.fill < 0.6:
            assert case.write(BLOCK, case.source.randbytes(BLOCK))
        small.core.sync()
        assert not spilled or small.core.spill(0)
        for block in range(1, BLOCKS):
            small.core.stored(block, small.slab.sequence)
        failing = True
        small.journal.carry()
        clock.now += 1.5
        number = small.core.number
        with pytest.raises(Exception, match="cannot be synced"):
            small.journal.carry()
        assert small.core.number > number
        for fd, content in on_disk.items():
            os.pwrite(fd, content, 0)
        out = bytearray(BLOCK)
        small.core.load(0, out)
        assert out[:1500] == b"A" * 1500
        assert small.core.is_left(0) is spilled


def test_a_record_that_went_bad_is_not_carried(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with SmallJournal(tmp_path / "j", files=8, capacity=4000, monotonic=clock) as small:
        case = Case(small, clock, 2)
        assert case.write(0, b"A" * 1500) and case.write(BLOCK, b"B" * 1500)
        first = min((tmp_path / "j").glob("*.journal"))
        while small.core.fill < 0.6:
            assert case.write(2 * BLOCK, case.source.randbytes(BLOCK))
        content = first.read_bytes()
        first.write_bytes(content.replace(b"A" * 1500, b"?" * 1500))
        for _ in range(3):
            case.store()
        assert caplog.text.count("Writers may wait for that block") == 1
        with pytest.raises(JournalDamaged):
            small.core.load(0, bytearray(BLOCK))
        out = bytearray(BLOCK)
        small.core.load(1, out)
        assert out[:1500] == b"B" * 1500


def keep(small: SmallJournal, clock: Clock, seconds: int) -> None:
    """Do what its keeper does for so long."""
    for _ in range(5 * seconds):
        clock.now += 0.2
        small.journal.carry()
        if small.journal.wait(0.0):
            small.journal.prepare()


@pytest.mark.parametrize("seconds", [3, 60])
def test_a_disk_that_had_no_room_to_carry(tmp_path: Path, clock: Clock, seconds: int) -> None:
    """As where files are not written in place. However long that took, it is carried when there is room."""
    full = False

    def write(fd: int, data: bytes, position: int) -> int:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(fd, data, position)

    with SmallJournal(tmp_path / "j", files=8, capacity=4000, monotonic=clock) as small:
        Calls(write, lambda fd: None).interpose(small.core)
        case = Case(small, clock, 1)
        small.core.write(0, b"A" * 1500, 0.0)
        while small.core.write(BLOCK * case.source.randrange(1, BLOCKS), case.source.randbytes(BLOCK), 0.0)[1] in (
            _fast.DONE,
            JOURNAL_BUSY,
        ):
            small.journal.prepare()
        full = True
        for block in small.core.pending(BLOCKS):
            if block:
                small.journal.done(block, small.slab.sequence, '"e"')
        keep(small, clock, seconds)
        full = False
        keep(small, clock, 20)
        assert small.core.write(BLOCK, b"x" * BLOCK, 0.0) == (BLOCK, _fast.DONE)


@pytest.mark.parametrize("stuck", [1, 2, 3])
def test_a_writer_that_is_faster_than_the_keeper_finds_out_that_the_disk_is_full(
    tmp_path: Path, clock: Clock, stuck: int
) -> None:
    with SmallJournal(tmp_path / "j", files=16, capacity=4000, monotonic=clock, system=FullDisk(6)) as small:
        source = random.Random(1)
        for block in range(stuck):
            small.core.write(block * BLOCK, b"A" * 1900, 0.0)
        reason = _fast.DONE
        while reason != JOURNAL_FULL:
            offset = BLOCK * source.randrange(stuck, BLOCKS)
            reason = small.core.write(offset, source.randbytes(BLOCK), 0.0)[1]
            if reason == JOURNAL_BUSY:
                small.journal.prepare()
        for block in small.core.pending(BLOCKS):
            if block >= stuck:
                small.journal.done(block, small.slab.sequence, '"e"')
        keep(small, clock, 60)
        assert small.core.write(20 * BLOCK, b"x" * BLOCK, 0.0) == (BLOCK, _fast.DONE)
        for block in range(stuck):
            out = bytearray(BLOCK)
            small.core.load(block, out)
            assert out[:1900] == b"A" * 1900


def test_a_map_full_of_blocks_with_few_entries_each(tmp_path: Path, clock: Clock) -> None:
    """All in one file. Each is written anew with the few that it needs."""
    with SmallJournal(tmp_path / "j", file_bytes=1 << 20, capacity=1024, monotonic=clock) as small:
        number, reason = 0, _fast.DONE
        while reason == _fast.DONE:
            reason = small.core.write(number % 16 * BLOCK + 512 * (number // 16 % 2), b"z" * 512, 0.0)[1]
            number += 1
        assert reason == JOURNAL_FULL and small.core.entries > 900
        keep(small, clock, 20)
        assert small.core.entries < 100
        assert small.core.write(20 * BLOCK, b"x" * BLOCK, 0.0) == (BLOCK, _fast.DONE)


@pytest.mark.parametrize("files", [4, 5, 8])
def test_what_is_needed_is_counted_in_bytes(tmp_path: Path, clock: Clock, files: int) -> None:
    """Parts of sectors, of all blocks, in no time: all of it fits into one file, and is carried there."""
    with SmallJournal(tmp_path / "j", files=files, capacity=4000, monotonic=clock) as small:
        reason, turn = _fast.DONE, 0
        while reason != JOURNAL_FULL:
            turn += 1
            reason = small.core.write(turn % BLOCKS * BLOCK + turn % 2 * 1348, bytes([7]) * 700, 0.0)[1]
            small.journal.prepare()
        assert len(small.core.keepers()) == BLOCKS
        keep(small, clock, 5)
        assert small.core.write(0, b"x" * 1700, 0.0) == (1700, _fast.DONE)


@pytest.mark.parametrize("files", [4, 5, 8])
def test_a_small_journal_that_is_full_is_said(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, files: int
) -> None:
    """However little of a file stays empty because the next record does not fit."""
    said = 0
    for turn in range(10):
        caplog.clear()
        with SmallJournal(tmp_path / str(turn), files=files, capacity=4000, monotonic=clock) as small:
            case = Case(small, clock, BLOCKS)
            case.fill(160 + 3 * turn)
            keep(small, clock, 5)
            if small.core.write(0, b"x" * 1700, 0.0)[1] == JOURNAL_FULL:
                keep(small, clock, 5)
                assert caplog.text.count("is full: writers wait") == 1
                said += 1
    assert said


def test_after_an_outage_in_which_all_was_needed(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """It was full for long, and there was nothing to carry; then all but one block are stored, and nobody writes."""
    with SmallJournal(tmp_path / "j", files=8, capacity=4000, monotonic=clock) as small:
        case = Case(small, clock, BLOCKS)
        case.fill()
        for _ in range(10):
            case.store()
        assert caplog.text.count("is full: writers wait until some of the 24 blocks in it are stored") == 1
        case.stuck = range(1)
        case.store()
        case.go_on(50)
        # Another one is said as well. It begins with a file, so that all of the oldest one is needed.
        case.stuck = range(0)
        files = small.core.files
        while small.core.files == files:
            assert case.write(0, bytes([7]) * 700)
        case.store()
        case.stuck = range(BLOCKS)
        case.fill()
        for _ in range(10):
            case.store()
        assert caplog.text.count("is full: writers wait until some of the 24 blocks in it are stored") == 2


def test_the_same_sectors_of_many_blocks_again_and_again(tmp_path: Path, clock: Clock) -> None:
    """As filesystems write while nothing can be stored: all that is needed fits, also where no time goes by."""
    with SmallJournal(tmp_path / "j", files=8, capacity=4000, monotonic=clock) as small:
        case = Case(small, clock, BLOCKS)
        for turn in range(3000):
            sector = case.source.randrange(BLOCKS) * BLOCK
            assert case.write(sector, case.source.randbytes(512)), f"after {turn} writes nothing goes on"
        case.go_on(0)


@pytest.mark.parametrize("writes", [1, 20])
@pytest.mark.parametrize("limit", [4, 6])
def test_a_full_disk_that_is_asked_for_room_again(tmp_path: Path, clock: Clock, limit: int, writes: int) -> None:
    """Writers do not take the last file in the moment between."""

    with SmallJournal(tmp_path / "j", files=16, capacity=4000, monotonic=clock, system=FullDisk(limit)) as small:
        case = Case(small, clock, BLOCKS)
        reason = _fast.DONE
        while reason != JOURNAL_FULL:
            offset = case.source.randrange(BLOCKS) * BLOCK
            reason = small.core.write(offset, case.source.randbytes(1900), 0.0)[1]
            small.journal.prepare()
        for _ in range(10):
            clock.now += 10
            while small.journal.wait(0.0):
                for _ in range(writes):
                    small.core.write(case.source.randrange(BLOCKS) * BLOCK, bytes(1900), 0.0)
                small.journal.prepare()
        assert small.core.spares == 1
        for block in range(BLOCKS):
            out = bytearray(BLOCK)
            small.core.load(block, out)
            case.content[block * BLOCK : (block + 1) * BLOCK] = out
        case.stuck = range(1)
        case.store()
        case.go_on(50)


def test_notes_leave_room_to_carry(tmp_path: Path, clock: Clock) -> None:
    with SmallJournal(tmp_path / "j", files=8, capacity=4000, monotonic=clock) as small:
        case = Case(small, clock, 1)
        assert case.write(0, b"A" * 1500)
        while small.core.write(BLOCK, case.source.randbytes(BLOCK), 0.0)[1] != JOURNAL_FULL:
            small.journal.prepare()
        for _ in range(2000):
            small.journal.done(1, small.slab.sequence, '"e"')
        assert small.core.spares == 1
        case.store()
        case.go_on(50)


def test_more_ranges_than_the_map_has_room_for(tmp_path: Path, clock: Clock) -> None:
    """What is carried takes the place of what it was."""
    with SmallJournal(tmp_path / "j", file_bytes=1 << 20, capacity=1100, monotonic=clock) as small:
        case = Case(small, clock, 1)
        for turn in range(4000):
            assert case.write(turn * 16 % 1600, b"z" * 8), f"after {turn} writes nothing goes on"
        case.go_on(20)
