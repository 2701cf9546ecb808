"""The volume over a memory store: bytes, the ends, flush, resize, the token, failures, threads."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3backer.admin import create_volume, erase_volume, inspect_volume, resize_volume, unlock_volume
from s3backer.codec.choice import AS_THE_VOLUME, EncodingOptions
from s3backer.errors import (
    CorruptObject,
    ReadOnlyVolume,
    StoreError,
    UsageError,
    VolumeExists,
    VolumeInUse,
    VolumeNotFound,
)
from s3backer.geometry import MIB, check_geometry, least_memory, plan_memory
from s3backer.layouts.classic import BLOCK_CONTENT_TYPE
from s3backer.opening import VolumeOptions
from s3backer.stores.base import Buffer, StoredObject
from s3backer.stores.memory import MemoryStore
from s3backer.units import exact_size, parse_size
from s3backer.volume import Volume

BLOCK = 4096
SIZE = 64 * BLOCK
#: Small enough for evictions: the volume is four times the cache.
SMALL = VolumeOptions(memory=256 * 1024, threads=4, write_delay=0.01, lease=1.0)


class BrokenStore(MemoryStore):
    """Fails requests while ``broken``; holds GETs back while ``gate`` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()

    def put(self, key, body, **options):
        if self.broken and "mounted" not in key:
            raise StoreError("the store is away")
        return super().put(key, body, **options)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        if self.broken:
            raise StoreError("the store is away")
        super().delete(key)

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        self.gate.wait()
        return super().get(key, at_most=at_most)


@pytest.fixture
def store() -> BrokenStore:
    store = BrokenStore()
    create_volume(store, "p/", size=SIZE, block_size=BLOCK)
    return store


@pytest.fixture
def volume(store: BrokenStore) -> Iterator[Volume]:
    volume = Volume.open(store, "p/", SMALL)
    yield volume
    store.broken = False
    store.gate.set()
    volume.close()


