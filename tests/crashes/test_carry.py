"""Blocks that can never be stored, as their objects are damaged: the journal keeps what was written to them.

Its files go in the order in which they were written, so what such a block needs is carried into a newer one, and nobody
else has to wait.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from s3backer.codec.choice import EncodingOptions
from s3backer.errors import S3backerError
from s3backer.layouts.classic import block_name
from s3backer.stores.base import StoredObject
from s3backer.volume import Volume
from tests.support.places import BLOCK, SECRET, SIZE, Place

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


def write(volume: Volume, source: random.Random, content: bytearray, bytes_left: int) -> None:
    """Write a part of each damaged block, then whole blocks of the others, again and again."""
    for block in STUCK:
        # Whole sectors: they need not be merged at once with what cannot be read.
        put(volume, content, block * BLOCK + 512 * source.randrange(2), source.randbytes(1024))
        put(volume, content, block * BLOCK + 2048, bytes(512))
    volume.flush()
    sound = [block for block in range(2 * USED) if block not in STUCK]
    while bytes_left > 0:
        put(volume, content, source.choice(sound) * BLOCK, source.randbytes(BLOCK))
        bytes_left -= BLOCK
        if source.random() < 0.01:
            block = source.choice(STUCK)
            put(volume, content, block * BLOCK + 512 * source.randrange(7), source.randbytes(512))


def put(volume: Volume, content: bytearray, offset: int, data: bytes) -> None:
    volume.write(offset, data)
    content[offset : offset + len(data)] = data


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
