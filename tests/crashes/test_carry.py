"""Blocks that can never be stored, as their objects are damaged: the journal keeps what was written to them.

Its files go in the order in which they were written, so what such a block needs is carried into a newer one, and nobody
else has to wait.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from s3backer.codec.choice import EncodingOptions
from s3backer.errors import S3backerError, StoreUnreachable
from s3backer.layouts.classic import block_name
from s3backer.stores.base import StoredObject
from s3backer.volume import Volume
from tests.support.mounts import wait_until
from tests.support.places import BLOCK, SECRET, SIZE, Place, Watched, opened

JOURNAL = 512 << 10
#: Blocks whose objects are damaged, in no order.
STUCK = (3, 60, 17, 50, 51)
USED = 64


@pytest.fixture(params=[EncodingOptions(), SECRET], ids=["plain", "secret"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path, request.param)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3backer.driver._STUCK", 0.5)
    monkeypatch.setattr("s3backer.journal.service._STUCK", 0.1)


def damage(place: Place, source: random.Random) -> tuple[bytearray, dict[str, StoredObject]]:
    """Write blocks, and damage objects; return the content, and the objects as they were."""
    content = bytearray(source.randbytes(USED * BLOCK) + bytes(SIZE - USED * BLOCK))
    with place.open() as volume:
        volume.write(0, content[: USED * BLOCK])
    store, kept = place.store(), dict[str, StoredObject]()
    for block in STUCK:
        name = block_name(block)
        kept[name] = store.get(name)
        store.put(name, b"damaged")
    store.close()
    return content, kept


def damaged_place(directory: Path, stuck: range) -> tuple[Place, random.Random]:
    """Return a place in which the objects of these blocks, too, are damaged."""
    place, source = Place(directory, EncodingOptions()), random.Random(3)
    damage(place, source)
    store = place.store()
    for block in stuck:
        store.put(block_name(block), b"damaged")
    store.close()
    return place, source


def write(volume: Volume, source: random.Random, content: bytearray, bytes_left: int) -> None:
    """Write a part of each damaged block, then whole blocks of the others, again and again."""
    for block in STUCK:
        # Whole sectors: they need not be merged at once with what cannot be read.
        put(volume, content, block * BLOCK + 512 * source.randrange(2), source.randbytes(1024))
        put(volume, content, block * BLOCK + 2048, bytes(512))
    volume.flush()
    sound = [block for block in range(1, 2 * USED) if block not in STUCK]
    while bytes_left > 0:
        put(volume, content, source.choice(sound) * BLOCK, source.randbytes(BLOCK))
        bytes_left -= BLOCK
        if source.random() < 0.01:
            block = source.choice(STUCK)
            put(volume, content, block * BLOCK + 512 * source.randrange(7), source.randbytes(512))


def put(volume: Volume, content: bytearray, offset: int, data: bytes) -> None:
    volume.write(offset, data)
    content[offset : offset + len(data)] = data


def test_a_fast_writer_leaves_time_to_carry(tmp_path: Path) -> None:
    """What is stuck would keep all files before it is looked at, if nobody slowed the writer down."""
    stuck = range(1, 17)
    place, source = damaged_place(tmp_path, stuck)
    with place.open(journal=JOURNAL, write_delay=0.0) as volume:
        for block in stuck:
            volume.write(block * BLOCK + 512, source.randbytes(BLOCK - 512))
        for turn in range(1000):
            volume.write((100 + turn % 300) * BLOCK, source.randbytes(BLOCK))
        for block in stuck:
            volume.write(block * BLOCK, bytes(BLOCK))


def test_more_than_can_be_carried_keeps_nobody_from_ending(tmp_path: Path) -> None:
    """Writers wait for ever then. Who ends the volume has them told, and what was flushed is in the journal."""
    stuck = range(1, 91)
    place, source = damaged_place(tmp_path, stuck)
    volume = place.open(journal=JOURNAL, write_delay=0.0)
    written = [source.randbytes(BLOCK - 512) for _ in stuck]
    for block, data in zip(stuck, written, strict=True):
        volume.write(block * BLOCK + 512, data)
    volume.flush()
    told: list[S3backerError] = []

    def fill() -> None:
        with contextlib.suppress(S3backerError):
            try:
                for turn in range(2000):
                    volume.write((100 + turn % 300) * BLOCK, source.randbytes(BLOCK))
            except S3backerError as error:
                told.append(error)
                raise

    writer = threading.Thread(target=fill)
    writer.start()
    wait_until(lambda: volume.facts()["writers"] == "wait for room", "the writer waits")
    writer.join(2.0)
    assert writer.is_alive() and volume.facts()["writers"] == "wait for room"
    with pytest.raises(S3backerError, match="cannot be stored"):
        volume.close()
    writer.join(10.0)
    assert told and not writer.is_alive()
    with place.open(journal=JOURNAL) as volume:
        for block in stuck:
            volume.write(block * BLOCK, bytes(512))
        assert all(
            volume.read(block * BLOCK + 512, BLOCK - 512) == data for block, data in zip(stuck, written, strict=True)
        )


def mend(place: Place, kept: dict[str, StoredObject]) -> None:
    store = place.store()
    for name, found in kept.items():
        facts = found.info
        store.put(name, found.body, content_encoding=facts.content_encoding, metadata=facts.metadata)
    store.close()


def test_nobody_waits_for_a_block_that_can_never_be_stored(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(1)
    content, kept = damage(place, source)
    volume = place.open(journal=JOURNAL, write_delay=0.0)
    try:
        write(volume, source, content, 3 * JOURNAL)
        volume.flush()
        assert caplog.text.count("write-back is failing") == 1
        error = str(volume.facts()["write_back_error"])
        assert "it has 7 bytes" in error or "it is not encrypted" in error
        for block in STUCK:
            with pytest.raises(S3backerError):
                volume.read(block * BLOCK, BLOCK)
    finally:
        with pytest.raises(S3backerError, match="cannot be stored: object"):
            volume.close()
    # It is all there, and goes to where it belongs once that can be read.
    assert place.files
    mend(place, kept)
    assert place.content(0, SIZE) == content
    assert not place.files


def test_killed_while_blocks_are_carried(place: Place) -> None:
    source = random.Random(2)
    content, kept = damage(place, source)
    with pytest.raises(S3backerError), place.killed(journal=JOURNAL, write_delay=0.0) as volume:
        write(volume, source, content, 2 * JOURNAL + source.randrange(JOURNAL))
    mend(place, kept)
    assert place.content(0, SIZE) == content


def test_a_resize_that_cannot_begin_keeps_no_file(tmp_path: Path) -> None:
    """Block 0 says what the size is: where it is damaged the size stays, and the journal goes on."""
    place = Place(tmp_path, EncodingOptions())
    source = random.Random(3)
    content = bytearray(SIZE)
    with place.open() as volume:
        volume.write(0, content[:BLOCK])
    store = place.store()
    first = store.get(block_name(0))
    store.put(block_name(0), b"damaged", metadata=first.info.metadata)
    store.close()
    volume = place.open(journal=JOURNAL, write_delay=0.0)
    try:
        # Where the filesystem has its superblock.
        put(volume, content, 0, source.randbytes(1024))
        with pytest.raises(S3backerError, match="object '00000000'"):
            volume.resize(SIZE + BLOCK, discard=False)
        write(volume, source, content, 3 * JOURNAL)
    finally:
        with pytest.raises(S3backerError, match=r"1 blocks of .* cannot be stored"):
            volume.close()
    assert place.files


def test_what_fails_while_others_flush_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path, EncodingOptions())
    store = Watched(place, 0.0)
    volume = opened(place, store, journal=0)
    store.failing = True
    volume.write(3 * BLOCK, b"x" * BLOCK)
    said: list[object] = []

    def flush() -> None:
        for _ in range(30):
            with contextlib.suppress(S3backerError):
                volume.flush()
            said.append(volume.facts()["write_back_error"])

    threads = [threading.Thread(target=flush) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.failing = False
    volume.close()
    assert "works again" not in caplog.text.split("write-back is failing")[0]
    assert caplog.text.count("write-back is failing") == caplog.text.count("write-back works again") == 1
    assert set(said) == {"it fails"}


def test_an_error_that_is_over_ends_no_replay(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that failed once, of a block that is not there and was written with zeros: nobody stores it."""
    monkeypatch.setattr("s3backer.replaying._PATIENCE", 0.5)
    with place.killed() as volume:
        volume.write(5 * BLOCK, bytes(512))
        for block in range(100, 130):
            volume.write(block * BLOCK, b"x" * BLOCK)

    class Slow(Watched):
        asked = 0

        def get(self, key: str, **more: Any) -> StoredObject:
            if key == block_name(5):
                self.asked += 1
                if self.asked == 1:
                    raise StoreUnreachable("it is away", hint="Wait.")
            return super().get(key, **more)

        def put(self, key: str, *args: Any, **more: Any) -> str:
            time.sleep(0.1)
            return super().put(key, *args, **more)

    store = Slow(place, 0.0)
    with opened(place, store, journal=0, threads=1) as volume:
        assert volume.facts()["write_back_error"] is None
        assert volume.read(5 * BLOCK, BLOCK) == bytes(BLOCK)
        assert volume.read(100 * BLOCK, 30 * BLOCK) == b"x" * (30 * BLOCK)
    assert store.asked
