"""A volume with a journal that ends uncleanly, driven as a library over a directory; see tests/support/places.py."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3backer.admin import create_volume, erase_volume, unlock_volume
from s3backer.clocks import boot_time
from s3backer.codec.choice import EncodingOptions
from s3backer.errors import (
    AccessDenied,
    JournalError,
    ReadOnlyVolume,
    S3backerError,
    StoreError,
    StoreUnreachable,
    UsageError,
    VolumeInUse,
    WrongPassword,
)
from s3backer.holder import Holder, take
from s3backer.journal.files import JournalDirectory
from s3backer.journal.system import System
from s3backer.layouts.classic import block_name, parse_block_name
from s3backer.layouts.stored_note import StoredNote
from s3backer.layouts.token import TOKEN_NAME, MountToken, new_token, put_token, read_token, write_token
from s3backer.left_journal import place_of_journal
from s3backer.opening import VolumeOptions
from s3backer.recovery import Recoverer, Recovery, expires_in
from s3backer.stores.base import ObjectStore
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.memory import MemoryStore
from s3backer.volume import Volume
from tests.support.mounts import wait_until
from tests.support.places import BLOCK, NEVER, SECRET, SIZE, Place, copy_unless_gone, left_out
from tests.support.power_loss import FaultyDisk


def test_an_encrypted_volume_has_an_encrypted_journal(secret: Place) -> None:
    text = b"nobody may read this" * 100
    with secret.killed() as volume:
        volume.write(BLOCK, text)
        volume.flush()
    assert secret.files
    assert not any(b"nobody may read this" in path.read_bytes() for path in secret.files)
    with pytest.raises(S3backerError):
        secret.content(0, 1, encoding=EncodingOptions())
    with pytest.raises(WrongPassword):
        secret.content(0, 1, encoding=replace(SECRET, password="wrong"))
    assert secret.files
    assert secret.content(BLOCK, len(text)) == text
    assert not secret.files


def test_what_was_shrunk_away_does_not_come_back(place: Place) -> None:
    with place.killed() as volume:
        volume.write(SIZE - BLOCK, b"x" * BLOCK)
        volume.flush()
        volume.resize(SIZE // 2, discard=True)
        volume.write(0, b"y" * BLOCK)
        volume.resize(SIZE)
        volume.write(BLOCK, b"z" * BLOCK)
    with place.open() as volume:
        assert volume.size == SIZE
        assert volume.read(0, 2 * BLOCK) == b"y" * BLOCK + b"z" * BLOCK
        assert not any(volume.read(SIZE // 2, SIZE // 2))


def test_shrunk_and_killed(place: Place) -> None:
    with place.killed() as volume:
        volume.write(SIZE - BLOCK, b"x" * BLOCK)
        volume.resize(SIZE // 2, discard=True)
    with place.open() as volume:
        assert volume.size == SIZE // 2
        volume.resize(SIZE)
        assert not any(volume.read(SIZE // 2, SIZE // 2))


def test_zeros_written_over_what_the_journal_holds(place: Place) -> None:
    with place.killed() as volume:
        volume.write(0, b"x" * 3 * BLOCK)
        volume.discard(BLOCK, BLOCK)
        volume.write(2 * BLOCK, bytes(BLOCK))
        # In the journal as well as absent from the bucket.
        volume.discard(10 * BLOCK, BLOCK)
    assert place.content(0, 3 * BLOCK) == b"x" * BLOCK + bytes(2 * BLOCK)


def test_with_write_through_there_is_no_journal(place: Place) -> None:
    with place.open(write_through=True) as volume:
        volume.write(BLOCK, b"x" * BLOCK)
        assert not place.files
        assert "00000001" in place.objects


def test_one_at_a_time(place: Place) -> None:
    with place.open():
        with pytest.raises(VolumeInUse, match="is mounted by") as caught:
            place.open()
        assert "a mount begins or ends" in caught.value.hint
        with pytest.raises(VolumeInUse, match=f"with a journal in {place.journals} there"):
            place.open(journal_directory=str(place.directory / "elsewhere"))
        with pytest.raises(VolumeInUse):
            place.open(journal=0, journal_directory=None)


def test_killed_twice_and_in_between(place: Place) -> None:
    for number in range(3):
        with place.killed() as volume:
            volume.write(number * BLOCK, bytes([number + 65]) * BLOCK)
    assert place.content(0, 3 * BLOCK) == b"A" * BLOCK + b"B" * BLOCK + b"C" * BLOCK


def faulty(volume: Volume) -> FaultyDisk:
    assert volume._keeper is not None
    return FaultyDisk(volume._keeper.journal.core)


def test_a_sync_that_fails_lets_flush_wait_for_the_bucket(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    old, new = b"old" + bytes(BLOCK - 3), b"new" + bytes(BLOCK - 3)
    with place.killed() as volume:
        disk = faulty(volume)
        volume.write(BLOCK, old)
        volume.flush()
        assert len(place.objects) == 1
        disk.sync_error = errno.EIO
        volume.write(BLOCK, new)
        volume.flush()
        assert len(place.objects) == 2
        # It could be replayed over what is newer.
        assert not place.files
        volume.write(5 * BLOCK, new)
        volume.flush()
        assert len(place.objects) == 3
        facts = volume.facts()["journal"]
        assert isinstance(facts, dict) and "cannot be synced" in str(facts["failure"])
    assert "writes go on without a journal" in caplog.text
    assert place.content(BLOCK, BLOCK) == new
    assert place.content(5 * BLOCK, BLOCK) == new


class Away(DirectoryStore):
    """Takes nothing while it is away."""

    away = False

    def put(self, *args: Any, **more: Any) -> str:
        if self.away:
            raise StoreUnreachable("the store is away", hint="Wait.")
        return super().put(*args, **more)


def test_a_sync_that_fails_while_the_store_is_away_fails_each_flush_until_it_is_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits without end: the token cannot say that the journal has failed, so nothing may be stored either."""
    monkeypatch.setattr("s3backer.journal.keeper._RETRY", 0.05)
    store = Away(place.bucket)
    with Volume.open(store, "", place.options) as volume:
        disk = faulty(volume)
        volume.write(BLOCK, b"a" * BLOCK)
        store.away, disk.sync_error = True, errno.EIO
        for _ in range(4):
            with pytest.raises(StoreUnreachable):
                volume.flush()
            disk.sync_error = 0
        assert not place.objects - {block_name(0)}
        store.away = False
        volume.flush()
        assert place.objects >= {block_name(1)}
        # And it is no different when that is known, and the store goes away once more.
        volume.write(BLOCK, b"b" * BLOCK)
        store.away = True
        for _ in range(4):
            with pytest.raises(StoreUnreachable):
                volume.flush()
        store.away = False
        volume.flush()
    assert place.content(BLOCK, BLOCK) == b"b" * BLOCK


