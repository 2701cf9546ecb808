"""A volume that goes on with the journal of a mount that has died: at once, and without storing too early."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from s3backer.errors import JournalDamaged, JournalError, ReadOnlyVolume, S3backerError, StoreError, VolumeInUse
from s3backer.journal.files import JournalDirectory
from s3backer.layouts.classic import META_BLOCK_SIZE, META_SIZE, block_name
from s3backer.layouts.token import claim_token, new_token, put_token, read_token, remove_token
from s3backer.left_journal import place_of_journal
from s3backer.recovery import Recoverer
from s3backer.stores.directory import DirectoryStore
from s3backer.volume import Volume
from tests.support.mounts import wait_until
from tests.support.places import BLOCK, LASTING, SIZE, Place, Watched, opened, shortened
from tests.support.power_loss import FaultyDisk


def test_it_serves_at_once_and_stores_later(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * 3 * BLOCK)
        volume.write(9 * BLOCK + 512, b"b" * 100)
    began = time.monotonic()
    store = Watched(place, LASTING)
    volume = opened(place, store)
    assert volume.read(5 * BLOCK, 3 * BLOCK) == b"a" * 3 * BLOCK
    assert volume.read(9 * BLOCK, BLOCK) == bytes(512) + b"b" * 100 + bytes(BLOCK - 612)
    assert volume.unsaved == 4
    volume.write(6 * BLOCK, b"c" * BLOCK)
    volume.write(20 * BLOCK, b"d" * BLOCK)
    volume.flush()
    # Unless it took that long.
    assert store.writes == [] or time.monotonic() - began > LASTING
    assert 0 < volume.settles_in <= LASTING + 2
    told: list[float] = []
    volume.close(waits=told.append)
    assert told
    assert min(when for when, _ in store.writes) - began >= LASTING - 0.5
    assert {block for _, block in store.writes} == {5, 6, 7, 9, 20}
    assert not place.files
    assert place.content(5 * BLOCK, 3 * BLOCK) == b"a" * BLOCK + b"c" * BLOCK + b"a" * BLOCK
    assert "4 blocks of the mount that began at" in caplog.text
    assert "all that the former mount had left is stored" in caplog.text


def test_killed_again_before_anything_was_stored(place: Place) -> None:
    content = bytearray(SIZE)
    source = random.Random(5)
    for turn in range(4):
        with place.killed() as volume:
            shortened(volume)
            assert volume.read(0, SIZE) == content, f"turn {turn}"
            for _ in range(20):
                length = source.randint(1, 3 * BLOCK)
                offset = source.randrange(SIZE - length)
                data = source.choice([bytes(length), source.randbytes(length)])
                content[offset : offset + length] = data
                volume.write(offset, data)
    assert place.content(0, SIZE) == content


def test_more_than_fits_into_memory(place: Place) -> None:
    """It comes into memory little by little, while others write there."""
    content = bytearray(SIZE)
    source = random.Random(7)
    with place.killed(journal=16 << 20) as volume:
        for block in source.sample(range(SIZE // BLOCK), 900):
            start = source.randrange(0, BLOCK, 512)
            data = source.randbytes(source.randint(1, BLOCK - start))
            volume.write(block * BLOCK + start, data)
            content[block * BLOCK + start : block * BLOCK + start + len(data)] = data
    with opened(place, Watched(place, 0.0), memory=1 << 20, journal=8 << 20) as volume:
        assert volume._slab.slots < 300
        for _ in range(200):
            block = source.randrange(SIZE // BLOCK)
            data = source.randbytes(source.choice([100, BLOCK]))
            volume.write(block * BLOCK, data)
            content[block * BLOCK : block * BLOCK + len(data)] = data
            block = source.randrange(SIZE // BLOCK)
            assert volume.read(block * BLOCK, BLOCK) == content[block * BLOCK : (block + 1) * BLOCK]
        assert volume.read(0, SIZE) == content
        wait_until(lambda: volume._keeper is not None and volume._keeper.journal.core.left == 0, "all is stored")
    assert place.content(0, SIZE) == content


def test_an_encrypted_volume(secret: Place) -> None:
    with secret.killed() as volume:
        volume.write(5 * BLOCK + 100, b"nobody may read this" * 300)
    with opened(secret, Watched(secret, 0.0)) as volume:
        assert volume.read(5 * BLOCK + 100, 6000) == b"nobody may read this" * 300
    assert secret.content(5 * BLOCK + 100, 6000) == b"nobody may read this" * 300


def test_a_late_request_is_seen_by_nobody(place: Place) -> None:
    """Whether it comes before a block is read, or after, nothing but what was acknowledged is read or stays."""
    old, new = b"o" * BLOCK, b"n" * BLOCK
    with place.killed() as volume:
        for block in range(1, 7):
            volume.write(block * BLOCK, old)
        volume.flush()
        for block in range(1, 7):
            volume.write(block * BLOCK + 512, new[:512])
        volume.write(7 * BLOCK + 512, new[:512])
    now = old[:512] + new[:512] + old[1024:]
    store = Watched(place, 3600.0)
    volume = opened(place, store)
    for block in range(1, 7):
        if block % 2:
            store.late_put(block, old)
        assert volume.read(block * BLOCK, BLOCK) == now
        store.late_put(block, old)
        # Not from memory.
        volume._slab.drop_from(0)
        assert volume.read(block * BLOCK, BLOCK) == now
    # One of which the journal has not all that it was to become.
    part = bytes(512) + new[:512] + bytes(BLOCK - 1024)
    assert volume.read(7 * BLOCK, BLOCK) == part
    store.late_put(7, part)
    volume._slab.drop_from(0)
    assert volume.read(7 * BLOCK, BLOCK) == part
    store.late_put(7, part)
    for block in (1, 2, 7):
        volume.discard(block * BLOCK, BLOCK)
    for block in (3, 4):
        volume.write(block * BLOCK, bytes(BLOCK))
    shortened(volume).close()
    assert place.objects == {block_name(0), block_name(5), block_name(6)}
    assert place.content(0, 7 * BLOCK) == bytes(5 * BLOCK) + 2 * now


def test_zeros_over_what_is_left_are_not_skipped(place: Place) -> None:
    with place.killed() as volume:
        volume.write(40 * BLOCK, b"x" * BLOCK)
    volume = opened(place, Watched(place, 3600.0))
    # Were it not for the journal, all of it would be known to be absent.
    volume._layout.presence.learn(1, SIZE // BLOCK, (), set())
    volume.discard(BLOCK, SIZE - BLOCK)
    assert volume.read(40 * BLOCK, BLOCK) == bytes(BLOCK)
    shortened(volume).close()
    assert place.content(40 * BLOCK, BLOCK) == bytes(BLOCK)
    assert place.objects <= {block_name(0)}


def uncovered(place: Place) -> None:
    """Let the token not say that the journal has all."""
    store = place.store()
    found = read_token(store, "")
    assert found is not None and found.covered
    claim_token(store, "", "", replace(found, covered=False), former=found)


def elsewhere(place: Place) -> None:
    """Let the host have been started anew."""
    store = place.store()
    found = read_token(store, "")
    assert found is not None
    claim_token(store, "", "", replace(found, home="another start", lease=1.0), former=found)


def resizing(place: Place) -> None:
    """Let a PUT of block 0 with another size be under way."""


@pytest.mark.parametrize("why", [uncovered, elsewhere, resizing])
def test_where_the_journal_does_not_know_all_it_waits(place: Place, why: Callable[[Place], None]) -> None:
    """Before anybody may read: what the former mount had sent could change what was read."""
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
        if why is resizing:
            volume._resizer._note()
    why(place)
    told: list[int] = []
    began = time.monotonic()
    volume = Volume.open(Watched(place), "", place.options, progress=lambda done, total: told.append(done))
    assert time.monotonic() - began >= LASTING - 0.5
    assert told
    with volume:
        assert volume.read(5 * BLOCK, BLOCK) == b"a" * BLOCK
        assert volume.settles_in == 0.0


def test_a_size_that_was_changed_is_known_all_the_same(place: Place) -> None:
    with place.killed() as volume:
        volume.resize(SIZE + (1 << 20))
        volume.write(5 * BLOCK, b"a" * BLOCK)
    began = time.monotonic()
    volume = shortened(opened(place, Watched(place, 3600.0)))
    assert time.monotonic() - began < 60
    with volume:
        assert volume.size == SIZE + (1 << 20)


def test_what_lies_beyond_the_end_goes(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.killed() as volume:
        volume.write(SIZE - BLOCK, b"z" * BLOCK)
        volume.write(BLOCK, b"a" * BLOCK)
    with pytest.raises(JournalError, match=r"holds of 1 block lies beyond the end .* if its size is 2MiB"):
        opened(place, size=SIZE // 2, force=True)
    # Where the volume itself says so they go.
    metadata = {META_BLOCK_SIZE: str(BLOCK), META_SIZE: str(SIZE // 2)}
    place.store().put(block_name(0), bytes(BLOCK), metadata=metadata)
    with opened(place, Watched(place, 0.0)) as volume:
        assert volume.size == SIZE // 2
        assert volume.read(BLOCK, BLOCK) == b"a" * BLOCK
    assert "1 blocks of that mount lay beyond the volume's end" in caplog.text
    assert place.objects == {block_name(0), block_name(1)} or place.objects == {block_name(1)}


def test_a_disk_without_room_for_more_files_gets_rid_of_those_first(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
    monkeypatch.setattr(JournalDirectory, "room", lambda self: 1 << 16)
    with opened(place, Watched(place, 0.0)) as volume:
        assert volume.unsaved == 0
        assert volume.read(5 * BLOCK, BLOCK) == b"a" * BLOCK
    assert "1 blocks of the mount that began at" in caplog.text and "were recovered" in caplog.text


@pytest.mark.parametrize(
    "where", ["s3backer.volume.Driver", "s3backer.volume_journal.Keeper", "s3backer.volume.Statistics"]
)
def test_an_opening_that_fails_leaves_all_as_it_was(place: Place, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
    before = threading.active_count()

    def fail(*args: object, **more: object) -> None:
        raise StoreError("it fails", hint="Look.")

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(StoreError, match="it fails"):
            opened(place, Watched(place, 0.0))
    assert threading.active_count() == before
    assert place.files
    assert place.content(5 * BLOCK, BLOCK) == b"a" * BLOCK


def test_who_loses_the_volume_meanwhile_stores_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
    store = Watched(place, 3600.0)
    volume = opened(place, store)
    other = place.store()
    token = claim_token(other, "", "", new_token(random.Random(1)), former=read_token(other, ""))
    assert volume._holder is not None
    with pytest.raises(VolumeInUse):
        volume._holder.renew()
    volume._holder._lose(VolumeInUse("it is another's", hint=""))
    with pytest.raises(ReadOnlyVolume):
        volume.write(0, b"x")
    with pytest.raises(VolumeInUse, match="1 blocks that were written here are not in the bucket"):
        shortened(volume).close()
    remove_token(other, "", token)
    assert not store.writes
    assert place.files
    with JournalDirectory(place_of_journal(other, "", place.options)) as directory:
        assert Recoverer(other, "", place.options, directory).replay(force=True).blocks == 1
    assert place.content(5 * BLOCK, BLOCK) == b"a" * BLOCK


def test_the_journal_fails_before_all_is_stored(place: Place) -> None:
    """Then what it has comes into the bucket as well, and it is retired."""
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * 20 * BLOCK)
    store = Watched(place, 0.0)
    store.failing = True
    volume = opened(place, store)
    assert volume._keeper is not None
    disk = FaultyDisk(volume._keeper.journal.core)
    disk.sync_error = errno.EIO
    volume.write(6 * BLOCK, b"b" * BLOCK)
    with pytest.raises(S3backerError):
        volume.flush()
    store.failing = False
    wait_until(lambda: not place.files, "the journal is retired")
    assert volume.unsaved == 0
    volume.flush()
    volume.close()
    assert place.content(5 * BLOCK, 20 * BLOCK) == b"a" * BLOCK + b"b" * BLOCK + b"a" * 18 * BLOCK


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, the store takes no token."""
    away = threading.Event()

    def put(*args: Any, **more: Any) -> Any:
        if away.is_set():
            raise StoreError("it is away", hint="Wait.")
        return put_token(*args, **more)

    monkeypatch.setattr("s3backer.holder.put_token", put)
    monkeypatch.setattr("s3backer.journal.keeper._RETRY", 0.1)
    return away


