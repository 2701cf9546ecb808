"""A journal, a map and a disk that are full: who waits for what, and how it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from s3backer import _fast
from s3backer._journal import JOURNAL_BUSY, JOURNAL_FULL
from s3backer.cache_calls import WriteRequest
from s3backer.errors import JournalError, UsageError
from s3backer.journal.default import default_size
from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import PAGE, RECORD_BYTES
from s3backer.journal.marks import has_files
from s3backer.journal.service import file_bytes_for
from s3backer.journal.system import System
from s3backer.mount_request import MountRequest, with_default_journal
from s3backer.mountpoint import Mount
from s3backer.opening import VolumeOptions
from s3backer.stores.options import StoreOptions
from s3backer.url import VolumeURL
from tests.support.journal_twin import DATA, plain_scan
from tests.support.journals import BLOCK, BLOCKS, FILE, SmallJournal, files_of, scan_path
from tests.support.power_loss import FaultyDisk
from tests.support.slow_writer import Writer


@pytest.mark.parametrize("key", [None, b"a key"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_had_no_room_for_a_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: int, key: bytes | None
) -> None:
    """As where files are not written in place: it waits, whatever was to be written, and goes on as if it never was."""
    now = 0.0
    with SmallJournal(tmp_path / "j", key=key, monotonic=lambda: now) as small:
        disk = FaultyDisk(small.core)
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


@pytest.mark.parametrize("reached", range(1, 2300, 100))
def test_a_disk_that_had_room_for_a_part_of_a_record(tmp_path: Path, reached: int) -> None:
    """The next one gets its number and its place, whatever of it is there; so does a reader who comes before."""
    with SmallJournal(tmp_path / "j") as small:
        disk = FaultyDisk(small.core)
        small.write(0, b"a" * 100)
        disk.write_error, disk.room = errno.ENOSPC, reached
        # Its end is what stands there already.
        assert small.core.write(BLOCK, b"b" * 1000 + bytes(BLOCK - 1000), 0.0) == (0, JOURNAL_BUSY)
        disk.write_error = 0
        writes = scan_files(tmp_path / "j")
        assert writes in ([b"a" * 100], [b"a" * 100, b"b" * 1000 + bytes(BLOCK - 1000)])
        small.write(2 * BLOCK, b"c" * 100)
        assert scan_files(tmp_path / "j") == [b"a" * 100, b"c" * 100]
        small.write(0, b"d" * BLOCK)
        small.core.sync()
        small.write(0, b"e" * 8)
    assert scan_files(tmp_path / "j") == [b"a" * 100, b"c" * 100, b"d" * BLOCK, b"e" * 8]


class PatientDisk(FaultyDisk):
    """One that has no room, until it is asked too often: then it fails, so that nobody asks it for ever."""

    def write(self, fd: int, data: bytes, position: int) -> int:
        if self.writes >= 1000:
            self.write_error = errno.EIO
        return super().write(fd, data, position)


@pytest.mark.parametrize("synced", [False, True])
def test_a_part_of_a_record_is_not_taken_for_the_last_one_of_its_file(tmp_path: Path, synced: bool) -> None:
    """What is missing of it are zeros that stand there already; the next record does not fit behind it."""
    with SmallJournal(tmp_path / "j") as small:
        disk = FaultyDisk(small.core)
        small.journal.prepare()
        used, goal = PAGE + RECORD_BYTES, FILE - PAGE - 200
        while used < goal:
            length = min(512, goal - used - RECORD_BYTES)
            if goal - used - RECORD_BYTES - length in range(1, RECORD_BYTES + 8):
                length -= 128
            small.write(0, bytes([7]) * length)
            used += RECORD_BYTES + length
        assert used == goal and small.core.files == 1
        disk.write_error, disk.room = errno.ENOSPC, PAGE
        assert small.core.write(10 * BLOCK, b"x" * 100 + bytes(BLOCK - 100), 0.0) == (0, JOURNAL_BUSY)
        # Now there is room, and another writer comes first.
        disk.write_error = 0
        whole = b"y" * (2 * BLOCK)
        small.write(12 * BLOCK, whole)
        assert small.core.files == 2
        if synced:
            small.core.sync()
    _, writes = scan_path(tmp_path / "j")
    assert b"".join(data for _, data in writes if data is not None and data[:1] == b"y") == whole


@pytest.mark.parametrize("zeros", [True, False])
def test_what_the_disk_has_no_room_for_is_not_stored_again_and_again(tmp_path: Path, zeros: bool) -> None:
    """Its writer waits; what it has written is in memory only, due at once, and written again when it goes on."""
    writer = Writer(tmp_path / "journal", delay=0.0)
    assert writer.journal is not None
    writer.layout.survey(lambda: False)
    disk = PatientDisk(writer.journal.core)
    disk.write_error = errno.ENOSPC
    # Zeros where there is no object need no request at all.
    waiting = [WriteRequest(offset=n * BLOCK, data=bytes([not zeros]) * 512, length=512) for n in (7, 8)]
    for request in waiting:
        writer.cache.write(request, writer.now)
    writer.cache.admit(writer.now)
    writer.take()
    stored: list[int] = []
    while writer.now < 10.0:
        while writer.stores and len(stored) < 100:
            stored.append(writer.stores[0].block)
            writer.end(writer.stores[0])
        wake = writer.cache.next_wake(writer.now)
        assert wake is not None
        writer.tick(max(wake - writer.now, 0.01))
    assert len(stored) == 0 if zeros else 2 < len(stored) < 15
    assert disk.writes < 100
    # Without a word of whoever keeps the journal they go on within a second of when there is room.
    disk.write_error = 0
    writer.tick(1.0)
    assert [writer.answered(request) for request in waiting] == [[None], [None]]
    writer.close()


def test_who_waits_for_the_disk_goes_on_when_it_is_to_be_tried_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "journal")
    assert writer.journal is not None
    disk = FaultyDisk(writer.journal.core)
    disk.write_error = errno.ENOSPC
    waiting = [writer.begin(block) for block in range(3)]
    disk.write_error = 0
    writer.tick(0.0)
    assert not any(writer.answered(request) for request in waiting)
    assert writer.cache.writers == "wait for room on the journal's disk"
    writer.cache.try_disk()
    writer.tick(0.0)
    assert [writer.answered(request) for request in waiting] == [[None]] * 3
    assert writer.cache.writers == "go on"
    # The next one waits for nothing.
    assert writer.answered(writer.begin(3)) == [None]
    writer.close()


def scan_files(path: Path) -> list[bytes]:
    """The writes in a journal that may be in use."""
    return [record.data for record in plain_scan(files_of(path)) if record.kind == DATA]


def test_a_full_journal(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j", files=3) as small:
        assert small.fill() == {_fast.DONE}
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
        small.fill()
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
        assert small.core.spares == 3


def test_a_directory_of_somebody_else_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with sudo and a HOME that was kept, where root's mount finds the user's, or the other way round."""

    def refuse(path: object) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        assert not has_files(tmp_path)


