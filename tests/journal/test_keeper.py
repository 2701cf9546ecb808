"""Who keeps a journal going: ends whatever is under way, and answers everybody."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from s3backer import _fast
from s3backer._journal import JOURNAL_BUSY
from s3backer.cache_calls import Done
from s3backer.errors import JournalFull, S3backerError, StoreUnreachable
from s3backer.journal.files import JournalDirectory
from s3backer.journal.keeper import Keeper
from s3backer.layouts.stored_note import StoredNote
from s3backer.stores.memory import MemoryStore
from tests.support.journals import BLOCK, BLOCKS, SmallJournal
from tests.support.mounts import wait_until
from tests.support.power_loss import FaultyDisk

NOTE = StoredNote(MemoryStore(), "", bytes(16), "j")


def nothing() -> None:
    """Do nothing."""


def at_once(done: Done) -> None:
    """Flush into a bucket that has everything."""
    done(None)


def kept(
    small: SmallJournal, *, in_bucket: Callable[[Done], object] = at_once, admit: Callable[[], None] = nothing
) -> Keeper:
    """Return who keeps a journal."""
    return Keeper(small.journal, in_bucket=in_bucket, on_room=nothing, admit=admit, note=NOTE, disown=nothing)


def test_it_ends_while_a_failed_journal_is_being_given_up(tmp_path: Path) -> None:
    small = SmallJournal(tmp_path / "j")
    disk = FaultyDisk(small.core)
    asked, go_on = threading.Event(), threading.Event()

    def in_bucket(done: object) -> None:
        asked.set()
        go_on.wait(20)
        assert callable(done)
        done(None)

    keeper = kept(small, in_bucket=in_bucket)
    disk.sync_error = errno.EIO
    small.write(0, b"x")
    assert asked.wait(20)
    ending = threading.Thread(target=keeper.end, daemon=True)
    ending.start()
    ending.join(0.3)
    assert ending.is_alive()
    go_on.set()
    ending.join(20)
    assert not ending.is_alive()
    assert not small.directory.numbers()
    small.directory.close()


def test_an_answer_that_meets_a_defect_keeps_nobody_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = SmallJournal(tmp_path / "j")
    disk = FaultyDisk(small.core)
    keeper = kept(small)
    for error in (0, errno.EIO):
        disk.sync_error = error
        small.write(0, b"x")
        answers: list[S3backerError | None] = []

        def broken(error: S3backerError | None) -> None:
            raise RuntimeError("broken")

        disk.go_on.clear()
        keeper.begin(broken)
        keeper.begin(broken)
        keeper.begin(answers.append)
        disk.go_on.set()
        wait_until(lambda found=answers: found, "the last one is answered")
        assert answers == [None]
    assert "an answer met a defect" in caplog.text
    keeper.end()
    small.directory.close()


def test_a_defect_while_it_syncs_or_gives_up_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SmallJournal(tmp_path / "j")
    disk = FaultyDisk(small.core)
    keeper = kept(small)

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    def flush() -> S3backerError | None:
        answers: list[S3backerError | None] = []
        keeper.begin(answers.append)
        wait_until(lambda: answers, "the flush is answered")
        return answers[0]

    with monkeypatch.context() as patch:
        patch.setattr("s3backer.journal.keeper.reach", broken)
        assert "broken" in str(flush())
    with monkeypatch.context() as patch:
        patch.setattr(JournalDirectory, "remove_all", broken)
        disk.sync_error = errno.EIO
        small.write(0, b"x")
        assert "broken" in str(flush())
    # Then all is in the bucket, and the journal is nobody's.
    assert flush() is None
    keeper.end()
    assert not small.directory.numbers()
    small.directory.close()


def test_nobody_waits_for_the_request_that_admits_that_the_disk_was_full_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an outage, in which it takes until its time-out. It is tried again."""
    monkeypatch.setattr("s3backer.journal.keeper._RETRY", 0.05)
    small = SmallJournal(tmp_path / "j", files=8)
    disk = FaultyDisk(small.core)
    asked, go_on, attempts = threading.Event(), threading.Event(), 0

    def admit() -> None:
        nonlocal attempts
        attempts += 1
        asked.set()
        go_on.wait(100)
        if attempts == 1:
            raise StoreUnreachable("the store is away", hint="Wait.")

    keeper = kept(small, admit=admit)
    disk.write_error = errno.ENOSPC
    assert small.core.write(0, b"x" * BLOCK, 0.0) == (0, JOURNAL_BUSY)
    disk.write_error = 0
    assert asked.wait(20)
    for turn in range(80):
        offset = turn % BLOCKS * BLOCK
        wait_until(
            lambda offset=offset: small.core.write(offset, b"x" * BLOCK, 0.0)[1] == _fast.DONE, "there is a file for it"
        )
    answers: list[S3backerError | None] = []
    keeper.begin(answers.append)
    wait_until(lambda: answers, "the flush is answered")
    assert answers == [None] and keeper.failure is None
    go_on.set()
    wait_until(lambda: attempts == 2, "it is tried again")
    keeper.end()
    small.directory.close()


def test_others_are_told_also_where_no_file_can_be_made_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk so full that nothing can be removed: what memory has is stored only once that was told."""
    small = SmallJournal(tmp_path / "j")
    told, disk = threading.Event(), FaultyDisk(small.core)

    def full() -> None:
        raise JournalFull("no room", hint="Free some.")

    with monkeypatch.context() as patch:
        patch.setattr(small.journal, "prepare", full)
        patch.setattr(small.journal, "wait", lambda seconds: True)
        disk.write_error = errno.ENOSPC
        assert small.core.write(0, b"x" * BLOCK, 0.0) == (0, JOURNAL_BUSY)
        assert small.core.behind
        keeper = kept(small, admit=told.set)
        assert told.wait(20)
        disk.write_error = 0
    keeper.end()
    small.directory.close()
