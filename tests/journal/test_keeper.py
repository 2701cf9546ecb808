"""Who keeps a journal going: ends whatever is under way, and answers everybody."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from s3backer.errors import S3backerError
from s3backer.journal.files import JournalDirectory
from s3backer.journal.keeper import Keeper
from s3backer.layouts.stored_note import StoredNote
from s3backer.stores.memory import MemoryStore
from tests.support.journals import SmallJournal
from tests.support.mounts import wait_until
from tests.support.power_loss import FaultyDisk

NOTE = StoredNote(MemoryStore(), "", bytes(16), "j")


def nothing() -> None:
    """Do nothing."""


def test_it_ends_while_a_failed_journal_is_being_given_up(tmp_path: Path) -> None:
    small = SmallJournal(tmp_path / "j")
    disk = FaultyDisk(small.core)
    asked, go_on = threading.Event(), threading.Event()

    def in_bucket(done: object) -> None:
        asked.set()
        go_on.wait(20)
        assert callable(done)
        done(None)

    keeper = Keeper(small.journal, in_bucket=in_bucket, on_room=nothing, admit=nothing, note=NOTE, disown=nothing)
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
    keeper = Keeper(
        small.journal,
        in_bucket=lambda done: done(None),
        on_room=nothing,
        admit=nothing,
        note=NOTE,
        disown=nothing,
    )
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
    keeper = Keeper(
        small.journal,
        in_bucket=lambda done: done(None),
        on_room=nothing,
        admit=nothing,
        note=NOTE,
        disown=nothing,
    )

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