@contextmanager
def not_removable() -> Iterator[None]:
    """Let nothing of a journal be removed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JournalDirectory, "remove_all", _refuse)
        yield


def failed_and_left(place: Place, volume: Volume, how: str) -> None:
    """Flush something newer than what stands in a journal that has failed, and that cannot be removed either."""
    disk = faulty(volume)
    volume.write(BLOCK, OLD)
    volume.flush()
    with not_removable():
        disk.sync_error = errno.EIO
        # What a sync that fails is about may stand in the files all the same.
        volume.write(2 * BLOCK, OLD)
        volume.flush()
        volume.write(BLOCK, NEW)
        volume.flush()
        if how == "ended":
            volume.close()


OLD, NEW, NEWEST = (bytes([letter]) * BLOCK for letter in b"onN")


def spoiled(file: Path, at: int) -> None:
    """Let one byte of a file be another one."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def notes(place: Place) -> list[Path]:
    return list(place.bucket.glob("s3backer-stored-*"))


@pytest.fixture(params=["killed", "ended"])
def left(place: Place, request: pytest.FixtureRequest) -> Place:
    """A volume whose journal has failed and could not be removed, with older data than what was flushed."""
    place.options = replace(place.options, lease=SHORT)
    with place.killed() as volume:
        failed_and_left(place, volume, request.param)
    assert place.files
    assert (read_token(place.store(), "") is None) == (request.param == "ended")
    return place