def keys(store: MemoryStore) -> list[str]:
    return [entry.key for entry in store.list("").entries]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_against_plain_bytes(data: st.DataObject) -> None:
    store = MemoryStore()
    create_volume(store, "", size=SIZE, block_size=BLOCK)
    plain = bytearray(SIZE)
    ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 5 * BLOCK))
    with Volume.open(store, "", SMALL) as volume:
        for _ in range(data.draw(st.integers(0, 40))):
            kind = data.draw(st.sampled_from(["write", "write", "read", "read", "zeros", "discard", "flush"]))
            offset, length = data.draw(ranges)
            length = min(length, SIZE - offset)
            if kind in ("write", "zeros"):
                body = bytes(length) if kind == "zeros" else bytes([data.draw(st.integers(1, 255))]) * length
                assert volume.write(offset, body) == length
                plain[offset : offset + length] = body
            elif kind == "discard":
                volume.discard(offset, length)
                plain[offset : offset + length] = bytes(length)
            elif kind == "flush":
                volume.flush()
            else:
                assert volume.read(offset, length) == plain[offset : offset + length]
    with Volume.open(store, "", SMALL) as volume:
        assert volume.read(0, SIZE) == plain
    stored = {int(key, 16) for key in keys(store)}
    assert stored == {0} | {b for b in range(SIZE // BLOCK) if any(plain[b * BLOCK : (b + 1) * BLOCK])}


def test_the_end_of_the_volume(volume: Volume) -> None:
    assert volume.read(SIZE, 10) == b""
    assert volume.read(SIZE + 5, 10) == b""
    assert volume.read(SIZE - 4, 10) == bytes(4)
    assert volume.write(SIZE - 4, b"12345678") == 4
    assert volume.read(SIZE - 4, 10) == b"1234"
    for offset in (SIZE, SIZE + 1):
        with pytest.raises(OSError, match="No space") as caught:
            volume.write(offset, b"x")
        assert caught.value.errno == errno.ENOSPC
    assert volume.write(SIZE, b"") == 0
    with pytest.raises(OSError, match="No space"):
        volume.discard(SIZE - 4, 8)
    for call in (lambda: volume.read(-1, 1), lambda: volume.write(-1, b"x"), lambda: volume.discard(0, -1)):
        with pytest.raises(OSError, match="Invalid"):
            call()


def test_a_flush_waits_for_the_bucket_and_fails_if_it_is_not_there(store: BrokenStore, volume: Volume) -> None:
    volume.write(5 * BLOCK, b"x" * BLOCK)
    volume.flush()
    assert store.get("p/00000005").body == b"x" * BLOCK
    assert store.get("p/00000005").info.content_type == BLOCK_CONTENT_TYPE
    store.broken = True
    volume.write(6 * BLOCK, b"y" * BLOCK)
    for _ in range(2):
        with pytest.raises(StoreError, match="away"):
            volume.flush()
    assert volume.read(6 * BLOCK, BLOCK) == b"y" * BLOCK
    store.broken = False
    volume.flush()
    assert store.get("p/00000006").body == b"y" * BLOCK


def test_writers_wait_when_too_much_is_unsaved_and_readers_do_not(store: BrokenStore, volume: Volume) -> None:
    store.broken = True
    written: list[int] = []

    def write_all() -> None:
        for block in range(1, 64):
            volume.write(block * BLOCK, bytes([block]) * BLOCK)
            written.append(block)

    writer = threading.Thread(target=write_all)
    writer.start()
    limit = volume._slab.dirty_limit
    while len(written) < limit:
        time.sleep(0.01)
    assert volume.read(written[-1] * BLOCK, BLOCK) == bytes([written[-1]]) * BLOCK
    assert volume.read(63 * BLOCK, BLOCK) == bytes(BLOCK), "a miss needs no slot"
    assert writer.is_alive()
    assert len(written) == limit
    store.broken = False
    writer.join()
    volume.flush()
    assert len(keys(store)) == 65


def test_a_hit_does_not_wait_for_a_miss(store: BrokenStore) -> None:
    store.put("p/00000009", b"z" * BLOCK)
    with Volume.open(store, "p/", SMALL) as volume:
        volume.write(BLOCK, b"x" * BLOCK)
        store.gate.clear()
        answers: list[bytes] = []
        reader = threading.Thread(target=lambda: answers.append(volume.read(9 * BLOCK, BLOCK)))
        reader.start()
        for _ in range(100):
            assert volume.read(BLOCK, BLOCK) == b"x" * BLOCK
        assert not answers
        store.gate.set()
        reader.join()
        assert answers == [b"z" * BLOCK]


def test_zeros_cost_no_request(store: BrokenStore, volume: Volume) -> None:
    while not volume.facts()["surveyed"]:
        time.sleep(0.01)
    before = store.counters.snapshot()
    volume.write(BLOCK, bytes(20 * BLOCK))
    volume.write(BLOCK + 7, bytes(900))
    volume.discard(30 * BLOCK, 10 * BLOCK)
    assert volume.read(BLOCK, 50 * BLOCK) == bytes(50 * BLOCK)
    volume.flush()
    assert store.counters.snapshot() == before


def test_a_corrupt_block_is_an_error_and_the_rest_is_not(store: BrokenStore) -> None:
    store.put("p/00000007", b"short")
    with Volume.open(store, "p/", SMALL) as volume:
        for _ in range(2):
            with pytest.raises(CorruptObject, match="00000007"):
                volume.read(6 * BLOCK, 3 * BLOCK)
        volume.write(7 * BLOCK + 1, b"x")
        volume.write(7 * BLOCK + 512, b"n" * 512)
        assert volume.read(7 * BLOCK + 1, 1) == b"x"
        with pytest.raises(CorruptObject, match="00000007"):
            volume.read(7 * BLOCK, 2)
        with pytest.raises(CorruptObject, match="00000007"):
            volume.flush()
        assert volume.read(8 * BLOCK, BLOCK) == bytes(BLOCK)
        volume.write(7 * BLOCK, b"n" * BLOCK)
        assert volume.read(7 * BLOCK, BLOCK) == b"n" * BLOCK, "a whole write heals the block"


def test_parts_of_more_sectors_than_can_be_remembered_wait_for_their_blocks(store: BrokenStore) -> None:
    """Where there is no journal."""
    content = {block: bytearray(bytes([block]) * BLOCK) for block in range(1, 30)}
    for block, body in content.items():
        store.put(f"p/{block:08x}", bytes(body))
    with Volume.open(store, "p/", replace(SMALL, write_delay=3600.0)) as volume:
        volume._slab.limit_patches(3)
        for block, body in content.items():
            volume.write(block * BLOCK + 500, b"w" * 1000)
            body[500:1500] = b"w" * 1000
        assert volume._slab.patches <= 3
        for block, body in content.items():
            assert volume.read(block * BLOCK, BLOCK) == body
    for block, body in content.items():
        assert store.get(f"p/{block:08x}").body == body


def test_parts_of_sectors_of_a_damaged_block_keep_no_writer_waiting(store: BrokenStore) -> None:
    store.put("p/00000007", b"short")
    store.put("p/00000008", b"8" * BLOCK)
    with Volume.open(store, "p/", SMALL) as volume:
        volume._slab.limit_patches(2)
        volume.write(7 * BLOCK + 500, b"x" * 20)
        volume.write(8 * BLOCK + 500, b"x" * 20)
        assert volume.read(8 * BLOCK + 499, 22) == b"8" + b"x" * 20 + b"8"
        with pytest.raises(CorruptObject, match="00000007"):
            volume.write(7 * BLOCK + 1500, b"x")
        for block in range(9, 60):
            volume.write(block * BLOCK, b"n" * BLOCK)
        volume.write(7 * BLOCK, b"n" * BLOCK)
        assert volume._slab.patches == 0


def test_the_token_is_there_while_it_is_open(store: BrokenStore) -> None:
    with Volume.open(store, "p/", SMALL):
        assert "p/s3backer-mounted" in keys(store)
        with pytest.raises(VolumeInUse, match="is mounted by"):
            Volume.open(store, "p/", SMALL)
        with pytest.raises(VolumeInUse):
            erase_volume(store, "p/")
        with pytest.raises(VolumeInUse):
            resize_volume(store, "p/", 2 * SIZE)
        with Volume.open(store, "p/", VolumeOptions(read_only=True)) as reader:
            with pytest.raises(ReadOnlyVolume):
                reader.write(0, b"x")
            assert reader.read(0, 5) == bytes(5)
        assert "p/s3backer-mounted" in keys(store), "a reader removes nothing"
    assert "p/s3backer-mounted" not in keys(store)


def test_force_takes_over_and_the_loser_leaves_the_token(store: BrokenStore, caplog: pytest.LogCaptureFixture) -> None:
    first = Volume.open(store, "p/", SMALL)
    second = Volume.open(store, "p/", VolumeOptions(memory=MIB, force=True))
    first.close()
    assert "was mounted" in caplog.text
    assert "p/s3backer-mounted" in keys(store)
    second.close()
    assert "p/s3backer-mounted" not in keys(store)


def test_unlock(store: BrokenStore) -> None:
    assert unlock_volume(store, "p/") is None
    store.put("p/s3backer-mounted", b"vm\n20261122T185245Z\n", metadata={"s3backer-mount-token": "00000007"})
    token = unlock_volume(store, "p/")
    assert token is not None
    assert token.host == "vm"
    Volume.open(store, "p/", SMALL).close()
    with pytest.raises(VolumeNotFound):
        unlock_volume(store, "elsewhere/")


def test_a_failed_open_leaves_the_bucket_as_it_was(store: BrokenStore) -> None:
    before = keys(store)
    for options in (
        VolumeOptions(memory=4 * BLOCK),
        VolumeOptions(size=2 * SIZE),
        VolumeOptions(block_size=2 * BLOCK),
    ):
        with pytest.raises(UsageError):
            Volume.open(store, "p/", options)
    with pytest.raises(VolumeNotFound):
        Volume.open(store, "other/", SMALL)
    assert keys(store) == before


def test_where_the_store_goes_away_after_the_token_was_put_opening_ends(
    store: BrokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go_away(*_: object) -> None:
        store.broken = True
        raise StoreError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr("s3backer.opening.refuse_if_changed", go_away)
        with pytest.raises(StoreError, match="the store is away"):
            Volume.open(store, "p/", SMALL)
    # Its token stays, and ends by itself.
    assert "p/s3backer-mounted" in keys(store)
    store.broken = False
    Volume.open(store, "p/", SMALL).close()
    assert "p/s3backer-mounted" not in keys(store)


def test_close_waits_until_the_store_is_back(store: BrokenStore) -> None:
    volume = Volume.open(store, "p/", SMALL)
    store.broken = True
    volume.write(BLOCK, b"x" * BLOCK)
    seen: list[tuple[int, int]] = []
    closer = threading.Thread(target=lambda: volume.close(lambda left, total: seen.append((left, total))))
    closer.start()
    while len(seen) < 3:
        time.sleep(0.01)
    assert set(seen) == {(1, 1)}
    store.broken = False
    closer.join()
    assert seen[-1] == (0, 1)
    assert keys(store) == ["p/00000000", "p/00000001"]
    volume.close()
    with pytest.raises(OSError, match="closed"):
        volume.read(0, 1)


def test_no_thread_is_left(store: BrokenStore) -> None:
    before = set(threading.enumerate())
    with Volume.open(store, "p/", SMALL) as volume:
        volume.write(0, b"x")
        names = {thread.name for thread in set(threading.enumerate()) - before}
        assert all(name.startswith("s3backer-") for name in names)
    assert set(threading.enumerate()) == before


def test_resize(store: BrokenStore, volume: Volume) -> None:
    volume.write(SIZE - BLOCK, b"x" * BLOCK)
    volume.resize(2 * SIZE)
    assert volume.size == 2 * SIZE
    assert inspect_volume(store, "p/").size == 2 * SIZE
    assert volume.read(SIZE - BLOCK, 2 * BLOCK) == b"x" * BLOCK + bytes(BLOCK)
    with pytest.raises(UsageError, match=r"beyond the new end.*block 63"):
        volume.resize(SIZE - BLOCK)
    assert volume.size == 2 * SIZE
    volume.write(2 * SIZE - 7, b"1234567")
    with pytest.raises(UsageError, match="beyond the new end"):
        volume.resize(SIZE)
    volume.discard(SIZE, SIZE)
    volume.resize(SIZE)
    volume.resize(SIZE // 2, discard=True)
    assert inspect_volume(store, "p/", count=True).objects == 1
    assert volume.read(SIZE // 2, 1) == b""
    volume.resize(SIZE)
    assert volume.read(0, SIZE) == bytes(SIZE), "what was given up does not come back"
    for bad in (0, -BLOCK, SIZE + 1, BLOCK * 2**32):
        with pytest.raises(UsageError):
            volume.resize(bad)


def test_a_resize_that_fails_changes_nothing(store: BrokenStore, volume: Volume) -> None:
    store.broken = True
    with pytest.raises(StoreError):
        volume.resize(2 * SIZE)
    assert volume.size == SIZE
    store.broken = False
    volume.flush()
    assert inspect_volume(store, "p/").size == SIZE


def test_what_is_written_while_it_shrinks_is_there_or_refused(store: BrokenStore, volume: Volume) -> None:
    """Writers go on while the size changes: what lies beyond the end is gone, also when it grows again."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(seed: int) -> None:
        source = random.Random(seed)
        try:
            while not stop.is_set():
                try:
                    taken = volume.write(source.randrange(SIZE), source.randbytes(3 * BLOCK))
                    assert 0 < taken <= 3 * BLOCK
                except OSError as error:
                    assert error.errno == errno.ENOSPC
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for thread in writers:
        thread.start()
    try:
        for round_number in range(5):
            end = BLOCK * (5 + round_number)
            volume.resize(end, discard=True)
            assert volume.size == end
            names = [int(key[2:], 16) for key in keys(store) if key != "p/s3backer-mounted"]
            assert max(names) < end // BLOCK
            assert len(volume.read(end - 1, 10)) == 1
            volume.resize(SIZE)
    finally:
        stop.set()
        for thread in writers:
            thread.join()
    assert not failures
    volume.resize(SIZE // 2, discard=True)
    volume.resize(SIZE)
    assert volume.read(SIZE // 2, SIZE // 2) == bytes(SIZE // 2)


def test_shrinking_waits_for_a_write_that_is_under_way(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()
    write = volume._driver.write

    def slow(offset: int, data: Buffer) -> None:
        entered.set()
        assert go_on.wait(20)
        write(offset, data)

    monkeypatch.setattr(volume._driver, "write", slow)
    writer = threading.Thread(target=volume.write, args=(SIZE - BLOCK, b"x" * BLOCK))
    writer.start()
    assert entered.wait(20)
    resizer = threading.Thread(target=volume.resize, args=(SIZE // 2,), kwargs={"discard": True})
    resizer.start()
    resizer.join(0.3)
    assert resizer.is_alive()
    go_on.set()
    writer.join(20)
    resizer.join(20)
    assert volume.size == SIZE // 2
    volume.resize(SIZE)
    assert volume.read(SIZE // 2, SIZE // 2) == bytes(SIZE // 2)


def test_resize_unmounted(store: BrokenStore) -> None:
    assert resize_volume(store, "p/", 2 * SIZE) == SIZE
    assert inspect_volume(store, "p/").size == 2 * SIZE
    assert keys(store) == ["p/00000000"]


def test_create_refuses_what_is_there(store: BrokenStore) -> None:
    with pytest.raises(VolumeExists):
        create_volume(store, "p/", size=SIZE, block_size=BLOCK)
    with pytest.raises(VolumeExists):
        create_volume(store, "p/", size=SIZE, block_size=BLOCK, block_hash_prefix=True)
    store.put("q/00000123", b"x")
    with pytest.raises(VolumeExists):
        create_volume(store, "q/", size=SIZE, block_size=BLOCK)
    store.put("r/unrelated", b"x")
    create_volume(store, "r/", size=SIZE, block_size=BLOCK)


def test_erase(store: BrokenStore) -> None:
    for block in range(1, 40):
        store.put(f"p/{block:08x}", b"x" * BLOCK)
    store.put("p/mine.txt", b"not a block")
    store.put("p/s3backer-mounted", b"vm\n\n")
    assert erase_volume(store, "p/", force=True) == 40
    assert keys(store) == ["p/mine.txt"]
    with pytest.raises(VolumeNotFound):
        inspect_volume(store, "p/")


@pytest.mark.parametrize(
    ("size", "block_size", "words"),
    [
        (0, 4096, "size 0"),
        (-4096, 4096, "size -4096"),
        (5000, 4096, r"5000 is not a multiple.*4KiB"),
        (2**32 * 4096, 4096, "4294967296 blocks.*4294967295"),
        (4096, 4095, "power of two"),
        (4096, 256, "at least 512"),
        (4096, 0, "power of two"),
        (4096, -4096, "power of two"),
    ],
)
def test_geometry(size: int, block_size: int, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        check_geometry(size, block_size)
    assert caught.value.hint


def test_the_largest_volume_opens() -> None:
    store = MemoryStore()
    size = (2**32 - 1) * BLOCK
    create_volume(store, "", size=size, block_size=BLOCK)
    with Volume.open(store, "", SMALL) as volume:
        volume.write(size - 3, b"end")
        volume.flush()
        assert volume.read(size - 3, 9) == b"end"
    assert keys(store) == ["00000000", "fffffffe"]


@given(st.integers(16, 4096), st.sampled_from([2**n for n in range(9, 25)]), st.integers(1, 64))
def test_the_plan_stays_within_the_budget(mebibytes: int, block_size: int, threads: int) -> None:
    memory = mebibytes * MIB
    try:
        plan = plan_memory(memory, block_size, threads)
    except UsageError:
        assert memory < 16 * block_size
        return
    assert plan.slots >= 4
    assert 1 <= plan.threads <= threads
    assert plan.slots * block_size + 2 * plan.threads * block_size + plan.knowledge <= memory


@given(st.sampled_from([2**n for n in range(9, 31)]), st.integers(2, 4), st.integers(1, 64))
def test_the_least_memory_is_enough_and_less_is_not(block_size: int, copies: int, threads: int) -> None:
    least = least_memory(block_size, copies)
    assert plan_memory(least, block_size, threads, copies=copies).slots >= 4
    with pytest.raises(UsageError) as caught:
        plan_memory(least - (MIB if least > MIB else 1024), block_size, threads, copies=copies)
    assert exact_size(least) in caught.value.hint


@given(st.sampled_from([2**n for n in range(9, 31)]), st.integers(2, 4), st.integers(1, 64), st.booleans())
def test_the_least_memory_is_enough_with_a_journal(block_size: int, copies: int, threads: int, cached: bool) -> None:
    """Its map takes more than small blocks do, so that a quarter of the memory is many of these."""
    least = least_memory(block_size, copies, disk_cache=cached, journal=True)
    plan = plan_memory(least, block_size, threads, copies=copies, disk_cache=cached, journal=True)
    assert plan.slots >= 4 and plan.threads >= 1


@pytest.mark.parametrize("encoding", [AS_THE_VOLUME, EncodingOptions("deflate", encrypt="AES-256-CBC", password="x")])
def test_the_memory_that_an_error_names_is_enough(encoding: EncodingOptions) -> None:
    store = MemoryStore()
    block_size = 1 << 20
    create_volume(store, "", size=16 * MIB, block_size=block_size, encoding=encoding)
    before = keys(store)
    with pytest.raises(UsageError, match="of 5MiB is too small for blocks of 1MiB") as caught:
        Volume.open(store, "", VolumeOptions(memory=5 * MIB, encoding=encoding))
    with pytest.raises(UsageError, match="of 100 bytes is too small for blocks of 1MiB"):
        Volume.open(store, "", VolumeOptions(memory=100, encoding=encoding))
    assert keys(store) == before
    named = parse_size(caught.value.hint.split()[2])
    with pytest.raises(UsageError):
        Volume.open(store, "", VolumeOptions(memory=named - MIB, encoding=encoding))
    with Volume.open(store, "", VolumeOptions(memory=named, encoding=encoding)) as volume:
        volume.write(MIB - 1, b"over a border")
        volume.flush()
        assert volume.read(MIB - 1, 13) == b"over a border"


def test_a_password_is_tried_on_nothing_that_is_no_block() -> None:
    """It could be larger than the memory."""
    store = MemoryStore()
    encoding = EncodingOptions(encrypt="AES-128-CBC", password="secret")
    create_volume(store, "", size=16 * BLOCK, block_size=BLOCK, encoding=encoding)
    info = store.head("00000000")
    store.put("00000000", bytes(4 << 20), content_encoding=info.content_encoding, metadata=info.metadata)
    before = store.counters.snapshot()["get"].bytes_received
    with pytest.raises(CorruptObject, match=r"'00000000' in .* has more than 73728 bytes"):
        Volume.open(store, "", VolumeOptions(memory=MIB, encoding=encoding))
    assert store.counters.snapshot()["get"].bytes_received == before
    assert keys(store) == ["00000000"]


@pytest.mark.parametrize("memory", [1 << 50, 1 << 63, 1 << 70])
def test_a_memory_that_no_machine_has_is_refused(memory: int) -> None:
    store = MemoryStore()
    create_volume(store, "", size=16 * BLOCK, block_size=BLOCK)
    with pytest.raises(UsageError, match=f"a memory budget of {memory} bytes is too large") as caught:
        Volume.open(store, "", VolumeOptions(memory=memory))
    assert "--memory" in caught.value.hint
    assert keys(store) == ["00000000"]


def test_a_memory_that_this_machine_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("no memory for so many blocks")

    monkeypatch.setattr("s3backer._fast.Slab", refuse)
    store = MemoryStore()
    create_volume(store, "", size=16 * BLOCK, block_size=BLOCK)
    with pytest.raises(UsageError, match="more than this machine gives") as caught:
        Volume.open(store, "", SMALL)
    assert "--memory" in caught.value.hint
    assert keys(store) == ["00000000"]


def test_many_threads_on_their_own_bytes(volume: Volume) -> None:
    """Eight writers interleaved byte range by byte range: each finds its own bytes, in the cache and in the bucket."""
    share = 700  # borders inside sectors and blocks

    def work(number: int) -> None:
        try:
            for round_ in range(6):
                for start in range(number * share, SIZE - share, 8 * share):
                    volume.write(start, bytes([number * 16 + round_ + 1]) * share)
                for start in range(number * share, SIZE - share, 8 * share):
                    assert volume.read(start, share) == bytes([number * 16 + round_ + 1]) * share
                volume.flush()
        except BaseException as error:
            failures.append(error)

    failures: list[BaseException] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    volume._slab.check_invariants()
