"""Sequential readers are recognised and served ahead of time; random ones trigger nothing."""

from __future__ import annotations

import random
import threading
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given

from s3backer._readahead import ReadAhead
from s3backer.admin import create_volume, resize_volume
from s3backer.errors import StoreError
from s3backer.opening import VolumeOptions
from s3backer.stores.memory import MemoryStore
from s3backer.volume import Volume
from tests.support.twins import PlainReadAhead

BLOCK = 4096


def stream(ahead: ReadAhead, start: int, reads: int, length: int = BLOCK) -> list[int]:
    """Read in order; return the blocks that are to be fetched."""
    return [block for number in range(reads) for block in ahead.read(start + number * length, length)]


def test_the_window_grows_and_no_block_is_named_twice():
    found = stream(ReadAhead(BLOCK, 32), 0, 100)
    assert found == list(range(3, 3 + len(found)))
    assert 100 + 16 <= found[-1] <= 100 + 32


@pytest.mark.parametrize("length", [512, 1000, BLOCK, 3 * BLOCK, 100 * BLOCK])
def test_any_size_of_reads(length):
    found = stream(ReadAhead(BLOCK, 32), 7, 50, length)
    assert found == sorted(set(found))
    end = (7 + 50 * length) // BLOCK
    # Small reads name a few blocks, and always those after the last one.
    assert not found or end < found[-1] <= end + 33


@given(
    st.sampled_from([512, BLOCK, 1 << 17]),
    st.integers(0, 40),
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(-10 * BLOCK, 10 * BLOCK), st.integers(0, 300_000)), max_size=120
    ),
)
def test_it_answers_as_its_plain_twin(block_size, most, steps):
    ours, twin = ReadAhead(block_size, most), PlainReadAhead(block_size, most)
    places = [number * 50_000_000 for number in range(21)]
    for place, jump, length in steps:
        offset = max(0, places[place] + jump)
        assert ours.read(offset, length) == twin.read(offset, length)
        places[place] = offset + length


@given(st.integers(0, 2**32))
def test_random_reads_trigger_nothing(seed):
    source, ahead = random.Random(seed), ReadAhead(BLOCK, 32)
    found = [len(ahead.read(source.randrange(10**6) * BLOCK, BLOCK)) for _ in range(300)]
    assert sum(found) == 0


def test_several_streams_are_told_apart():
    ahead = ReadAhead(BLOCK, 16)
    starts = [number * 10**6 * BLOCK for number in range(8)]
    found: dict[int, list[int]] = {start: [] for start in starts}
    for number in range(40):
        for start in starts:
            found[start] += ahead.read(start + number * BLOCK, BLOCK)
    for start, blocks in found.items():
        first = start // BLOCK + 3
        assert blocks == list(range(first, first + len(blocks)))
        assert len(blocks) > 40


def test_reads_a_little_out_of_order_belong_together():
    ahead = ReadAhead(BLOCK, 16)
    found: list[int] = []
    for number in range(0, 40, 2):
        for block in (number + 1, number):
            found += ahead.read(block * BLOCK, BLOCK)
    assert found == list(range(found[0], found[0] + len(found)))
    # Two streams at most: more would name fewer blocks.
    assert len(found) > 30


def test_turned_off():
    assert stream(ReadAhead(BLOCK, 0), 0, 100) == []


