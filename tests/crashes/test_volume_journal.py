"""A volume with a journal that ends uncleanly, driven as a library over a directory.

The end is a copy of the bucket and of the journal, as they are at some moment; the volume is then closed, and the copy
put in their place: that is what a process that was killed at that moment has left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3backer.admin import create_volume, erase_volume
from s3backer.codec.choice import EncodingOptions
from s3backer.errors import (
    AccessDenied,
    JournalError,
    ReadOnlyVolume,
    S3backerError,
    StoreError,
    UsageError,
    VolumeInUse,
    WrongPassword,
)
from s3backer.journal.files import JournalDirectory
from s3backer.layouts.classic import parse_block_name
from s3backer.layouts.token import TOKEN_NAME, MountToken, claim_token, read_token, write_token
from s3backer.opening import VolumeOptions
from s3backer.recovery import Recoverer, Recovery, place_of_journal
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.memory import MemoryStore
from s3backer.volume import Volume
from tests.support.mounts import wait_until
from tests.support.power_loss import FaultyDisk

BLOCK = 4096
SIZE = 4 << 20
NEVER = 3600.0
SECRET = EncodingOptions(encrypt="AES-256-CBC", password="correct horse")


def _leave_out(path: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "copy" or name.endswith(".spare")}


def _copy(source: str, target: str) -> None:
    # A file that is being prepared gets its name meanwhile; nothing is in it yet.
    with contextlib.suppress(FileNotFoundError):
        shutil.copy(source, target)


class Place:
    """A bucket and the directory of its journal."""

    def __init__(self, directory: Path, encoding: EncodingOptions) -> None:
        self.directory = directory
        self.bucket, self.journals = directory / "bucket", directory / "journals"
        self.bucket.mkdir()
        self.options = VolumeOptions(
            memory=8 << 20,
            threads=4,
            write_delay=NEVER,
            journal=4 << 20,
            journal_directory=str(self.journals),
            encoding=encoding,
        )
        store = self.store()
        create_volume(store, "", size=SIZE, block_size=BLOCK, encoding=encoding)
        store.close()

    def store(self) -> DirectoryStore:
        return DirectoryStore(self.bucket)

    def open(self, **changes: Any) -> Volume:
        return Volume.open(self.store(), "", replace(self.options, **changes))

    @contextmanager
    def killed(self, **changes: Any) -> Iterator[Volume]:
        """Open the volume; it ends as if its process had been killed at the end of the block."""
        copy = self.directory / "copy"
        volume = self.open(**changes)
        try:
            yield volume
            shutil.copytree(self.directory, copy, ignore=_leave_out, copy_function=_copy)
        finally:
            volume.close()
        for name in ("bucket", "journals"):
            shutil.rmtree(self.directory / name)
            (copy / name).rename(self.directory / name)
        shutil.rmtree(copy)

    def content(self, offset: int, length: int, **changes: Any) -> bytes:
        with self.open(**changes) as volume:
            return volume.read(offset, length)

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.journals.rglob("*.journal"))

    @property
    def objects(self) -> set[str]:
        return {path.name for path in self.bucket.iterdir() if parse_block_name(path.name) is not None}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, EncodingOptions())


@pytest.fixture
def secret(tmp_path: Path) -> Place:
    return Place(tmp_path, SECRET)


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
        assert "That mount is alive" in caught.value.hint
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


def test_where_its_files_cannot_be_removed_either_the_token_changes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.killed() as volume:
        disk = faulty(volume)
        volume.write(BLOCK, b"old" + bytes(BLOCK - 3))
        volume.flush()
        before = read_token(place.store(), "")

        with monkeypatch.context() as patch:
            patch.setattr(JournalDirectory, "remove_all", _refuse)
            disk.sync_error = errno.EIO
            volume.write(BLOCK, b"new" + bytes(BLOCK - 3))
            volume.flush()
        after = read_token(place.store(), "")
        assert before is not None and after is not None
        assert before.value != after.value
        files = place.files
    assert files and place.files == files
    # Nobody else replays it, and this host does not need to.
    with pytest.raises(VolumeInUse):
        place.open(journal_directory=str(place.directory / "elsewhere"))
    assert place.content(BLOCK, 3) == b"new"
    assert not place.files


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
    assert writer.is_alive()
    other = write_token(
        Shared(store), "", "", replace=read_token(Shared(store), ""), random_source=random.Random(1), lease=60.0
    )
    assert first._holder is not None
    with pytest.raises(VolumeInUse):
        first._holder.confirm()
    puts: list[object] = []
    monkeypatch.setattr(store, "put", lambda *_, **__: puts.append(1))
    writer.join(20)
    assert answers == [VolumeInUse]
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
    with place.killed() as volume:
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


def recovered(place: Place, *, force: bool = False) -> Recovery:
    store = place.store()
    directory = JournalDirectory(place_of_journal(store, "", place.options))
    try:
        return Recoverer(store, "", place.options, directory).replay(force=force)
    finally:
        directory.close()


class Refusing(DirectoryStore):
    """Takes nothing."""

    def put(self, *_: Any, **__: Any) -> str:
        raise AccessDenied("the store refuses it", hint="Look.")


def test_a_replay_that_is_refused_ends_and_keeps_the_journal(place: Place) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * 100 * BLOCK)
        volume.flush()
    with pytest.raises(AccessDenied):
        Volume.open(Refusing(place.bucket), "", place.options)
    assert place.files
    assert place.content(5 * BLOCK, BLOCK) == b"a" * BLOCK


def test_a_replay_can_be_stopped(place: Place) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Volume.open(place.store(), "", place.options, progress=stop)
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
    Volume.open(store, "", place.options, progress=lambda done, total: told.append(done)).close()
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
    Volume.open(store, "", place.options).close()
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

    with pytest.raises(InterruptedError):
        Volume.open(place.store(), "", place.options, progress=stop)
    (note,) = place.journals.rglob("busy")
    assert note.stat().st_mtime > time.time() - 60


def test_where_nothing_can_be_stored_a_replay_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3backer.recovery._PATIENCE", 0.5)
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * 100 * BLOCK)
        volume.write(5 * BLOCK, b"b" * 100 * BLOCK)
    store = Failing(place.bucket)
    began = time.monotonic()
    with pytest.raises(StoreError, match="it fails"):
        Volume.open(store, "", place.options)
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


def test_a_token_changed_by_a_request_whose_answer_was_lost(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the journal is not replayed, as it is older, and the token is removed at the end."""
    for closed in (False, True):
        before = place.directory / "before"
        shutil.copytree(place.bucket, before)
        with place.killed() if not closed else place.open() as volume:
            disk = faulty(volume)
            volume.write(BLOCK, b"old" + bytes(BLOCK - 3))
            volume.flush()
            with monkeypatch.context() as patch:
                patch.setattr(JournalDirectory, "remove_all", _refuse)
                patch.setattr("s3backer.holder.claim_token", _lost(claim_token))
                disk.sync_error = errno.EIO
                volume.write(BLOCK, b"new" + bytes(BLOCK - 3))
                with pytest.raises(StoreError, match="lost"):
                    volume.flush()
            if not closed:
                # Nobody tries once more before the end.
                shutil.copytree(place.directory, place.directory / "then", ignore=_leave_out, copy_function=_copy)
        if not closed:
            for name in ("bucket", "journals"):
                shutil.rmtree(place.directory / name)
                (place.directory / "then" / name).rename(place.directory / name)
            assert read_token(place.store(), "") is not None
        assert place.content(BLOCK, 3) == b"new"
        assert read_token(place.store(), "") is None
        assert not place.files
        shutil.rmtree(before)


def _refuse(self: object) -> None:
    raise JournalError("it cannot be emptied", hint="Look.")


def _lost(claim: Callable[..., MountToken]) -> Callable[..., MountToken]:
    def put(*args: Any, **more: Any) -> MountToken:
        claim(*args, **more)
        raise StoreError("the answer was lost", hint="Wait.")

    return put


@pytest.mark.parametrize(("block_size", "journal"), [(BLOCK, 1 << 60), (1 << 28, 1 << 40), (BLOCK, 1000)])
def test_sizes_that_cannot_be(tmp_path: Path, block_size: int, journal: int) -> None:
    store = MemoryStore()
    create_volume(store, "", size=block_size * 4, block_size=block_size)
    options = VolumeOptions(memory=8 << 30, threads=1, journal=journal, journal_directory=str(tmp_path))
    with pytest.raises(UsageError):
        Volume.open(store, "", options)
    assert read_token(store, "") is None