def test_a_note_that_cannot_be_read(tmp_path: Path) -> None:
    with JournalDirectory(tmp_path / "j") as directory:
        assert directory.token is None
        directory.note_token(0x1234)
        assert directory.token == 0x1234
        for text in (b"", b"1234", b"00001234\n", b"000012345", b"0000123g"):
            (tmp_path / "j" / "token").write_bytes(text)
            assert directory.token is None
        directory.forget_token()
        (tmp_path / "j" / "token").mkdir()
        with pytest.raises(JournalError, match="cannot be read"):
            _ = directory.token


@pytest.mark.parametrize(
    ("block_size", "budget", "said", "hint"),
    [
        (
            4096,
            1000,
            "a journal of 1000 bytes is too small for blocks of 4KiB",
            "--journal 256KiB or more, or --journal none",
        ),
        (4096, 1 << 60, "a journal of 1EiB is too large", "--journal 124TiB or less"),
        (4096, 125 << 40, "a journal of 125TiB is too large", "--journal 124TiB or less"),
        (1 << 28, 1 << 30, "no journal goes with blocks of 256MiB, at most with blocks of 128MiB", "--journal none"),
    ],
)
def test_a_size_that_cannot_be(block_size: int, budget: int, said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"^{said}$") as caught:
        file_bytes_for(block_size, budget)
    assert hint in caught.value.hint


def test_the_largest_sizes() -> None:
    assert file_bytes_for(4096, 124 << 40) < 1 << 32
    assert file_bytes_for(1 << 27, 1 << 34) == 1 << 31


def test_no_journal_by_default_where_it_would_not_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in memory, and not in the layer of a container: what fsync has promised would be gone with it."""
    place = tmp_path / "not" / "there"
    device = os.stat(tmp_path).st_dev
    monkeypatch.setattr("s3backer.journal.default._LEAST_FREE", 0)
    for kind, lasts in (("ext4", True), ("xfs", True), ("tmpfs", False), ("overlay", False)):
        mount = Mount(1, f"{os.major(device)}:{os.minor(device)}", "/", kind, "disk")
        monkeypatch.setattr("s3backer.journal.default.read_mounts", lambda mount=mount: [mount])
        if lasts:
            assert default_size(place) == 256 << 20
        else:
            with pytest.raises(UsageError, match=f"^{tmp_path} is on {kind}, which does not last$"):
                default_size(place)


def test_no_journal_by_default_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "not" / "there"
    monkeypatch.setattr("s3backer.journal.default.read_mounts", list)
    monkeypatch.setattr("s3backer.journal.default._LEAST_FREE", 1 << 60)
    with pytest.raises(UsageError, match=f"^the disk of {tmp_path} has only .*iB free, less than 1 EiB$"):
        default_size(place)
    monkeypatch.setattr("s3backer.journal.default._LEAST_FREE", 0)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match=f"^{tmp_path} cannot be written to$"):
        default_size(place)

    (tmp_path / "file").touch()
    for file in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=f"^{tmp_path}/file is not a directory$"):
            default_size(file)

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.statvfs", refuse)
    with pytest.raises(UsageError, match=f"^{tmp_path} cannot be looked at: Permission denied$"):
        default_size(place)


def test_whether_there_is_one_where_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3backer.journal.default.read_mounts", list)
    monkeypatch.setattr("s3backer.journal.default._LEAST_FREE", 0)
    options = VolumeOptions(journal_directory=str(tmp_path / "disk"))
    url, mountpoint = VolumeURL.parse(f"file://{tmp_path}/bucket"), str(tmp_path / "mnt")
    request = MountRequest(url, mountpoint, StoreOptions(), options, default_journal=True)
    wanted = replace(request, volume_options=replace(options, journal=256 << 20))
    assert with_default_journal(request) == wanted
    for other, why in (
        (replace(request, default_journal=False), "none was asked for"),
        (replace(request, lazy_fsync=True), "fsync is lazy"),
    ):
        assert with_default_journal(other) == replace(other, no_journal=why)
    monkeypatch.setattr("s3backer.journal.default._LEAST_FREE", 1 << 60)
    without = with_default_journal(request)
    assert without.no_journal.startswith(f"the disk of {tmp_path} has only ") and not without.journal_missed
    # Who has named a directory for it is to hear that there is none.
    assert with_default_journal(request, named=True) == replace(without, journal_missed=True)
    assert not with_default_journal(replace(request, default_journal=False), named=True).journal_missed
