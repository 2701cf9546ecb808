"""Blocks that leave memory and are not in the bucket: while nothing can be stored, and the journal has them."""

from __future__ import annotations

import errno
import random
import time
from pathlib import Path

import pytest

from s3backer.codec.choice import EncodingOptions
from s3backer.volume import Volume
from tests.support.mounts import wait_until
from tests.support.places import BLOCK, SECRET, SIZE, Place, Watched, opened, shortened
from tests.support.power_loss import FaultyDisk

MEMORY = 1 << 20


# Without encryption there is less to go wrong: that is for make soak.
@pytest.fixture(
    params=[pytest.param(EncodingOptions(), id="plain", marks=pytest.mark.soak), pytest.param(SECRET, id="secret")]
)
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path, request.param)


def away(place: Place) -> tuple[Volume, Watched]:
    """A volume with little memory whose store takes no block."""
    store = Watched(place, 0.0)
    store.failing = True
    return opened(place, store, memory=MEMORY, journal=16 << 20, write_delay=0.0), store


def fill(volume: Volume, source: random.Random) -> bytes:
    """Write to every block but the first, in no order, and to some of them twice."""
    content = bytearray(SIZE)
    offsets = list(range(BLOCK, SIZE, BLOCK))
    for offset in [*source.sample(offsets, len(offsets)), *source.sample(offsets, 60)]:
        start = source.randrange(0, BLOCK, 512)
        data = source.randbytes(source.randint(1, BLOCK - start))
        volume.write(offset + start, data)
        content[offset + start : offset + start + len(data)] = data
    return bytes(content)


def test_memory_is_full_and_the_store_away(place: Place) -> None:
    """Writes go on, all of it can be read, and it is stored when the store is back."""
    source = random.Random(3)
    volume, store = away(place)
    try:
        content = fill(volume, source)
        assert volume._slab.unsaved <= volume._slab.dirty_limit < SIZE // BLOCK // 2
        volume.flush()
        assert volume.unsaved == SIZE // BLOCK - 1
        assert volume.read(0, SIZE) == content
        # Nobody is busy with waiting.
        before, began = time.process_time(), time.monotonic()
        time.sleep(1.0)
        assert time.process_time() - before < (time.monotonic() - began) / 2
    finally:
        store.failing = False
        volume.close()
    assert not place.files
    assert place.content(0, SIZE) == content


def test_killed_while_the_store_is_away(place: Place) -> None:
    source = random.Random(4)
    content = b""
    with place.killed(memory=MEMORY, journal=16 << 20) as volume:
        # It may store nothing for a while.
        volume._driver.cache._write_back._held_until = time.monotonic() + 3600
        content = fill(volume, source)
        assert volume._keeper is not None and volume._keeper.journal.core.left > SIZE // BLOCK // 2
        volume.flush()
        shortened(volume)
    assert place.content(0, SIZE) == content


def test_the_journal_fails_after_some_has_left_memory(place: Place) -> None:
    source = random.Random(5)
    volume, store = away(place)
    try:
        content = bytearray(fill(volume, source))
        volume.flush()
        assert volume._keeper is not None
        FaultyDisk(volume._keeper.journal.core).sync_error = errno.EIO
        volume.write(BLOCK, b"x" * BLOCK)
        content[BLOCK : 2 * BLOCK] = b"x" * BLOCK
        wait_until(lambda: volume._keeper is not None and volume._keeper.failure is not None, "it has failed")
        store.failing = False
        wait_until(lambda: not place.files, "all is stored, and the journal retired")
    finally:
        store.failing = False
        volume.close()
    assert place.content(0, SIZE) == content
