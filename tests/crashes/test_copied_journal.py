"""A copy of a journal's directory, made before its mount went on: nothing of it is put over what that has stored.

As a backup that is put back, a snapshot of its disk, a machine that is copied while it runs, or a directory that was
copied to a larger disk after a crash, and used again after the next one.
"""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3backer.admin import unlock_volume
from s3backer.errors import AccessDenied, JournalError, JournalFull, S3backerError, VolumeInUse
from s3backer.holder import Holder
from s3backer.journal.files import JournalDirectory
from s3backer.journal.named import under_another_name
from s3backer.journal.system import System
from s3backer.layouts.token import put_token, read_token
from s3backer.left_journal import place_of_journal
from s3backer.recovery import Recoverer
from s3backer.stores.directory import DirectoryStore
from s3backer.volume import Volume
from tests.support.places import BLOCK, Place, copy_unless_gone, left_out

OLD, NEW = b"o" * BLOCK, b"n" * BLOCK


def keep_copy(place: Place) -> Path:
    copy = place.directory / "backup"
    shutil.copytree(place.journals, copy, ignore=left_out, copy_function=copy_unless_gone)
    return copy


def go_on(volume: Volume) -> None:
    """Store something newer, and leave something else to the journal only."""
    volume.write(BLOCK, NEW)
    volume.flush()
    volume._driver.flush()
    volume.write(2 * BLOCK, NEW)
    volume.flush()


def copied_while_mounted(place: Place, volume: Volume) -> Path:
    """Return a copy of what a mount has when it has written the old block; it goes on, and renews its token."""
    volume.write(BLOCK, OLD)
    volume.flush()
    kept = keep_copy(place)
    assert volume._holder is not None
    volume._holder.renew()
    go_on(volume)
    return kept


@pytest.fixture(params=["after a crash", "while mounted", "of the one before"])
def copy(place: Place, request: pytest.FixtureRequest) -> Path:
    """A copy of what a mount had when it had written the old block; it has gone on and died."""
    if request.param == "while mounted":
        with place.killed() as volume:
            return copied_while_mounted(place, volume)
    with place.killed() as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
    kept = keep_copy(place)
    if request.param == "of the one before":
        with place.killed() as volume:
            volume.write(3 * BLOCK, OLD)
    with place.killed() as volume:
        go_on(volume)
    return kept


def stored(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.bucket.iterdir() if path.is_file()}


def refused(place: Place, journals: Path) -> None:
    before = stored(place)
    for changes in ({}, {"journal": 0}):
        with pytest.raises(JournalError, match="it is a copy, whose mount has gone on") as why:
            place.open(journal_directory=str(journals), **changes)
        assert why.value.hint.startswith("Use that one, if it is there. ")
    assert stored(place) == before


def test_a_copy_is_not_put_over_what_came_later(place: Place, copy: Path) -> None:
    refused(place, copy)
    # The other one has everything.
    assert place.content(BLOCK, 2 * BLOCK) == 2 * NEW


def test_nor_is_one_that_was_put_back(place: Place, copy: Path) -> None:
    """It has the lock of before, and so is the directory that the token names."""
    kept = place.directory / "newest"
    shutil.copytree(place.journals, kept)
    place.put_back(copy)
    refused(place, place.journals)
    place.put_back(kept)
    assert place.content(BLOCK, 2 * BLOCK) == 2 * NEW


def test_a_copy_can_be_given_up(place: Place, copy: Path) -> None:
    token = read_token(place.store(), "")
    path = copy / Path(place_of_journal(place.store(), "", place.options)).name
    with JournalDirectory(path) as directory:
        assert Recoverer(place.store(), "", place.options, directory).discard() == 1
    assert not list(copy.rglob("*.journal")) and read_token(place.store(), "") == token
    assert place.content(BLOCK, 2 * BLOCK) == 2 * NEW