@pytest.mark.parametrize("journal", [4 << 20, 0])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_journal_that_could_not_be_removed_is_not_put_over_what_is_newer(
    left: Place, journal: int, damaged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The bucket says that it has all of it; after the disk was repaired the next mount removes it."""
    (note,) = notes(left)
    assert note.read_text().split("\n")[2] == place_of_journal(left.store(), "", left.options)
    if damaged:
        spoiled(left.files[0], 5000)
    with not_removable(), pytest.raises(JournalError):
        left.open(journal=journal)
    assert notes(left) and left.files
    caplog.clear()
    assert left.content(BLOCK, BLOCK, journal=journal) == NEW
    assert "all that the journal in" in caplog.text and "is in the bucket, as a note there says" in caplog.text
    assert "is lost" not in caplog.text
    assert not left.files and not notes(left)
    assert read_token(left.store(), "") is None


def test_as_long_as_its_disk_is_read_only_another_place_is_named(left: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: JournalDirectory) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(JournalDirectory, "_take_lock", refuse)
    for journal in (4 << 20, 0):
        with pytest.raises(JournalError, match="Read-only file system") as caught:
            left.open(journal=journal)
        assert caught.value.hint.startswith("All of it is in the bucket")
        assert "mount with another --journal-directory" in caught.value.hint


@pytest.mark.parametrize("how", ["plain", "force", "discard"])
def test_nor_does_recover(left: Place, how: str, caplog: pytest.LogCaptureFixture) -> None:
    if how == "force":
        with pytest.raises(JournalError, match="nothing is replayed") as caught:
            recovered(left, force=True)
        assert f"--journal-directory {left.journals} --discard" in caught.value.hint
        assert left.files and notes(left)
    elif how == "plain":
        assert recovered(left).blocks == 0
    else:
        with opened_recoverer(left) as recoverer:
            assert recoverer.discard() == 0
    assert left.content(BLOCK, BLOCK) == NEW
    assert "lost" not in caplog.text
    assert not left.files and not notes(left)
    assert read_token(left.store(), "") is None


@pytest.mark.parametrize("left", ["ended"], indirect=True)
def test_the_note_of_a_journal_whose_newest_header_is_damaged_is_told(left: Place) -> None:
    """It is not believed: a later session may have had those files."""
    spoiled(left.files[-1], 100)
    with pytest.raises(JournalError, match="A note in the bucket says that all that was written to it up to") as caught:
        left.open()
    assert "nothing is lost" in caught.value.hint and "--discard" in caught.value.hint
    assert "older state" not in caught.value.hint
    assert left.files and notes(left)
    with opened_recoverer(left) as recoverer:
        assert not recoverer.left.stored and recoverer.discard() is None
    assert not left.files and not notes(left)
    assert left.content(BLOCK, BLOCK) == NEW


def test_to_read_only_it_is_not_newer_either(left: Place, caplog: pytest.LogCaptureFixture) -> None:
    if read_token(left.store(), "") is not None:
        # Then the token says so.
        for note in notes(left):
            note.unlink()
    caplog.clear()
    with left.open(read_only=True):
        pass
    assert "may hold newer data" not in caplog.text
    assert f"all that the journal {left.files[0].parent} holds is in the bucket" in caplog.text


def test_nor_where_others_had_the_volume_since(left: Place) -> None:
    """They need no force: the token says of no journal."""
    elsewhere = {"journal_directory": str(left.directory / "elsewhere")}
    token = read_token(left.store(), "")
    if token is not None:
        assert not token.journal
        unlock_volume(left.store(), "")
    with left.open(**elsewhere) as volume:
        volume.write(BLOCK, NEWEST)
    assert left.content(BLOCK, BLOCK) == NEWEST
    assert not left.files and not notes(left)


@pytest.mark.parametrize("journal", [4 << 20, 0])
@pytest.mark.parametrize("damaged", [False, True])
def test_nor_where_only_the_token_says_that_all_is_stored(
    place: Place, journal: int, damaged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has tidied the note away, or put the bucket back without it."""
    place.options = replace(place.options, lease=SHORT)
    with place.killed() as volume:
        failed_and_left(place, volume, "killed")
    for note in notes(place):
        note.unlink()
    if damaged:
        spoiled(place.files[-1], 100)
    with opened_recoverer(place) as recoverer, pytest.raises(JournalError, match="as the mount token says: nothing is"):
        recoverer.replay(force=True)
    assert place.content(BLOCK, BLOCK, journal=journal) == NEW
    assert "is in the bucket, as the mount token says" in caplog.text
    assert not place.files and read_token(place.store(), "") is None


@pytest.mark.parametrize("what", ["value", "nonce"])
def test_a_token_without_a_journal_of_somebody_else_says_nothing_of_this_one(ended: Place, what: str) -> None:
    """Of another mount, or of one before tokens said where the journal is."""
    store = ended.store()
    token = read_token(store, "")
    assert token is not None and token.journal
    other = replace(token, value=token.value ^ 1) if what == "value" else replace(token, nonce="")
    put_token(store, "", replace(other, journal="", home=""), former=token)
    with opened_recoverer(ended) as recoverer:
        assert not recoverer.left.stored


def test_a_disk_that_lets_itself_be_written_again_before_the_end(place: Place) -> None:
    with place.open() as volume:
        failed_and_left(place, volume, "")
        assert notes(place) and volume.journal_left is not None
    assert volume.journal_left is None
    assert not place.files and not notes(place)
    assert place.content(BLOCK, BLOCK) == NEW


def test_a_journal_that_cannot_be_removed_at_the_end_only(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    volume = place.open()
    volume.write(BLOCK, OLD)
    volume.flush()
    with not_removable():
        volume.close()
    assert volume.journal_left is not None and "a note there says so" in volume.journal_left
    assert volume.journal_left in caplog.text
    assert place.files and notes(place) and read_token(place.store(), "") is None
    with place.open(journal_directory=str(place.directory / "elsewhere")) as volume:
        volume.write(BLOCK, NEW)
    assert place.content(BLOCK, BLOCK) == NEW
    assert not place.files and not notes(place)


def test_the_note_of_an_earlier_session_says_nothing_of_what_was_written_since(place: Place) -> None:
    """As where it arrives late: the flush that wanted it had failed, and the next mount has gone on."""
    with place.killed() as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
        assert volume._keeper is not None
        note = volume._keeper._note
    with place.killed() as volume:
        volume.write(BLOCK, NEW)
        volume.flush()
    StoredNote(place.store(), "", bytes.fromhex(note._key.rpartition("-")[2]), "late").put()
    assert place.content(BLOCK, BLOCK) == NEW


def test_while_it_cannot_be_noted_no_flush_succeeds_and_no_end(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("s3backer.journal.keeper._RETRY", 0.05)
    refused = AccessDenied("the store refuses notes", hint="Let it.")
    for error in (StoreError("it fails", hint="Wait."), refused):
        volume = place.open()
        disk = faulty(volume)
        with not_removable(), monkeypatch.context() as patch:
            patch.setattr(StoredNote, "put", _raise(error))
            disk.sync_error = errno.EIO
            volume.write(BLOCK, NEW)
            with pytest.raises(type(error)):
                volume.flush()
            if error is refused:
                with pytest.raises(AccessDenied):
                    volume.close()
                assert volume._holder is not None and not volume._holder._thread.is_alive()
                break
            ending = threading.Thread(target=volume.close, daemon=True)
            ending.start()
            wait_until(lambda: "waiting to note that" in caplog.text, "it waits")
            patch.undo()
            ending.join(20)
            assert not ending.is_alive()
        assert place.content(BLOCK, BLOCK) == NEW
    # Nobody else has had the volume, and the token stays.
    assert read_token(place.store(), "") is not None
    assert place.content(BLOCK, BLOCK) == NEW


def test_where_the_note_is_refused_at_the_end_the_token_says_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = place.open()
    disk = faulty(volume)
    volume.write(BLOCK, OLD)
    volume.flush()
    refused = AccessDenied("the store refuses notes", hint="Let it.")
    with not_removable(), monkeypatch.context() as patch:
        patch.setattr(StoredNote, "put", _raise(refused))
        disk.sync_error = errno.EIO
        # The journal has this as well, but nobody knows whether its disk has.
        volume.write(BLOCK, NEW)
        with pytest.raises(AccessDenied):
            volume.flush()
        # This one it does not have.
        volume.write(BLOCK, NEWEST)
        with pytest.raises(AccessDenied):
            volume.close()
    assert place.files and read_token(place.store(), "") is not None
    assert place.content(BLOCK, BLOCK) == NEWEST
    assert not place.files


def _raise(error: BaseException) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


def test_erase_removes_notes_too(left: Place) -> None:
    erase_volume(left.store(), "", force=True)
    assert not notes(left)


def test_a_journal_that_failed_goes_although_nobody_flushes(place: Place) -> None:
    with place.killed() as volume:
        disk = faulty(volume)
        volume.write(BLOCK, b"old" + bytes(BLOCK - 3))
        volume.flush()
        disk.sync_error = errno.EIO
        volume.write(BLOCK, b"new" + bytes(BLOCK - 3))
        wait_until(lambda: not place.files, "the journal is given up")
        assert len(place.objects) == 2
    assert place.content(BLOCK, 3) == b"new"


class Shared(MemoryStore):
    """One process's view of a bucket, of which a request may arrive late, so that every write has a condition."""

    def __init__(self, other: MemoryStore | None = None) -> None:
        super().__init__()
        self.delayed = True
        if other is not None:
            self._objects = other._objects


@pytest.mark.parametrize("journaled", [True, False])
def test_who_has_lost_the_volume_promises_nothing_any_more(tmp_path: Path, journaled: bool) -> None:
    store = Shared()
    create_volume(store, "", size=SIZE, block_size=BLOCK)
    options = VolumeOptions(
        memory=8 << 20, threads=4, write_delay=0.05, list_blocks=False, journal=(4 << 20) * journaled, lease=1.0
    )
    first = Volume.open(store, "", replace(options, journal_directory=str(tmp_path / "first")))
    first.write(5 * BLOCK, b"a" * BLOCK)
    first._driver.flush()
    elsewhere = replace(options, journal_directory=str(tmp_path / "second"), force=True)
    with Volume.open(Shared(store), "", elsewhere) as second:
        second.write(5 * BLOCK, b"b" * BLOCK)
        second._driver.flush()
        wait_until(lambda: first.facts()["lost"], "it has been seen")
        with pytest.raises(ReadOnlyVolume):
            first.write(5 * BLOCK, b"c" * BLOCK)
        with pytest.raises(ReadOnlyVolume):
            first.discard(5 * BLOCK, BLOCK)
        assert second.read(5 * BLOCK, BLOCK) == b"b" * BLOCK
    first.close()


#: Seconds of a lease that a test lives to see the end of.
SHORT = 1.0


@pytest.fixture
def ended(place: Place) -> Place:
    """A volume whose mount was killed after a write."""
    place.options = replace(place.options, lease=SHORT)
    with place.killed() as volume:
        volume.write(BLOCK, b"data" + bytes(BLOCK - 4))
    return place


@contextmanager
def _alive(place: Place) -> Iterator[Callable[[], None]]:
    """Let somebody renew the token, as the mount of which the directory is a copy; yields what ends that."""
    found = read_token(place.store(), "")
    assert found is not None
    holder = Holder(place.store(), "", "", found, boot_time())
    holder.renew()
    try:
        yield holder.stop
    finally:
        holder.stop()


@pytest.mark.parametrize("what", ["moved", "restarted"])
def test_a_journal_elsewhere_than_its_mount_waits_for_that_to_be_silent(
    ended: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A copied directory, a copied machine or one that lost its power: the token's mount may live, or not."""
    if what == "moved":
        shutil.copytree(ended.journals, ended.directory / "copied")
        shutil.rmtree(ended.journals)
        (ended.directory / "copied").rename(ended.journals)
    else:
        started = ended.directory / "boot_id"
        started.write_text("another start\n")
        monkeypatch.setattr("s3backer.journal.marks._BOOT_ID", started)
    with _alive(ended) as end:
        for attempt in (
            lambda directory: Recoverer(ended.store(), "", ended.options, directory).replay(),
            lambda directory: Recoverer(ended.store(), "", ended.options, directory).replay(force=True),
            lambda directory: Recoverer(ended.store(), "", ended.options, directory).discard(),
        ):
            path = place_of_journal(ended.store(), "", ended.options)
            with JournalDirectory(path) as directory, pytest.raises(VolumeInUse, match="that mount is alive"):
                attempt(directory)
        with pytest.raises(VolumeInUse, match="that mount is alive"):
            ended.open()
        end()
        began = time.monotonic()
        assert ended.content(BLOCK, 4) == b"data"
        assert time.monotonic() - began >= SHORT
    assert not ended.files


def test_a_mount_whose_journal_is_replayed_from_a_copy_notices_it(ended: Place) -> None:
    """Its value stays, as the journal knows it."""
    found = read_token(ended.store(), "")
    assert found is not None
    first = Holder(ended.store(), "", "", found, boot_time())
    second = replace(ended.options, journal_directory=str(ended.journals))
    with JournalDirectory(place_of_journal(ended.store(), "", second)) as directory:
        recoverer = Recoverer(ended.store(), "", second, directory)
        holder = recoverer._hold(read_token(ended.store(), ""), 0.0, covered=False)
        try:
            assert holder.token.value == found.value
            with pytest.raises(VolumeInUse):
                first.renew()
        finally:
            first.stop()
            holder.stop()


def test_writers_go_on_when_the_disk_of_the_journal_has_room_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who keeps the journal says when to try it."""
    monkeypatch.setattr("s3backer.cache._DISK_RETRY", NEVER)
    monkeypatch.setattr("s3backer.journal.service._RETRY", 0.05)
    with place.open() as volume:
        assert volume._keeper is not None
        core = volume._keeper.journal.core
        disk = FaultyDisk(core)
        disk.write_error = errno.ENOSPC
        writing = threading.Thread(target=volume.write, args=(BLOCK, b"x" * BLOCK), daemon=True)
        writing.start()
        wait_until(lambda: core.no_room, "the writer has tried")
        disk.write_error = 0
        writing.join(20)
        assert not writing.is_alive() and core.failure is None
        volume.flush()
    assert place.content(BLOCK, BLOCK) == b"x" * BLOCK


@pytest.mark.parametrize("journal", [4 << 20, 0])
def test_a_disk_without_room_for_a_note(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, journal: int
) -> None:
    """A journal needs it; without one it is only the next mount that has to wait."""

    def full(self: JournalDirectory, value: int, *, disowned: bool = False) -> None:
        raise JournalError("no room for a note", hint="Free some space.")

    monkeypatch.setattr(JournalDirectory, "note_token", full)
    if journal:
        with pytest.raises(JournalError, match="no room"):
            place.open(journal=journal)
        assert read_token(place.store(), "") is None
        return
    with place.open(journal=0) as volume:
        volume.write(0, b"x")
        found = read_token(place.store(), "")
        assert found is not None and not found.home
    assert "cannot know by itself" in caplog.text


def test_a_refused_mount_leaves_no_word_of_a_crash(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.open():
        elsewhere = {"journal": 0, "journal_directory": str(place.directory / "elsewhere")}
        real = read_token(place.store(), "")
        assert real is not None
        # It is put between its look and its own attempt.
        with pytest.raises(VolumeInUse), monkeypatched_look():
            place.open(**elsewhere)
    place.content(0, 1, **elsewhere)
    assert "was not unmounted" not in caplog.text


@contextmanager
def monkeypatched_look() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s3backer.opening.read_token", lambda store, prefix: None)
        yield


def test_how_long_the_requests_of_who_died_are_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since the last note; for all of the time where no note could be made; not at all where nothing was written."""
    store = MemoryStore()
    monkeypatch.setattr("s3backer.recovery.boot_time", lambda: 1e6)
    token = MountToken(5, "", "", "", lease=60.0, arriving=90.0)
    with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:

        def wait(found: MountToken | None) -> float:
            return expires_in(store, directory, [], found)

        directory.note_token(5)
        store.lasting, store.arriving = 100.0, 40.0
        assert wait(token) == 0.0
        directory.note_busy()
        assert wait(None) == pytest.approx(102.0, abs=1.0)
        assert wait(token) == pytest.approx(152.0, abs=1.0)
        assert wait(replace(token, owed=500.0)) == pytest.approx(502.0, abs=1.0)
        os.unlink(f"{directory.path}/busy")
        assert wait(token) == 150.0
        # The end of a session, with which everything is in the bucket.
        directory.note_busy()
        directory.remove_all(settled=True)
        assert wait(token) == 0.0
        # Where nothing arrives late, but a mount had waited for another one's lease.
        directory.note_busy()
        store.lasting = store.arriving = 0.0
        assert wait(replace(token, arriving=0.0)) == 0.0
        assert wait(replace(token, arriving=0.0, owed=60.0)) == pytest.approx(62.0, abs=1.0)


def _stop_at_once(*_: object) -> None:
    raise InterruptedError


def test_a_take_over_that_was_interrupted_is_owed_on_this_host_too(place: Place) -> None:
    """Another host's mount is alive and may write until its lease ends, whoever had the token in between."""
    lease = 3.0
    other = take(place.store(), "", "", None, force=False, lease=lease)
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        Volume.open(place.store(), "", replace(place.options, lease=lease, force=True), progress=_stop_at_once)
    with Volume.open(place.store(), "", replace(place.options, lease=lease)):
        assert time.monotonic() - began >= lease
        with pytest.raises((StoreError, VolumeInUse)):
            other.lease.sign_for(boot_time())
    assert other.give_back() is None
    other.stop()


def test_a_forced_replay_that_was_interrupted_is_owed_too(ended: Place) -> None:
    """Of a mount that lives nothing is taken."""
    lease = 3.0
    found = read_token(ended.store(), "")
    assert found is not None
    ended.store().delete(TOKEN_NAME)
    made_old(ended, "*", 3600)
    other = take(ended.store(), "", "", None, force=False, lease=lease)
    where = place_of_journal(ended.store(), "", ended.options)

    def stop_when_ours(done: int, total: int) -> None:
        token = read_token(ended.store(), "")
        if token is not None and token.value != other.token.value:
            raise InterruptedError

    with JournalDirectory(where) as directory:
        recoverer = Recoverer(ended.store(), "", replace(ended.options, lease=lease), directory)
        with pytest.raises(VolumeInUse, match="that mount is alive"):
            recoverer.replay(force=True)
        assert other.lease.lost is None and ended.files
        other.stop()
        began = time.monotonic()
        with pytest.raises(InterruptedError):
            recoverer.replay(stop_when_ours, force=True)
    with JournalDirectory(where) as directory:
        recoverer = Recoverer(ended.store(), "", replace(ended.options, lease=lease), directory)
        # Nothing was written: the other one's token is there again, and what it says is minded.
        assert read_token(ended.store(), "") == replace(other.token, etag=ended.store().head(TOKEN_NAME).etag)
        with pytest.raises(S3backerError):
            recoverer.replay()
        assert recoverer.replay(force=True).blocks == 1
    assert time.monotonic() - began >= lease
    with pytest.raises((StoreError, VolumeInUse)):
        other.lease.sign_for(boot_time())


def test_the_last_renewal_of_who_died_comes_late(ended: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the next mount has read the token: it is no other mount's."""
    found = read_token(ended.store(), "")
    assert found is not None
    with JournalDirectory(place_of_journal(ended.store(), "", ended.options)) as directory:
        directory.remove_all(settled=True)
        recoverer = Recoverer(ended.store(), "", ended.options, directory)

        def late(*_: object, **__: object) -> None:
            token = found.anew(random.Random(1))
            directory.note_nonce(token.nonce)
            put_token(ended.store(), "", token, former=found)

        monkeypatch.setattr("s3backer.recovery.wait_until_quiet", late)
        recoverer.replay()
    assert read_token(ended.store(), "") is None
    ended.content(0, 1)


def test_erase_by_force_takes_the_volume_from_who_has_it(tmp_path: Path) -> None:
    store = Shared()
    create_volume(store, "", size=SIZE, block_size=BLOCK)
    options = VolumeOptions(memory=4 << 20, threads=4, write_delay=NEVER, list_blocks=False, lease=SHORT)
    first = Volume.open(store, "", options)
    for block in range(20):
        first.write(block * BLOCK, b"a" * BLOCK)
    first.flush()
    other, lost = Shared(store), []

    def watch(erased: int) -> None:
        lost.append(first.facts()["lost"])

    assert erase_volume(other, "", force=True, progress=watch) == 20
    assert all(lost)
    with pytest.raises((ReadOnlyVolume, VolumeInUse)):
        first.write(0, b"b")
        first.flush()
    first.close()
    assert not other.list("").entries


@pytest.mark.parametrize("journaled", [True, False])
def test_what_was_written_when_it_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journaled: bool) -> None:
    """Flushes fail, waiting writers get an answer, closing ends and says what is where, and a journal is kept."""
    store = Shared()
    create_volume(store, "", size=SIZE, block_size=BLOCK)
    options = VolumeOptions(
        memory=4 << 20, threads=4, write_delay=NEVER, list_blocks=False, journal=(16 << 20) * journaled, max_dirty=4
    )
    first = Volume.open(store, "", replace(options, journal_directory=str(tmp_path / "first")))
    monkeypatch.setattr(store, "put", _unreachable)
    answers: list[type[BaseException]] = []

    def fill() -> None:
        try:
            for block in range(8):
                first.write(block * BLOCK, b"c" * BLOCK)
        except Exception as error:
            answers.append(type(error))

    writer = threading.Thread(target=fill, daemon=True)
    writer.start()
    wait_until(lambda: first._driver.failure is not None, "nothing can be stored")
    # With a journal it need not wait for the store.
    if journaled:
        writer.join(10)
    assert writer.is_alive() is not journaled
    other = write_token(
        Shared(store), "", "", new_token(random.Random(1), lease=60.0), former=read_token(Shared(store), "")
    )
    assert first._holder is not None
    with pytest.raises(VolumeInUse):
        first._holder.confirm()
    puts: list[object] = []
    monkeypatch.setattr(store, "put", lambda *_, **__: puts.append(1))
    writer.join(20)
    assert answers == ([] if journaled else [VolumeInUse])
    for _ in range(3):
        with pytest.raises(VolumeInUse):
            first.flush()
    with pytest.raises(ReadOnlyVolume):
        first.write(0, b"d")
    with pytest.raises(VolumeInUse, match="are not in the bucket") as caught:
        first.close()
    assert ("s3backer recover" in caught.value.hint) is journaled
    assert bool(list(tmp_path.rglob("*.journal"))) is journaled
    found = read_token(Shared(store), "")
    assert found is not None and found.value == other.value
    first.close()
    assert not puts


def _unreachable(*_: object, **__: object) -> str:
    raise StoreError("the store is away", hint="Wait.")


def test_a_mount_replays_nothing_where_others_had_the_volume(place: Place) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
        volume._driver.flush()
        volume.write(5 * BLOCK, b"b" * BLOCK)
        volume.flush()
    os.unlink(place.bucket / TOKEN_NAME)
    with place.open(journal_directory=str(place.directory / "elsewhere")) as other:
        other.write(6 * BLOCK, b"c" * BLOCK)
    with pytest.raises(JournalError, match="others may have been changed"):
        place.open()
    assert place.files
    with pytest.raises(JournalError, match="its 1 blocks are as it knew them"):
        recovered(place)
    assert place.content(5 * BLOCK, 2 * BLOCK, journal_directory=str(place.directory / "elsewhere")) == (
        b"a" * BLOCK + b"c" * BLOCK
    )
    assert recovered(place, force=True).blocks == 1
    assert place.content(5 * BLOCK, 2 * BLOCK) == b"b" * BLOCK + b"c" * BLOCK


def test_a_volume_that_was_erased_and_made_anew(place: Place) -> None:
    with place.killed(lease=SHORT) as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
        volume._driver.flush()
        volume.write(5 * BLOCK, b"b" * BLOCK)
        volume.flush()
    erase_volume(place.store(), "", force=True)
    create_volume(place.store(), "", size=SIZE, block_size=BLOCK)
    with pytest.raises(JournalError, match="1 of the 1 blocks in it were changed since"):
        place.open()
    assert place.files
    assert place.objects == {"00000000"}


@contextmanager
def opened_recoverer(place: Place) -> Iterator[Recoverer]:
    store = place.store()
    with JournalDirectory(place_of_journal(store, "", place.options)) as directory:
        yield Recoverer(store, "", place.options, directory)


def recovered(place: Place, *, force: bool = False) -> Recovery:
    with opened_recoverer(place) as recoverer:
        return recoverer.replay(force=force)


class Refusing(DirectoryStore):
    """Takes nothing."""

    def put(self, *_: Any, **__: Any) -> str:
        raise AccessDenied("the store refuses it", hint="Look.")


def test_a_forced_replay_that_ends_before_it_began_leaves_nothing_to_the_next_mount(place: Place) -> None:
    """With the journal's own token there the next mount would put it over what is newer."""
    with place.killed() as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
    unlock_volume(place.store(), "", force=True)
    with place.open(journal_directory=str(place.directory / "elsewhere")) as volume:
        volume.write(BLOCK, NEW)

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:
        recoverer = Recoverer(place.store(), "", place.options, directory)
        with pytest.raises(KeyboardInterrupt):
            recoverer.replay(interrupted, force=True)
    assert read_token(place.store(), "") is None
    with pytest.raises(JournalError, match="no token"):
        place.open()
    assert place.content(BLOCK, BLOCK, journal_directory=str(place.directory / "elsewhere")) == NEW


def test_a_forced_replay_into_a_smaller_volume_gives_nothing_up(place: Place) -> None:
    with place.killed() as volume:
        volume.write(BLOCK, OLD)
        volume.write(SIZE - BLOCK, OLD)
        volume.flush()
    shutil.rmtree(place.bucket)
    place.bucket.mkdir()
    create_volume(place.store(), "", size=SIZE // 2, block_size=BLOCK)
    before = place.objects
    with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:
        recoverer = Recoverer(place.store(), "", place.options, directory)
        with pytest.raises(JournalError, match="holds of 1 block lies beyond the end") as refused:
            recoverer.replay(force=True)
    assert refused.value.hint.startswith("Make it as large as it was (s3backer resize). ")
    assert place.files and place.objects == before


def test_an_end_that_was_interrupted_can_be_gone_on_with(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = place.open(journal=0)
    volume.write(BLOCK, NEW)
    with monkeypatch.context() as patch:
        patch.setattr(volume._driver, "close", _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            volume.close()
    volume.close()
    assert volume.unsaved == 0 and read_token(place.store(), "") is None
    assert place.content(BLOCK, BLOCK) == NEW


def test_a_volume_whose_end_failed_is_closed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = place.open()
    volume.write(BLOCK, NEW)
    refused = AccessDenied("the store refuses it", hint="Let it.")
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "delete", _raise(refused))
        with pytest.raises(AccessDenied):
            volume.close()
    volume.close()
    assert not notes(place)


def test_a_replay_that_is_refused_ends_and_keeps_the_journal(place: Place) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * 100 * BLOCK)
        volume.flush()
    with pytest.raises(AccessDenied):
        Volume.open(Refusing(place.bucket), "", place.without)
    assert place.files
    assert place.content(5 * BLOCK, BLOCK) == b"a" * BLOCK


def test_a_replay_can_be_stopped(place: Place) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Volume.open(place.store(), "", place.without, progress=stop)
    assert place.content(5 * BLOCK, BLOCK) == b"a" * BLOCK


def test_a_replay_waits_until_requests_of_the_dead_have_expired(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
    store = place.store()
    store.lasting = 5.0
    made_old(place, "*", 3600)
    made_old(place, "*.journal", 4)
    told: list[int] = []
    began = time.monotonic()
    Volume.open(store, "", place.without, progress=lambda done, total: told.append(done)).close()
    assert time.monotonic() - began >= 2.8
    assert told
    assert "for requests of its former mount" in caplog.text


def made_old(place: Place, names: str, seconds: float) -> None:
    """Let the files of the journal have been written so long ago."""
    for path in place.journals.rglob(names):
        os.utime(path, (time.time() - seconds, time.time() - seconds))


@pytest.mark.parametrize("stored", [False, True])
def test_it_waits_since_the_last_note_that_requests_were_under_way(
    place: Place, caplog: pytest.LogCaptureFixture, stored: bool
) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
        volume._driver.flush()
        if not stored:
            # Else nothing has to be replayed.
            volume.write(6 * BLOCK, b"b" * BLOCK)
    made_old(place, "*.journal", 3600)
    made_old(place, "busy", 4)
    store = place.store()
    store.lasting = 5.0
    began = time.monotonic()
    Volume.open(store, "", place.without).close()
    assert time.monotonic() - began >= 2.8
    assert "for requests of its former mount" in caplog.text


def test_it_does_not_wait_for_who_died_long_ago_or_never_wrote(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    def patient() -> DirectoryStore:
        store = place.store()
        store.lasting = 3600.0
        return store

    with place.killed():
        pass
    Volume.open(patient(), "", place.options).close()
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
    made_old(place, "*", 3700)
    # This computer may have been started a moment ago.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.clock_gettime", lambda clock: 1e6)
        Volume.open(patient(), "", place.options).close()
    assert "for requests of its former mount" not in caplog.text


def test_a_replay_that_was_killed_counts_as_requests(place: Place) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * 100 * BLOCK)
    made_old(place, "*", 3600)

    def stop(done: int, total: int) -> None:
        if len(place.objects) > 1:
            raise InterruptedError

    class Slow(DirectoryStore):
        def put(self, *args: Any, **more: Any) -> str:
            time.sleep(0.05)
            return super().put(*args, **more)

    with pytest.raises(InterruptedError):
        Volume.open(Slow(place.bucket), "", place.without, progress=stop)
    (note,) = place.journals.rglob("busy")
    assert note.stat().st_mtime > time.time() - 60


def test_where_nothing_can_be_stored_a_replay_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3backer.replaying._PATIENCE", 0.5)
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * 100 * BLOCK)
        volume.write(5 * BLOCK, b"b" * 100 * BLOCK)
    store = Failing(place.bucket)
    began = time.monotonic()
    with pytest.raises(StoreError, match="it fails"):
        Volume.open(store, "", place.without)
    assert time.monotonic() - began < 60
    # The workers have ended although each store that fails leads to the next one.
    assert store.closed
    assert place.content(5 * BLOCK, BLOCK) == b"b" * BLOCK


class Failing(DirectoryStore):
    """Takes no block, until it is closed."""

    closed = False

    def put(self, key: str, *args: Any, **more: Any) -> str:
        if parse_block_name(key) is not None:
            time.sleep(0.05)
            raise StoreError("it fails", hint="Wait.")
        return super().put(key, *args, **more)

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.mark.parametrize("what", ["note", "token"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_journal_given_up_by_a_request_whose_answer_was_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str, closed: bool
) -> None:
    """What is in the journal is not replayed, as it is older, and the token is removed at the end."""
    with place.killed() if not closed else place.open() as volume:
        disk = faulty(volume)
        volume.write(BLOCK, OLD)
        volume.flush()
        with monkeypatch.context() as patch, not_removable():
            if what == "note":
                patch.setattr(StoredNote, "put", _lost(StoredNote.put))
            else:
                patch.setattr("s3backer.holder.put_token", _disowned_and_lost)
            disk.sync_error = errno.EIO
            volume.write(BLOCK, NEW)
            with pytest.raises(StoreError, match="lost"):
                volume.flush()
        if not closed:
            # Nobody tries once more before the end.
            shutil.copytree(place.directory, place.directory / "then", ignore=left_out, copy_function=copy_unless_gone)
    if not closed:
        shutil.rmtree(place.bucket)
        (place.directory / "then" / "bucket").rename(place.bucket)
        place.put_back(place.directory / "then" / "journals")
        shutil.rmtree(place.directory / "then")
        assert read_token(place.store(), "") is not None
    assert place.content(BLOCK, BLOCK) == NEW
    assert read_token(place.store(), "") is None
    assert not place.files and not notes(place)


def _refuse(self: object, **_: object) -> None:
    raise JournalError("it cannot be emptied", hint="Look.")


def _disowned_and_lost(store: ObjectStore, prefix: str, token: MountToken, *, former: MountToken | None) -> MountToken:
    put = put_token(store, prefix, token, former=former)
    if not token.journal:
        raise StoreError("the answer was lost", hint="Wait.")
    return put


def _lost(request: Callable[..., None]) -> Callable[..., None]:
    """Let a request take effect, and its answer be lost."""

    def ask(self: object) -> None:
        request(self)
        raise StoreError("the answer was lost", hint="Wait.")

    return ask


@pytest.mark.parametrize(("block_size", "journal"), [(BLOCK, 1 << 60), (1 << 28, 1 << 40), (BLOCK, 1000)])
def test_sizes_that_cannot_be(tmp_path: Path, block_size: int, journal: int) -> None:
    store = MemoryStore()
    create_volume(store, "", size=block_size * 4, block_size=block_size)
    options = VolumeOptions(memory=8 << 30, threads=1, journal=journal, journal_directory=str(tmp_path))
    with pytest.raises(UsageError):
        Volume.open(store, "", options)
    assert read_token(store, "") is None


def test_nobody_mounts_what_is_being_erased(tmp_path: Path) -> None:
    """Also where nobody had it: a mount that begins meanwhile would lose what it flushes."""
    (tmp_path / "bucket").mkdir()
    store = DirectoryStore(tmp_path / "bucket")
    create_volume(store, "", size=SIZE, block_size=BLOCK)
    with Volume.open(DirectoryStore(tmp_path / "bucket"), "") as volume:
        volume.write(BLOCK, b"a" * 3 * BLOCK)
    met: list[BaseException] = []

    def look(erased: int) -> None:
        if (tmp_path / "bucket" / "00000000").exists():
            with pytest.raises(VolumeInUse) as refused:
                Volume.open(DirectoryStore(tmp_path / "bucket"), "")
            met.append(refused.value)

    erase_volume(store, "", progress=look)
    assert met
    assert read_token(store, "") is None
    assert not list((tmp_path / "bucket").glob("0*"))


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_the_directory_of_the_journal_goes_underneath(place: Place, how: str) -> None:
    """What was acknowledged comes into the bucket all the same."""
    with place.open() as volume:
        volume.write(BLOCK, b"a" * BLOCK)
        core = volume._keeper.journal.core if volume._keeper else None
        wait_until(lambda: core is not None and core.spares == 3, "its files are ready")
        if how == "moved":
            place.journals.rename(place.directory / "elsewhere")
        else:
            shutil.rmtree(place.journals)
        volume.write(2 * BLOCK, b"b" * BLOCK)
        volume.flush()
        assert volume.read(BLOCK, 2 * BLOCK) == b"a" * BLOCK + b"b" * BLOCK
    assert place.content(BLOCK, 2 * BLOCK) == b"a" * BLOCK + b"b" * BLOCK


def remove_all(path: Path) -> None:
    """Remove a directory into which files may come meanwhile."""
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)


def test_more_is_written_than_a_journal_holds_that_was_removed(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for a file that can never be made, and nobody can replay what somebody brings back."""
    with place.killed(journal=512 << 10, write_delay=0.05) as volume:
        volume.write(0, b"a" * BLOCK)
        volume.flush()
        kept = place.directory / "kept"
        shutil.copytree(place.journals, kept, ignore=left_out, copy_function=copy_unless_gone)
        remove_all(place.journals)
        for number in range(400):
            volume.write(number % (SIZE // BLOCK) * BLOCK, bytes([number % 251]) * BLOCK)
        volume.flush()
        token = read_token(place.store(), "")
        assert token is not None and not token.journal
    assert "writes go on without a journal" in caplog.text
    assert "no room" not in caplog.text and "the 0 blocks" not in caplog.text
    shutil.rmtree(place.journals, ignore_errors=True)
    kept.rename(place.journals)
    # Its note of whose the token is could not be made: otherwise the next mount looks for a minute whether it lives.
    place.store().delete(TOKEN_NAME)
    with place.open() as volume:
        for number in range(400):
            assert volume.read(number * BLOCK, 1) == bytes([number % 251])


def test_a_removed_journal_ends_quietly_with_its_mount(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.open() as volume:
        volume.write(BLOCK, b"a" * BLOCK)
        remove_all(place.journals)
    assert "recover --discard" not in caplog.text
    assert read_token(place.store(), "") is None
    assert place.content(BLOCK, BLOCK) == b"a" * BLOCK


def test_a_lock_that_somebody_has_removed_keeps_nothing(place: Place) -> None:
    with place.open() as volume:
        volume.write(BLOCK, b"a" * BLOCK)
        for lock in place.journals.glob("*/lock"):
            lock.unlink()
    assert not place.files
    assert place.content(BLOCK, BLOCK) == b"a" * BLOCK


def test_fsync_waits_for_the_bucket_where_the_journal_was_removed(place: Place) -> None:
    """From files without names nobody could recover what it would have promised."""
    with place.open() as volume:
        remove_all(place.journals)
        volume.write(BLOCK, b"a" * BLOCK)
        volume.flush()
        assert block_name(1) in place.objects


@pytest.mark.parametrize("journal", [4 << 20, 0])
def test_a_journal_whose_files_are_gone_is_missed(place: Place, journal: int) -> None:
    with place.killed() as volume:
        volume.write(BLOCK, b"x" * BLOCK)
        volume.flush()
    assert place.files
    kept = place.directory / "kept"
    kept.mkdir()
    files = [(path, path.rename(kept / path.name)) for path in place.files]
    for _ in range(2):
        with pytest.raises(JournalError, match="has no files any more") as caught:
            place.open(journal=journal)
        assert f"--journal-directory {place.journals} --discard" in caught.value.hint
        with pytest.raises(JournalError, match="has no files any more"):
            recovered(place, force=True)
        with opened_recoverer(place) as recoverer, pytest.raises(JournalError, match="has no files any more"):
            recoverer.save(str(place.directory / "saved"))
    assert not (place.directory / "saved").exists()
    assert read_token(place.store(), "") is not None
    for path, moved in files:
        shutil.copy2(moved, path)
    assert place.content(BLOCK, BLOCK, journal=journal) == b"x" * BLOCK
    with place.killed() as volume:
        volume.write(BLOCK, b"y" * BLOCK)
    for path in place.files:
        path.unlink()
    with opened_recoverer(place) as recoverer:
        # Nobody knows what was in it.
        assert recoverer.discard() is None
    assert place.content(BLOCK, BLOCK, journal=journal) == b"x" * BLOCK
    assert read_token(place.store(), "") is None


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """A disk at ``path`` on which there is no room."""
    path.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", path], check=False).returncode:
        pytest.skip("needs root, to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), open(path / "rest", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_keeps_nobody_from_mounting_without_a_journal(place: Place) -> None:
    with full_disk(place.journals):
        for dead in (False, True):
            if dead:
                with place.killed(journal=0) as volume:
                    volume.write(BLOCK, b"x" * BLOCK)
            else:
                place.open(journal=0).close()
            fill(place.journals)
            with place.open(journal=0) as volume:
                volume.write(BLOCK, b"z" * BLOCK)
            assert place.content(BLOCK, BLOCK, journal=0) == b"z" * BLOCK
            with pytest.raises(JournalError, match=r"has no room for .*: No space left"):
                place.open()
            (place.journals / "rest").unlink()


def test_what_is_in_a_journal_on_a_full_disk_can_be_recovered(place: Place) -> None:
    # In the other directory it is not known to be dead: it is watched for a term.
    with place.killed(lease=2.0) as volume:
        volume.write(BLOCK, b"x" * BLOCK)
    path, files = Path(place_of_journal(place.store(), "", place.options)), place.files
    size = sum(file.stat().st_size for file in files)
    kept = place.directory / "kept"
    place.journals.rename(kept)
    with full_disk(place.journals):
        subprocess.run(["mount", "-o", f"remount,size={size + 65536}", place.journals], check=True)
        shutil.copytree(kept / path.name, path)
        fill(place.journals)
        assert recovered(place).blocks == 1
        assert not place.files
        assert place.content(BLOCK, BLOCK, journal=0) == b"x" * BLOCK


@pytest.mark.parametrize("killed", [False, True])
def test_a_journal_ends_where_no_more_files_can_be_made(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, killed: bool
) -> None:
    """As where a quota of inodes is used up."""

    def refuse(self: System, name: str, directory: int) -> int:
        if os.access(name, os.F_OK, dir_fd=directory):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with place.killed() if killed else place.open() as volume:
        volume.write(BLOCK, b"x" * BLOCK)
        volume.flush()
        if not killed:
            monkeypatch.setattr(System, "create", refuse)
    if killed:
        monkeypatch.setattr(System, "create", refuse)
        with opened_recoverer(place) as recoverer:
            assert recoverer.discard() == 1
    assert not place.files and "cannot be emptied" not in caplog.text
    assert read_token(place.store(), "") is None
    assert place.content(BLOCK, 1, journal=0) == (b"\0" if killed else b"x")


def test_two_hosts_of_the_same_name(ended: Place, tmp_path: Path) -> None:
    """What tells them apart is the directory and the start of the host, not what the host is called."""
    found = read_token(ended.store(), "")
    assert found is not None and found.home and found.host == socket.gethostname()
    elsewhere = str(tmp_path / "other")
    with _alive(ended) as end:
        with pytest.raises(VolumeInUse, match="journal in"):
            ended.open(journal_directory=elsewhere)
        end()
        # Nor when that mount is silent.
        with pytest.raises(VolumeInUse, match="journal in"):
            ended.open(journal_directory=elsewhere)
    again = read_token(ended.store(), "")
    assert again is not None and again.host == found.host
    assert ended.files


@pytest.mark.parametrize("fenced", [False, True])
def test_a_silent_mount_without_a_journal_on_a_host_of_the_same_name(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, fenced: bool
) -> None:
    """It is taken for another host's: where nothing can tell that its writes are over, left alone, else watched."""
    place.options = replace(place.options, journal=0, lease=SHORT)
    with place.killed() as volume:
        volume.write(BLOCK, b"data")
        volume.flush()
    found = read_token(place.store(), "")
    assert found is not None and found.home and not found.journal and found.host == socket.gethostname()
    elsewhere = replace(place.options, journal_directory=str(tmp_path / "other"))
    store = place.store()
    store.fenced = fenced
    if fenced:
        began = time.monotonic()
        Volume.open(store, "", elsewhere).close()
        assert time.monotonic() - began >= SHORT
        assert "by a mount that has died; taking it over" in caplog.text
        return
    with pytest.raises(VolumeInUse, match="is mounted by"):
        Volume.open(store, "", elsewhere)
    assert read_token(place.store(), "") == found
    # Where it is noted that it is this host's, nobody has to be asked.
    assert place.content(BLOCK, 4) == b"data"


def test_a_volume_in_use_is_called_that_although_the_store_is_away(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.open():

        def away(*_: object, **__: object) -> None:
            raise StoreUnreachable("the store cannot be reached", hint="Wait.")

        monkeypatch.setattr("s3backer.inheriting.read_token", away)
        with pytest.raises(VolumeInUse, match="in use by another process"):
            place.open()