class Slow(MemoryStore):
    """Each GET takes a while; counts how many are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.under_way = self.most = 0

    def get(self, key, *, at_most=None):
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.01)
        with self.lock:
            self.under_way -= 1
        return super().get(key, at_most=at_most)


@pytest.fixture
def store() -> Slow:
    store = Slow()
    create_volume(store, "", size=1 << 20, block_size=BLOCK)
    with Volume.open(store, "", VolumeOptions(memory=4 << 20)) as volume:
        volume.write(0, CONTENT)
    return store


CONTENT = random.Random(1).randbytes(1 << 20)


def test_a_sequential_reader_has_many_requests_under_way_and_each_block_once(store: Slow):
    with Volume.open(store, "", VolumeOptions(memory=4 << 20, threads=16)) as volume:
        before = store.counters.snapshot()["get"].requests
        found = b"".join(volume.read(offset, BLOCK) for offset in range(0, 1 << 20, BLOCK))
        assert found == CONTENT
        # One of sixteen workers is left to others, and one more request is the reader's own.
        assert 6 <= store.most <= 15
        assert store.counters.snapshot()["get"].requests - before == 256


def test_a_reader_in_random_order_has_one_request_under_way(store: Slow):
    with Volume.open(store, "", VolumeOptions(memory=4 << 20, threads=16)) as volume:
        store.most = 0
        for block in random.Random(2).sample(range(0, 256, 8), 30):
            assert volume.read(block * BLOCK, BLOCK) == CONTENT[block * BLOCK : (block + 1) * BLOCK]
        assert store.most == 1


def test_what_is_read_ahead_and_fails_harms_nobody(store: Slow, monkeypatch: pytest.MonkeyPatch):
    real = MemoryStore.get
    failed: list[str] = []

    def get(self, key, *, at_most=None):
        if len(key) == 8 and key not in failed:
            failed.append(key)
            raise OSError("away")
        return real(self, key, at_most=at_most)

    with Volume.open(store, "", VolumeOptions(memory=4 << 20, threads=8)) as volume:
        monkeypatch.setattr(MemoryStore, "get", get)
        found = 0
        for offset in range(0, 1 << 20, BLOCK):
            try:
                assert volume.read(offset, BLOCK) == CONTENT[offset : offset + BLOCK]
                found += 1
            except Exception as error:
                assert "away" in str(error)
        assert volume.read(0, 1 << 20) == CONTENT


def test_who_waits_for_what_is_read_ahead_waits_no_longer_than_others(store: Slow):
    """With more readers than workers there is always somebody who has waited longer than nobody."""
    stop = threading.Event()
    resize_volume(store, "", 64 << 20)

    with Volume.open(store, "", VolumeOptions(memory=4 << 20, threads=2, list_blocks=False)) as volume:

        def read_at_random(seed: int) -> None:
            for block in random.Random(seed).sample(range(256, 16384), 1000):
                if stop.is_set():
                    return
                volume.read(block * BLOCK, BLOCK)

        others = [threading.Thread(target=read_at_random, args=(seed,)) for seed in range(8)]
        for other in others:
            other.start()
        for offset in range(0, 32 * BLOCK, BLOCK):
            assert volume.read(offset, BLOCK) == CONTENT[offset : offset + BLOCK]
        assert all(other.is_alive() for other in others)
        stop.set()
        for other in others:
            other.join()


def test_who_comes_after_an_attempt_ahead_began_gets_one_of_his_own(store: Slow, monkeypatch: pytest.MonkeyPatch):
    real = MemoryStore.get
    began, go_on = threading.Event(), threading.Event()

    def get(self, key, *, at_most=None):
        if key == f"{4:08x}" and not began.is_set():
            began.set()
            go_on.wait()
            raise StoreError("away")
        return real(self, key, at_most=at_most)

    with Volume.open(store, "", VolumeOptions(memory=4 << 20, threads=8)) as volume:
        monkeypatch.setattr(MemoryStore, "get", get)
        for offset in range(0, 4 * BLOCK, BLOCK):
            volume.read(offset, BLOCK)
        assert began.wait(10)
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(bytes(volume.read(4 * BLOCK, BLOCK))))
        reader.start()
        time.sleep(0.05)
        go_on.set()
        reader.join()
        assert found == [CONTENT[4 * BLOCK : 5 * BLOCK]]


def test_closing_fetches_nothing_that_nobody_waits_for(store: Slow, monkeypatch: pytest.MonkeyPatch):
    """While the store is away each of these would take as long as a read is tried."""
    real = MemoryStore.get
    ahead: list[str] = []
    go_on = threading.Event()

    def get(self, key, *, at_most=None):
        if len(key) == 8 and int(key, 16) > 2:
            ahead.append(key)
            go_on.wait(20)
        return real(self, key, at_most=at_most)

    volume = Volume.open(store, "", VolumeOptions(memory=4 << 20, threads=5, list_blocks=False))
    for block in range(2):
        assert volume.read(block * BLOCK, BLOCK)
    monkeypatch.setattr(MemoryStore, "get", get)
    assert volume.read(2 * BLOCK, BLOCK)
    # Several streams, so that more is to be fetched than there are workers to fetch it.
    for start in (64, 128, 192):
        with volume._driver._lock:
            volume._driver.cache.prefetch(range(start, start + 4))
            volume._driver._carry_out(volume._driver.cache.take_actions())
    closer = threading.Thread(target=volume.close)
    closer.start()
    time.sleep(0.3)
    before = len(ahead)
    assert before <= 4
    go_on.set()
    closer.join(20)
    assert not closer.is_alive()
    assert len(ahead) == before
