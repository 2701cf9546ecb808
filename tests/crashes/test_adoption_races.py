"""What comes between a block that is left to the journal and whoever has begun to fetch it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from s3backer.journal.replay import scan
from s3backer.layouts.classic import block_name
from s3backer.url import volume_id
from s3backer.volume import Volume
from tests.support.mounts import wait_until
from tests.support.places import BLOCK, SIZE, Place, Watched, opened, shortened


def zero(volume: Volume, how: str, block: int) -> None:
    if how == "discard":
        volume.discard(block * BLOCK, BLOCK)
    else:
        volume.write(block * BLOCK, bytes(BLOCK))


both = pytest.mark.parametrize("how", ["discard", "write"])


@pytest.mark.parametrize("what", ["look", "fetch"])
@both
def test_zeros_that_need_no_request_are_not_overtaken(place: Place, how: str, what: str) -> None:
    with place.killed() as volume:
        volume.write(7 * BLOCK, b"x" * BLOCK)
    volume = opened(place, Watched(place, 1.0), write_delay=0.1, memory=1 << 20)
    journal = volume._driver._journal
    assert journal is not None
    gate, there, part = threading.Event(), threading.Event(), journal.part

    def slow(block: int) -> Any:
        found = part(block)
        if block == 7 and not there.is_set():
            there.set()
            gate.wait()
        return found

    journal.part = slow  # type: ignore[method-assign]
    if what == "fetch":
        volume._driver.prefetch(range(7, 8))
        assert there.wait(30)
    reader = threading.Thread(target=volume.read, args=(7 * BLOCK, BLOCK))
    reader.start()
    assert there.wait(30)
    zero(volume, how, 7)
    volume._layout.presence.set(7, False)
    wait_until(lambda: volume._slab.unsaved == 0, "it is stored, without a request")
    volume._slab.drop_from(7)
    gate.set()
    reader.join()
    assert volume.read(7 * BLOCK, BLOCK) == bytes(BLOCK)
    volume.write(7 * BLOCK + 1024, b"n" * 512)
    volume.close()
    assert place.content(7 * BLOCK, BLOCK) == bytes(1024) + b"n" * 512 + bytes(BLOCK - 1536)


@both
def test_nothing_is_learned_of_what_may_still_arrive(place: Place, how: str) -> None:
    """Of a block that was overwritten while a fetch of it waited for a worker."""
    with place.killed() as volume:
        volume.write(7 * BLOCK, b"x" * BLOCK)
    store = Watched(place, 3600.0)
    gate, busy, get = threading.Event(), threading.Semaphore(0), store.get
    others = [block_name(block) for block in (100, 101, 102, 103)]

    def slow(key: str, **more: Any) -> Any:
        if key in others:
            busy.release()
            gate.wait()
        return get(key, **more)

    store.get = slow  # type: ignore[method-assign]
    volume = opened(place, store)
    readers = [threading.Thread(target=volume.read, args=(n * BLOCK, BLOCK)) for n in (100, 101, 102, 103)]
    for reader in readers:
        reader.start()
        busy.acquire()
    volume._driver.prefetch(range(7, 8))
    assert 7 in volume._driver.cache._fetching
    zero(volume, how, 7)
    volume.flush()
    gate.set()
    for reader in readers:
        reader.join()
    store.late_put(7, b"x" * BLOCK)
    shortened(volume).close()
    assert block_name(7) not in place.objects
    assert place.content(7 * BLOCK, BLOCK) == bytes(BLOCK)


def test_a_store_that_began_before_does_not_end_the_note_of_a_resize(place: Place) -> None:
    with place.killed() as volume:
        volume.write(0, b"s" * BLOCK)
        assert volume._keeper is not None
        journal = volume._keeper.journal
        began = volume._slab.sequence
        volume._resizer._note()
        journal.done(0, began, '"older"')
    with place.open() as volume:
        assert volume._directory is not None
        found = scan(volume._directory, volume_id(volume._store.place, ""))
        assert found.known[0].intent is not None


def test_writers_get_half_of_the_places(place: Place) -> None:
    """Not all that was left comes before the first block that is written now."""
    with place.killed(journal=16 << 20) as volume:
        for block in range(1, SIZE // BLOCK - 200):
            volume.write(block * BLOCK, b"a" * BLOCK)
    store = Watched(place, 0.0)
    put = store.put

    def slow(key: str, *args: Any, **more: Any) -> str:
        threading.Event().wait(0.005)
        return put(key, *args, **more)

    store.put = slow  # type: ignore[method-assign]
    volume = opened(place, store, memory=1 << 20, journal=16 << 20, write_delay=0.0)
    for block in range(SIZE // BLOCK - 200, SIZE // BLOCK):
        volume.write(block * BLOCK, b"b" * BLOCK)
    wait_until(lambda: any(block >= SIZE // BLOCK - 200 for _, block in store.writes), "one of the new ones is stored")
    first = next(n for n, (_, block) in enumerate(store.writes) if block >= SIZE // BLOCK - 200)
    assert first < (SIZE // BLOCK - 200) // 2
    volume.close()
