"""Names, metadata, zero blocks and the survey of the classic layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer.errors import BucketNotFound, CorruptObject, PreconditionFailed, StoreError
from s3backer.layouts.classic import (
    ClassicLayout,
    Metadata,
    block_hash,
    block_name,
    parse_block_name,
    read_metadata,
)
from s3backer.stores.base import Body, ListPage
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.memory import MemoryStore

BLOCK = 512


def layout_of(store: MemoryStore, blocks: int = 16, *, prefix: str = "p/", hash_prefix: bool = False) -> ClassicLayout:
    return ClassicLayout(store, prefix, block_size=BLOCK, size=blocks * BLOCK, hash_prefix=hash_prefix)


# The worked examples of the format's description.
@pytest.mark.parametrize(
    ("block", "key"),
    [
        (0, "c448b72c-00000000"),
        (1, "d211cad9-00000001"),
        (2, "7183baa1-00000002"),
        (3, "531c6cd5-00000003"),
        (0x100, "e34e7a2c-00000100"),
        (0x1234, "b74e46df-00001234"),
        (0x10000, "b1b53b7c-00010000"),
        (0xABCDEF, "be3070d2-00abcdef"),
        (0xFFFFFFFF, "0f447858-ffffffff"),
    ],
)
def test_hashed_names(block: int, key: str) -> None:
    assert block_name(block, hash_prefix=True) == key
    assert block_name(block) == key[9:]


@given(st.integers(0, 2**32 - 2), st.booleans())
def test_names_are_read_back(block: int, hashed: bool) -> None:
    assert parse_block_name(block_name(block, hash_prefix=hashed), hash_prefix=hashed) == block
    assert parse_block_name(block_name(block, hash_prefix=hashed), hash_prefix=not hashed) is None


@pytest.mark.parametrize(
    "name",
    ["", "0", "0000000g", "0000000A", "000000001", "00000000-00000000", "s3backer-mounted", "00000001\n", "ffffffff"],
)
def test_foreign_names_are_ignored(name: str) -> None:
    assert parse_block_name(name) is None
    assert parse_block_name(name, hash_prefix=True) is None


def test_a_wrong_hash_is_ignored() -> None:
    assert parse_block_name(f"{block_hash(5) ^ 1:08x}-00000005", hash_prefix=True) is None


def test_create_puts_block_0_with_metadata_once() -> None:
    store = MemoryStore()
    layout_of(store, 16).create()
    info = store.head("p/00000000")
    assert dict(info.metadata) == {"s3backer-blocksize": "512", "s3backer-filesize": "8192"}
    assert info.content_type == "application/x-s3backer-block"
    assert read_metadata(store, "p/") == Metadata(8192, 512, "")
    with pytest.raises(PreconditionFailed):
        layout_of(store, 32).create()
    assert read_metadata(store, "p/") == Metadata(8192, 512, "")


@pytest.mark.parametrize(
    "metadata", [{}, {"s3backer-filesize": "0", "s3backer-blocksize": "512"}, {"s3backer-filesize": "-1"}]
)
def test_metadata_that_says_nothing(metadata: dict[str, str]) -> None:
    store = MemoryStore()
    assert read_metadata(store, "p/") is None
    store.put("p/00000000", b"", metadata=metadata)
    assert read_metadata(store, "p/") is None


def test_zero_blocks_are_absent_and_block_0_is_not() -> None:
    store = MemoryStore()
    layout = layout_of(store)
    layout.write(0, None)
    layout.write(3, b"x" * BLOCK)
    layout.write(4, b"y" * BLOCK)
    layout.write(3, None)
    assert [e.key for e in store.list("").entries] == ["p/00000000", "p/00000004"]
    assert layout.read(0) == bytes(BLOCK)
    assert layout.read(3) is None
    assert layout.known_absent(3)
    assert not layout.known_absent(0)
    assert not layout.known_absent(7), "nobody has asked about block 7"
    assert not store.head("p/00000004").metadata


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK + 1, 4 * BLOCK])
def test_a_wrong_length_is_an_error_that_names_the_object(length: int) -> None:
    store = MemoryStore()
    store.put("p/00000005", b"x" * length)
    with pytest.raises(CorruptObject, match=rf"'p/00000005'.*has {length} bytes.*512"):
        layout_of(store).read(5)


@pytest.mark.parametrize("encoding", ["gzip", "deflate, deflate", "encrypt-AES-128-CBC", "deflate"])
def test_a_block_that_cannot_be_decoded_is_an_error_that_names_it(encoding: str) -> None:
    store = MemoryStore()
    store.put("p/00000005", b"x" * BLOCK, content_encoding=encoding)
    with pytest.raises(CorruptObject, match=r"'p/00000005'"):
        layout_of(store).read(5)


def test_a_block_that_vanished_is_not_zeros() -> None:
    store = MemoryStore()
    layout = layout_of(store)
    layout.write(5, b"x" * BLOCK)
    store.delete("p/00000005")
    with pytest.raises(StoreError, match=r"'p/00000005'.*vanished"):
        layout.read(5)


def test_a_missing_bucket_is_not_zeros(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("bucket")
    layout = ClassicLayout(DirectoryStore(directory), "", block_size=BLOCK, size=16 * BLOCK)
    assert layout.read(5) is None
    directory.rename(directory.with_name("gone"))
    with pytest.raises(BucketNotFound):
        layout.read(6)


@pytest.mark.parametrize("hash_prefix", [False, True])
@pytest.mark.parametrize("look", ["listing", "read", "neither"])
def test_a_write_that_may_still_arrive_does_not_outlive_a_discard(look: str, hash_prefix: bool) -> None:
    """Nobody has seen its object so far, which does not mean that there will be none."""
    late: list[Callable[[], object]] = []

    class Late(MemoryStore):
        def put(self, key: str, body: Body, **options: Any) -> str:
            late.append(lambda: MemoryStore.put(self, key, body, **options))
            raise StoreError("no answer")

    store = Late()
    store.delayed = True
    layout = layout_of(store, hash_prefix=hash_prefix)
    with pytest.raises(StoreError):
        layout.write(3, b"x" * BLOCK)
    if look == "listing":
        assert layout.survey(lambda: False)
        assert layout.known_absent(4)
    elif look == "read":
        assert layout.read(3) is None
    assert not layout.known_absent(3)
    assert layout.next_possibly_present(3, 5) == 3
    late[0]()
    layout.write(3, None)
    assert not store.list("").entries
    assert layout.known_absent(3), "a write that succeeded settles it"


class FailingStore(MemoryStore):
    """Fails after the request took effect."""

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        super().delete(key)
        raise StoreError("the answer was lost")


def test_after_a_failed_request_nothing_is_known() -> None:
    layout = layout_of(FailingStore())
    layout.write(5, b"x" * BLOCK)
    with pytest.raises(StoreError, match="lost"):
        layout.write(5, None)
    assert layout.presence.get(5) is None


class HookedStore(MemoryStore):
    """Lists four keys a page, runs a hook after a page was taken, and can lose the answers of its PUTs."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = 0
        self.hook: Callable[[int], None] = lambda page: None

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
        page = super().list(prefix, start_after=start_after, limit=4)
        self.pages += 1
        self.hook(self.pages)
        return page


