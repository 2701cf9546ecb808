"""When the layout reads a copy, asks about it, keeps one, drops one: over stores whose requests are counted."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3backer.codec.block import PLAIN, BlockCodec
from s3backer.codec.compression import Compression
from s3backer.codec.encryption import BlockCipher, cipher_kind
from s3backer.disk_cache import DiskCache
from s3backer.disk_cache_file import CopyFile
from s3backer.errors import CorruptObject, StoreError, VolumeInUse
from s3backer.layouts.classic import ClassicLayout
from s3backer.layouts.copies import Copy
from s3backer.stores.base import ObjectStore, StoredObject
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.memory import MemoryStore
from tests.support.faulty import FaultyStore

BLOCK = 4096
BLOCKS = 16


class Bench:
    """One volume's store, and mounts of it that share a disk cache, one after the other."""

    def __init__(self, store: ObjectStore, directory: Path) -> None:
        self.store = FaultyStore(store, watch=lambda kind, key: self.watch(kind, key))
        self.watch: Callable[[str, str], None] = lambda kind, key: None
        self.directory = directory
        self.path = directory / "cache"
        self._cache: DiskCache | None = None

    @property
    def cache(self) -> DiskCache:
        assert self._cache is not None
        return self._cache

    def mount(self, *, exclusive: bool = True, survey: bool = False, codec: BlockCodec = PLAIN) -> ClassicLayout:
        self.unmount()
        layout = ClassicLayout(
            self.store,
            "p/",
            block_size=BLOCK,
            size=BLOCKS * BLOCK,
            codec=codec,
            exclusive=exclusive,
            with_copies=True,
        )
        file = CopyFile(str(self.directory), "cache", bytes(32), BLOCK)
        layout.copies = self._cache = DiskCache(file, size=1 << 20, index_bytes=4096, queue_bytes=1 << 20)
        if survey:
            assert layout.survey(lambda: False)
        self.calls()
        return layout

    def unmount(self) -> None:
        if self._cache is not None:
            self._cache.close()
        self._cache = None

    def calls(self) -> list[str]:
        """Return the kinds of requests since the last time, when what waits has been written."""
        self.cache.settle()
        calls, self.store.calls = self.store.calls, []
        return [kind for kind, _ in calls]

    def foreign(self, block: int, body: bytes) -> None:
        self.store.inner.put(f"p/{block:08x}", body)


