"""A copy of a journal's directory, made before its mount went on: nothing of it is put over what that has stored.

As a backup that is put back, a snapshot of its disk, a machine that is copied while it runs, or a directory that was
copied to a larger disk after a crash, and used again after the next one.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from s3backer.errors import JournalError, JournalFull, S3backerError
from s3backer.journal.files import JournalDirectory
from s3backer.journal.named import under_another_name
from s3backer.journal.system import System
from s3backer.layouts.token import read_token
from s3backer.left_journal import place_of_journal
from s3backer.recovery import Recoverer
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


@pytest.fixture(params=["after a crash", "while mounted", "of the one before"])
def copy(place: Place, request: pytest.FixtureRequest) -> Path:
    """A copy of what a mount had when it had written the old block; it has gone on and died."""
    if request.param == "while mounted":
        with place.killed() as volume:
            volume.write(BLOCK, OLD)
            volume.flush()
            kept = keep_copy(place)
            assert volume._holder is not None
            volume._holder.renew()
            go_on(volume)
        return kept
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
    monkeypatch.setattr("s3backer.journal.files._home", lambda lock: "the same start of both")
    with place.open() as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
        copy = keep_copy(place)
        assert volume._holder is not None
        volume._holder.renew()
        go_on(volume)
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