@pytest.mark.parametrize("hashed", [False, True])
def test_the_survey_finds_what_is_there(hashed: bool) -> None:
    store = HookedStore()
    layout = layout_of(store, 200, hash_prefix=hashed)
    blocks = {0, 1, 2, 3, 17, 64, 65, 66, 67, 68, 199}
    for block in blocks | {300}:
        store.put(layout.key(block), b"x" * BLOCK)
    store.put("p/foreign", b"")
    store.put("p/s3backer-mounted", b"")
    assert layout.survey(lambda: False)
    assert {b for b in range(200) if layout.presence.get(b)} == blocks
    assert all(layout.presence.get(b) is False for b in range(200) if b not in blocks)
    assert layout.next_possibly_present(4, 200) == 17
    assert layout.next_possibly_present(69, 199) == 199


@pytest.mark.parametrize("hashed", [False, True])
def test_the_survey_says_nothing_about_blocks_written_meanwhile(hashed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    store = HookedStore()
    layout = layout_of(store, 50, hash_prefix=hashed)
    for block in (0, 10, 20, 30, 40):
        store.put(layout.key(block), b"x" * BLOCK)

    def put_and_lose_the_answer(key: str, body: bytes, **_: object) -> str:
        MemoryStore.put(store, key, body)
        raise StoreError("the answer was lost")

    def write_behind_the_page(page: int) -> None:
        if page == 2:  # the last one: it was taken before block 35 was there
            monkeypatch.setattr(store, "put", put_and_lose_the_answer)
            with pytest.raises(StoreError, match="lost"):
                layout.write(35, b"y" * BLOCK)

    store.hook = write_behind_the_page
    assert layout.survey(lambda: False)
    assert store.pages == 2
    assert layout.presence.get(35) is None
    assert layout.presence.get(34) is False
    assert layout.read(35) == b"y" * BLOCK


def test_a_stopped_survey_leaves_the_rest_unknown() -> None:
    store = HookedStore()
    layout = layout_of(store, 50)
    for block in range(0, 50, 5):
        store.put(layout.key(block), b"x" * BLOCK)
    pages = iter([False, True])
    assert not layout.survey(lambda: next(pages))
    assert layout.presence.get(1) is False
    assert layout.presence.get(49) is None


def test_a_layout_beside_a_writer_trusts_nothing() -> None:
    layout = ClassicLayout(MemoryStore(), "", block_size=BLOCK, size=16 * BLOCK, exclusive=False)
    assert layout.read(5) is None
    assert not layout.known_absent(5)
    assert layout.next_possibly_present(5, 9) == 5


def test_of_what_cannot_be_a_block_not_everything_is_read() -> None:
    store = MemoryStore()
    layout = layout_of(store)
    layout.create()
    store.put(layout.key(3), bytes(BLOCK + 1))
    store.put(layout.key(4), bytes(1 << 20))
    for block, reason in ((3, "513 bytes, a block of this volume has 512"), (4, "more than 66560 bytes")):
        with pytest.raises(CorruptObject, match=reason):
            layout.read(block)
    assert store.counters.snapshot()["get"].bytes_received < 1024