@pytest.fixture(params=["memory", "late", "directory"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    store: ObjectStore = MemoryStore()
    if request.param == "late":
        # As over a network: writes have conditions, and the listing has ETags.
        store.delayed = True
    elif request.param == "directory":
        (tmp_path / "bucket").mkdir()
        store = DirectoryStore(tmp_path / "bucket")
    bench = Bench(store, tmp_path / "disk")
    yield bench
    bench.unmount()


@pytest.fixture
def late(tmp_path: Path) -> Iterator[Bench]:
    store = MemoryStore()
    store.delayed = True
    bench = Bench(store, tmp_path / "disk")
    yield bench
    bench.unmount()


def body(letter: str) -> bytes:
    return letter.encode() * BLOCK


def test_what_was_read_is_read_from_the_disk(bench: Bench) -> None:
    bench.foreign(3, body("a"))
    layout = bench.mount()
    assert layout.read(3) == body("a")
    assert bench.calls() == ["get"]
    assert [layout.read(3) for _ in range(3)] == [body("a")] * 3
    assert bench.calls() == []
    counts = bench.cache.counts
    assert (counts.misses, counts.hits, counts.verified, counts.bytes_read) == (1, 3, 0, 3 * BLOCK)


def test_what_was_written_is_read_from_the_disk(bench: Bench) -> None:
    layout = bench.mount()
    for letter in "ab":
        layout.write(3, body(letter))
        bench.calls()
        assert layout.read(3) == body(letter)
        assert bench.calls() == []
    layout.write(3, None)
    layout.write(0, None)
    bench.calls()
    assert layout.read(3) is None
    assert layout.read(0) == bytes(BLOCK)
    assert bench.calls() == ["get"]


def test_after_a_restart_the_store_is_asked_once_and_sends_nothing(bench: Bench) -> None:
    layout = bench.mount()
    layout.write(3, body("a"))
    layout = bench.mount()
    before = bench.store.counters.snapshot()["get"].bytes_received
    assert layout.read(3) == layout.read(3) == body("a")
    assert bench.calls() == ["get_unless"]
    assert bench.store.counters.snapshot()["get"].bytes_received == before
    assert (bench.cache.counts.verified, bench.cache.counts.hits) == (1, 1)


def test_after_a_restart_and_a_listing_with_etags_nobody_is_asked(late: Bench) -> None:
    layout = late.mount()
    layout.write(3, body("a"))
    layout.write(4, body("b"))
    late.unmount()
    late.foreign(4, body("c"))
    layout = late.mount(survey=True)
    assert layout.read(3) == body("a")
    assert late.calls() == []
    assert layout.read(4) == body("c")
    assert late.calls() == ["get_unless"]
    assert layout.read(4) == body("c")
    assert late.calls() == []


def test_what_somebody_else_wrote_between_two_mounts_is_seen(bench: Bench) -> None:
    layout = bench.mount()
    for block in (3, 4):
        layout.write(block, body("a"))
    bench.unmount()
    bench.foreign(3, body("b"))
    bench.store.inner.delete("p/00000004")
    layout = bench.mount()
    assert layout.read(3) == body("b")
    assert layout.read(4) is None
    assert bench.calls() == ["get_unless", "get_unless"]
    assert layout.read(3) == body("b")
    assert bench.calls() == []


def test_beside_a_writer_every_copy_is_asked_about(bench: Bench) -> None:
    bench.foreign(3, body("a"))
    layout = bench.mount(exclusive=False)
    assert layout.read(3) == layout.read(3) == body("a")
    bench.foreign(3, body("b"))
    assert layout.read(3) == layout.read(3) == body("b")
    assert bench.calls() == ["get", *["get_unless"] * 3]
    assert bench.cache.counts.hits == 0


def test_without_the_store_what_is_known_to_be_current_can_be_read(bench: Bench) -> None:
    bench.foreign(3, body("a"))
    layout = bench.mount()
    layout.read(3)
    bench.calls()

    def away(kind: str, key: str) -> None:
        raise StoreError("away")

    bench.watch = away
    assert layout.read(3) == body("a")
    layout = bench.mount()
    with pytest.raises(StoreError, match="away"):
        layout.read(3)


# ── writes under way, failed writes ──────────────────────────────────────────────────────────────────────


def test_while_a_block_is_written_its_copy_is_asked_about(bench: Bench) -> None:
    layout = bench.mount()
    layout.write(3, body("a"))
    bench.calls()
    read: list[bytes | None] = []

    def during(kind: str, key: str) -> None:
        if kind == "put":
            bench.watch = lambda kind, key: None
            # The other one has taken effect already.
            bench.foreign(3, body("b"))
            read.append(layout.read(3))

    bench.watch = during
    layout.write(3, body("b"))
    assert read == [body("b")]


def test_what_a_write_overtook_is_not_kept(bench: Bench) -> None:
    bench.foreign(3, body("a"))
    layout = bench.mount()

    class Overtaken(FaultyStore):
        def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
            found = super().get(key, at_most=at_most)
            layout.write(3, body("b"))
            return found

    inner = layout._store
    layout._store = Overtaken(inner)
    assert layout.read(3) == body("a")
    layout._store = inner
    bench.cache.settle()
    copy = bench.cache.find(3)
    assert copy is not None and copy.body == body("b")
    assert layout.read(3) == body("b")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("new", [b"b" * BLOCK, None])
def test_of_a_block_whose_write_failed_no_copy_is_left(bench: Bench, after: bool, new: bytes | None) -> None:
    layout = bench.mount()
    layout.write(3, body("a"))
    bench.calls()
    bench.store._fail_at, bench.store._after = 1, after
    with pytest.raises(StoreError):
        layout.write(3, new)
    bench.store._fail_at = 0
    assert bench.cache.find(3) is None
    assert layout.read(3) == (new if after else body("a"))


def test_a_listing_that_shows_another_etag_is_believed(late: Bench) -> None:
    layout = late.mount()
    layout.write(3, body("a"))
    late.foreign(3, body("b"))
    layout.survey(lambda: False)
    assert layout.read(3) == body("b")


def test_a_block_that_vanished_is_no_copy_either(late: Bench) -> None:
    layout = late.mount()
    layout.write(3, body("a"))
    assert layout._etags is not None
    layout._etags.set(3, None)
    late.store.inner.delete("p/00000003")
    with pytest.raises(StoreError, match="vanished"):
        layout.read(3)
    assert late.cache.find(3) is None


def test_weak_etags_are_no_proof(bench: Bench) -> None:
    bench.foreign(3, body("a"))
    layout = bench.mount()
    bench.store._alter = lambda found: replace(found, info=replace(found.info, etag=f"W/{found.info.etag}"))
    assert layout.read(3) == body("a")
    bench.cache.settle()
    assert bench.cache.find(3) is None


# ── copies that are not what they should be ──────────────────────────────────────────────────────────────


def test_copies_of_a_volume_that_is_ours_no_more_are_asked_about(late: Bench) -> None:
    def lost() -> None:
        raise VolumeInUse("somebody else has it")

    layout = late.mount()
    for block in (1, 2):
        layout.write(block, body("a"))
    layout.confirm = lost
    late.foreign(1, body("b"))
    late.foreign(2, body("b"))
    with pytest.raises(VolumeInUse):
        layout.write(2, body("c"))
    assert layout.read(1) == body("b")


def test_a_body_that_is_a_block_compressed_and_as_it_is_is_not_kept(bench: Bench) -> None:
    """ETags do not tell which: what is found under the same one may be encoded otherwise."""
    source = random.Random(1)
    compressible = (source.randbytes(BLOCK - count) + bytes(count) for count in range(BLOCK))
    written = next(one for one in compressible if len(zlib.compress(one)) == BLOCK)
    layout = bench.mount(codec=BlockCodec(Compression("deflate")))
    layout.write(3, written)
    bench.unmount()
    bench.foreign(3, zlib.compress(written))
    assert bench.mount().read(3) == zlib.compress(written)


def test_a_damaged_copy_is_fetched_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    layout = bench.mount()
    layout.write(3, body("a"))
    bench.calls()
    data = bytearray(bench.path.read_bytes())
    place = data.index(body("a"))
    with bench.path.open("r+b") as file:
        file.seek(place + 100)
        file.write(b"x")
    assert layout.read(3) == layout.read(3) == body("a")
    assert bench.calls() == ["get"]
    counts = bench.cache.counts
    assert (counts.damaged, counts.misses, counts.hits) == (1, 1, 1)
    assert "block 3" in caplog.text and str(bench.path) in caplog.text


def codecs() -> dict[str, BlockCodec]:
    cipher = BlockCipher(cipher_kind("AES-256-CBC"), "secret", "salt")
    return {
        "plain": PLAIN,
        "zstd": BlockCodec(Compression("zstd")),
        "aes": BlockCodec(cipher=cipher),
        "both": BlockCodec(Compression("deflate"), cipher),
    }


@pytest.mark.parametrize("name", ["plain", "zstd", "aes", "both"])
def test_copies_are_as_the_objects_are(bench: Bench, name: str) -> None:
    codec = codecs()[name]
    text = b"something that nobody should read" * 200
    layout = bench.mount(codec=codec)
    layout.write(3, text[:BLOCK])
    layout.write(5, text[:BLOCK])
    bench.calls()
    # What is compressed begins with it as it is.
    assert (text[:33] in bench.path.read_bytes()) == (codec.cipher is None)
    layout = bench.mount(codec=codec)
    assert layout.read(3) == text[:BLOCK]
    assert bench.calls() == ["get_unless"]
    stored = bench.store.inner.get("p/00000003")
    copy = bench.cache.find(3)
    assert copy is not None and (copy.body, copy.content_encoding) == (stored.body, stored.info.content_encoding)


def test_a_copy_that_cannot_be_decoded_is_fetched_again(bench: Bench) -> None:
    layout = bench.mount()
    layout.write(3, body("a"))
    etag = bench.store.inner.head("p/00000003").etag
    bench.cache.keep(3, Copy(etag, b"too short"))
    bench.calls()
    assert layout.read(3) == body("a")
    assert bench.calls() == ["get"]
    assert bench.cache.counts.damaged == 1
    assert layout.read(3) == body("a")
    assert bench.calls() == []


def test_an_object_that_cannot_be_decoded_is_not_kept(bench: Bench) -> None:
    bench.foreign(3, b"too short")
    layout = bench.mount()
    for _ in range(2):
        with pytest.raises(CorruptObject):
            layout.read(3)
    assert bench.calls() == ["get", "get"]
    assert bench.cache.counts.damaged == 0