def is_covered(store: DirectoryStore) -> bool:
    token = read_token(store, "")
    return token is not None and token.covered


@contextmanager
def covered(place: Place, away: threading.Event) -> Iterator[tuple[Watched, Volume, FaultyDisk]]:
    """A volume whose token says that the journal has all, and from now on cannot be changed; and the journal's disk."""
    store = Watched(place, 0.0)
    with opened(place, store, write_delay=0.05) as volume:
        assert volume._keeper is not None and is_covered(store)
        away.set()
        yield store, volume, FaultyDisk(volume._keeper.journal.core)


def test_nothing_new_is_stored_before_others_can_see_that_the_journal_has_failed(
    place: Place, away: threading.Event
) -> None:
    with covered(place, away) as (store, volume, disk):
        disk.sync_error = errno.EIO
        volume.write(5 * BLOCK, b"a" * BLOCK)
        wait_until(lambda: volume._keeper is not None and volume._keeper.failure is not None, "it has failed")
        store.writes.clear()
        volume.write(6 * BLOCK, b"b" * BLOCK)
        time.sleep(0.5)
        assert store.writes == []
        assert volume.unsaved
        away.clear()
        volume.flush()
        assert {block for _, block in store.writes} >= {6}
        assert not is_covered(store)


def test_nor_that_it_had_no_room_for_what_memory_has(
    place: Place, away: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where each write takes new room (btrfs): the write waits, but its block could be stored."""
    monkeypatch.setattr("s3backer.journal.service._RETRY", 0.3)
    with covered(place, away) as (store, volume, disk):
        disk.write_error = errno.ENOSPC
        writer = threading.Thread(target=volume.write, args=(6 * BLOCK, b"b" * BLOCK))
        writer.start()
        wait_until(lambda: volume._slab.unsaved == 1, "memory has it")
        time.sleep(0.5)
        assert store.writes == [] and writer.is_alive()
        away.clear()
        wait_until(lambda: store.writes, "it is stored")
        assert not is_covered(store)
        disk.write_error = 0
        writer.join(30)
        assert not writer.is_alive()
    assert place.content(6 * BLOCK, BLOCK) == b"b" * BLOCK


def test_a_record_that_went_bad_meanwhile_is_an_error_and_nothing_else_waits_for_it(place: Place) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
        volume.write(6 * BLOCK, b"b" * BLOCK)
    store = Watched(place, 3600.0)
    volume = opened(place, store)
    for file in place.files:
        content = file.read_bytes()
        at = content.find(b"a" * BLOCK)
        if at >= 0:
            with file.open("r+b") as opened_file:
                opened_file.seek(at + 7)
                opened_file.write(b"?")
    with pytest.raises(JournalDamaged, match="which is a part of block 5"):
        volume.read(5 * BLOCK, BLOCK)
    shortened(volume)
    wait_until(lambda: block_name(6) in place.objects, "the other one is stored")
    assert block_name(5) not in place.objects
    # Written anew it is needed no more.
    volume.write(5 * BLOCK, b"c" * BLOCK)
    volume.close()
    assert place.content(5 * BLOCK, 2 * BLOCK) == b"c" * BLOCK + b"b" * BLOCK


def test_what_cannot_be_stored_stays_in_the_journal_at_the_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end says so, and the next mount goes on with it."""
    monkeypatch.setattr("s3backer.driver._STUCK", 0.5)
    place.store().put(block_name(8), b"too short to be a block")
    volume = opened(place, Watched(place, 0.0))
    volume.write(8 * BLOCK + 512, b"a" * 512)
    volume.write(9 * BLOCK, b"b" * BLOCK)
    with pytest.raises(StoreError, match=r"1 blocks of .* cannot be stored: object '00000008'"):
        volume.close()
    assert block_name(9) in place.objects
    assert place.files
    with opened(place, Watched(place, 0.0)) as volume:
        volume.write(8 * BLOCK, b"c" * BLOCK)
    assert not place.files
    assert place.content(8 * BLOCK, BLOCK) == b"c" * BLOCK


def test_so_does_a_part_of_a_block_whose_object_has_vanished(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of that block is lost: waiting would not bring it back."""
    monkeypatch.setattr("s3backer.driver._STUCK", 0.5)
    place.store().put(block_name(8), b"o" * BLOCK)
    volume = opened(place, Watched(place, 0.0))
    wait_until(lambda: bool(volume.facts()["surveyed"]), "it knows which objects there are")
    place.store().delete(block_name(8))
    volume.write(8 * BLOCK + 512, b"a" * 512)
    with pytest.raises(StoreError, match=r"1 blocks of .* cannot be stored: object '00000008' was in .* has vanished"):
        volume.close()
    assert place.files


def test_an_outage_at_the_end_is_waited_for_although_something_is_damaged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is damaged is left to the journal; the rest has to wait, and is waited for."""
    monkeypatch.setattr("s3backer.driver._STUCK", 0.5)
    place.store().put(block_name(8), b"too short to be a block")
    store = Watched(place, 0.0)
    volume = opened(place, store)
    store.failing = True
    volume.write(8 * BLOCK + 512, b"a" * 512)
    volume.write(20 * BLOCK, b"b" * 30 * BLOCK)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(volume.close)
        time.sleep(4.0)
        ended, store.failing = closing.done(), False
        assert not ended
        with pytest.raises(StoreError, match=r"1 blocks of .* cannot be stored: object '00000008'"):
            closing.result(60)
    assert all(block_name(block) in place.objects for block in range(20, 50))


def test_a_journal_that_fails_and_has_something_damaged_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in it alone, and cannot be read, is not to be waited for; all else is stored."""
    monkeypatch.setattr("s3backer.driver._STUCK", 0.5)
    data = os.urandom(BLOCK)
    with place.killed() as volume:
        volume.write(5 * BLOCK, data)
    # What was left is not touched for so long.
    volume = opened(place, Watched(place, 3.0))
    (path,) = [path for path in place.files if data in path.read_bytes()]
    with path.open("r+b") as file:
        file.seek(path.read_bytes().index(data) + 100)
        file.write(b"????")
    assert volume._keeper is not None
    FaultyDisk(volume._keeper.journal.core).sync_error = errno.EIO
    volume.write(9 * BLOCK, b"z" * BLOCK)
    with pytest.raises(S3backerError):
        volume.flush()
    with pytest.raises(StoreError, match=r"1 blocks of .* cannot be stored") as caught:
        volume.close()
    assert block_name(9) in place.objects
    # With what is in it the next mount would put back what was written after it had failed.
    assert path.exists() and "which has failed" in caught.value.hint
    assert "--to FILE" in caught.value.hint and "--discard" in caught.value.hint


def test_a_journal_that_grew_by_being_killed_again_and_again_is_replayed(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with place.killed() as volume:
        volume.write(BLOCK, b"a" * BLOCK)
    monkeypatch.setattr("s3backer.recovery._MOST", 0)
    assert place.content(BLOCK, BLOCK) == b"a" * BLOCK
    assert "were recovered" in caplog.text


def test_an_outage_does_not_end_it(place: Place) -> None:
    with place.killed() as volume:
        volume.write(5 * BLOCK, b"a" * 50 * BLOCK)
    store = Watched(place, 0.0)
    store.failing = True
    with opened(place, store) as volume:
        wait_until(lambda: len(store.writes) > 5, "stores have failed")
        assert volume.read(5 * BLOCK, 50 * BLOCK) == b"a" * 50 * BLOCK
        store.failing = False
    assert not place.files
    assert place.content(5 * BLOCK, 50 * BLOCK) == b"a" * 50 * BLOCK


def test_a_journal_that_goes_on_may_have_another_size(place: Place) -> None:
    with place.killed(journal=16 << 20) as volume:
        volume.write(5 * BLOCK, b"a" * BLOCK)
    with place.killed(journal=2 << 20) as volume:
        for turn in range(3):
            volume.write(BLOCK, bytes([turn + 1]) * (SIZE - BLOCK))
    assert place.content(BLOCK, SIZE - BLOCK) == b"\3" * (SIZE - BLOCK)
    assert not place.files


def test_shrinking_waits_for_what_is_left(place: Place) -> None:
    with place.killed() as volume:
        volume.write(SIZE - BLOCK, b"a" * BLOCK)
    with opened(place, Watched(place, 1.0)) as volume:
        with pytest.raises(S3backerError, match="data lies beyond the new end"):
            volume.resize(SIZE - BLOCK)
        volume.resize(SIZE - BLOCK, discard=True)
        assert volume.size == SIZE - BLOCK


def test_a_note_needs_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.open() as volume:
        assert volume._keeper is not None
        monkeypatch.setattr(volume._keeper.journal, "intend", lambda *args: False)
        with pytest.raises(JournalError, match="no room for a note"):
            volume.resize(SIZE + BLOCK)
        assert volume.size == SIZE