def test_a_copied_machine_takes_nothing_from_the_one_that_lives(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3backer.journal.marks.home_of", lambda lock: "the same start of both")
    with place.open() as volume:
        copy = copied_while_mounted(place, volume)
        with pytest.raises(S3backerError):
            place.open(journal_directory=str(copy))
        volume.write(3 * BLOCK, NEW)
        volume.flush()
        volume._driver.flush()
        assert volume.lost is False
    assert place.content(BLOCK, 3 * BLOCK) == 3 * NEW


def test_the_hint_does_not_name_a_copy_beside_the_one_that_was_renamed(place: Place, copy: Path) -> None:
    here = Path(place_of_journal(place.store(), "", place.options))
    (copy / here.name).rename(here.with_suffix(".a-copy"))
    here.rename(here.with_suffix(".moved"))
    token = read_token(place.store(), "")
    assert token is not None
    found = under_another_name(place.store(), "", token)
    assert found is not None and found.path == str(here.with_suffix(".moved"))


# ── no copy ──────────────────────────────────────────────────────────────────────────────────────────────────


class Refusing(DirectoryStore):
    """Can be read, and takes nothing."""

    def put(self, key: str, body: Any, **conditions: Any) -> str:
        raise AccessDenied("the store refuses it", hint="Let it.")


@pytest.mark.parametrize("attempts", [1, 40])
@pytest.mark.parametrize("noted", [True, False])
def test_a_token_that_cannot_be_replaced_stays_this_directorys(place: Place, noted: bool, attempts: int) -> None:
    """Also where a version that noted nothing had put it."""
    with place.killed() as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
    if not noted:
        (note,) = place.journals.rglob("nonces")
        note.unlink()
    for _ in range(attempts):
        with pytest.raises(AccessDenied):
            Volume.open(Refusing(place.bucket), "", place.options)
    assert place.content(BLOCK, BLOCK) == OLD


def test_another_mounts_token_is_called_that(place: Place) -> None:
    with place.killed(lease=1.0) as volume:
        volume.write(BLOCK, OLD)
        volume._driver.flush()
        volume.write(BLOCK, NEW)
        volume.flush()
    with place.open(journal_directory=str(place.directory / "elsewhere"), force=True):
        with pytest.raises(VolumeInUse, match="is mounted by") as refused:
            place.open()
        assert "Unmount it there first" in refused.value.hint


@pytest.mark.parametrize("lost", [False, True])
def test_a_forced_replay_that_wrote_nothing_leaves_the_others_token(
    place: Place, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Else the next mount would put it over what the other has stored. Also where the answer to a renewal was lost."""
    with place.killed() as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
    found, elsewhere = read_token(place.store(), ""), place.directory / "elsewhere"
    unlock_volume(place.store(), "", force=True)
    store = place.store()
    other = Volume.open(store, "", replace(place.options, journal_directory=str(elsewhere), lease=1.0))
    other.write(BLOCK, NEW)
    other.flush()
    other._driver.flush()
    theirs = read_token(store, "")
    assert other._holder is not None and found is not None and theirs is not None
    other._holder.stop()

    def interrupted(done: int, total: int) -> None:
        token = read_token(place.store(), "")
        if token is not None and token.value != theirs.value:
            if lost:
                # By one of this replay's own that nobody heard of.
                renewed = token.anew(random.Random(1))
                put_token(place.store(), "", renewed, former=token)
                monkeypatch.setattr(Holder, "_is_ours", lambda self, found: found.nonce == renewed.nonce)
            raise KeyboardInterrupt

    with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:
        recoverer = Recoverer(place.store(), "", replace(place.options, lease=1.0), directory)
        with pytest.raises(KeyboardInterrupt):
            recoverer.replay(interrupted, force=True)
    monkeypatch.undo()
    token = read_token(place.store(), "")
    assert token is not None and (token.value, token.home) == (theirs.value, theirs.home)
    with pytest.raises(S3backerError):
        place.open()
    other.close()
    assert place.content(BLOCK, BLOCK, journal_directory=str(elsewhere)) == NEW


# ── the note of nonces ───────────────────────────────────────────────────────────────────────────────────────


def nonce(number: int) -> str:
    return f"{number:032x}"


def test_the_last_nonces_are_known(tmp_path: Path) -> None:
    with JournalDirectory(tmp_path / "j") as directory:
        home = directory.home
        # Nothing is said where none was ever noted, nor of a token whose mount could note nothing.
        assert directory.is_home_of(home, nonce(1)) and not directory.is_older(home, nonce(1))
        for number in range(40):
            directory.note_nonce(nonce(number))
    size = (tmp_path / "j" / "nonces").stat().st_size
    with JournalDirectory(tmp_path / "j") as directory:
        directory.note_nonce(nonce(40))
        assert [number for number in range(42) if directory.is_home_of(home, nonce(number))] == [*range(9, 41)]
        assert directory.is_older("", nonce(50)) is False and directory.is_older(home, nonce(50))
        assert not directory.is_home_of("another", nonce(40))
        assert (tmp_path / "j" / "nonces").stat().st_size == size
        directory.forget_token()
        assert not directory.is_older(home, nonce(50)) and not (tmp_path / "j" / "nonces").exists()


@pytest.mark.parametrize("text", [b"", b"short", b"x" * 5000, bytes(2048)])
def test_a_damaged_note_says_nothing(tmp_path: Path, text: bytes) -> None:
    with JournalDirectory(tmp_path / "j") as directory:
        (tmp_path / "j" / "nonces").write_bytes(text)
        assert not directory.is_older(directory.home, nonce(1))
        directory.note_nonce(nonce(2))
        assert directory.is_older(directory.home, nonce(1)) and not directory.is_older(directory.home, nonce(2))


class Full(System):
    """A disk without room for another file, or that takes nothing any more."""

    error = 0

    def create(self, name: str, directory: int) -> int:
        if self.error == errno.ENOSPC and name == "nonces":
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(name, directory)

    def write(self, fd: int, data: bytes, position: int) -> None:
        if self.error == errno.EIO:
            raise OSError(errno.EIO, "Input/output error")
        super().write(fd, data, position)


def test_noting_another_needs_no_room(tmp_path: Path) -> None:
    system = Full()
    with JournalDirectory(tmp_path / "j", system=system) as directory:
        system.error = errno.ENOSPC
        with pytest.raises(JournalFull, match="has no room for a note"):
            directory.note_nonce(nonce(1))
        system.error = 0
        directory.note_nonce(nonce(1))
        system.error = errno.ENOSPC
        directory.note_nonce(nonce(2))
        assert directory.is_home_of(directory.home, nonce(2))


class Hanging(System):
    """A disk that takes its time."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def sync(self, fd: int) -> None:
        self.goes_on.wait(60)
        super().sync(fd)


def test_a_disk_that_hangs_does_not_end_the_lease(place: Place) -> None:
    with place.open(lease=1.5, journal=0, write_delay=0.05) as volume:
        assert volume._holder is not None and volume._directory is not None
        system = volume._directory._nonces._system = Hanging()
        try:
            for number in range(10):
                volume.write(number * BLOCK, NEW)
                volume.flush()
                time.sleep(0.25)
            token = read_token(place.store(), "")
            assert token is not None and token.home == "" and volume.lost is False
        finally:
            system.goes_on.set()


def test_the_lease_does_not_end_where_no_thread_can_be_started(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with place.open(lease=1.0, journal=0, write_delay=0.05) as volume:
        start = threading.Thread.start

        def no_thread(thread: threading.Thread) -> None:
            if thread.name == "s3backer-note":
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            for number in range(10):
                volume.write(number * BLOCK, NEW)
                volume.flush()
                time.sleep(0.2)
        assert volume.lost is False and "no thread can be started" in caplog.text
        token = read_token(place.store(), "")
        assert token is not None and token.home == ""


def test_a_note_that_cannot_be_read_matters_only_to_who_wrote_it(tmp_path: Path) -> None:
    with JournalDirectory(tmp_path / "j") as directory:
        (tmp_path / "j" / "nonces").mkdir()
        assert not directory.is_older("", nonce(1))
        with pytest.raises(JournalError, match="cannot be read"):
            directory.is_older(directory.home, nonce(1))


def test_who_can_note_nothing_names_no_home(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The next mount watches then whether it is alive; nothing is refused."""
    with place.killed(lease=1.0) as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
        assert volume._holder is not None and volume._directory is not None
        system = Full()
        system.error = errno.EIO
        volume._directory._nonces._system = system
        volume._holder.renew()
        assert "cannot know by itself that this one is dead" in caplog.text
        found = read_token(place.store(), "")
        assert found is not None and not found.home
        volume._holder.renew()
        volume.write(BLOCK, NEW)
        volume.flush()
    assert place.content(BLOCK, BLOCK) == NEW


def test_nonces_that_cannot_be_read_are_named_with_the_way_on(place: Place) -> None:
    """As with a bad sector there."""
    with place.killed() as volume:
        volume.write(BLOCK, NEW)
        volume.flush()
    (note,) = place.journals.rglob("nonces")
    note.unlink()
    note.mkdir()
    with pytest.raises(JournalError, match=f"{note}.* cannot be read") as caught:
        place.open()
    command = caught.value.hint.split(": ", 1)[1].removesuffix(". Then try again.")
    assert subprocess.run(command, shell=True, check=False).returncode == 0
    assert place.content(BLOCK, BLOCK) == NEW
