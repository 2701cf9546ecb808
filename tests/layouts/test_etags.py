"""The table of ETags against a plain dictionary, and conditional writes of the classic layout."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from s3backer.errors import ObjectNotFound, PreconditionFailed, StoreError, VolumeInUse
from s3backer.layouts.classic import ClassicLayout
from s3backer.layouts.etags import _PAGE_BLOCKS, _PAGE_COST, ETags
from s3backer.stores.base import ListEntry, ListPage
from s3backer.stores.memory import MemoryStore

BLOCK = 512
HEX = st.binary(min_size=16, max_size=16).map(lambda data: f'"{data.hex()}"')
SOME = st.one_of(st.none(), HEX, st.sampled_from(['"opaque"', f'"{"0" * 32}"', f'"{"a" * 32}-2"', f'"{"A" * 32}"']))


@given(st.lists(st.tuples(st.integers(0, 3 * _PAGE_BLOCKS), SOME), max_size=50))
def test_what_was_set_is_got(steps):
    table, plain = ETags(100 * _PAGE_COST), dict[int, str | None]()
    for block, etag in steps:
        table.set(block, etag)
        plain[block] = etag
        for known, expected in plain.items():
            assert table.get(known) == expected


@given(st.lists(st.tuples(st.integers(0, 20), HEX), max_size=60))
def test_what_does_not_fit_is_forgotten_and_never_wrong(steps):
    table, plain = ETags(3 * _PAGE_COST), dict[int, str]()
    for page, etag in steps:
        block = page * _PAGE_BLOCKS + 5
        table.set(block, etag)
        plain[block] = etag
        assert table.get(block) == etag
        assert len(table._pages) <= 3
    assert all(table.get(block) in (None, etag) for block, etag in plain.items())


class Watched(MemoryStore):
    """Counts requests as a store over a network; ``late`` puts take effect and say that they failed."""

    def __init__(self) -> None:
        super().__init__()
        self.delayed = True
        self.calls: list[tuple[str, str | None, bool]] = []
        self.fail = ""

    def put(self, key, body, **options):
        self.calls.append(("put", options.get("if_match"), options.get("if_none_match", False)))
        if self.fail == "before":
            raise StoreError("lost")
        etag = super().put(key, body, **options)
        if self.fail == "after":
            raise StoreError("lost")
        return etag

    def head(self, key):
        self.calls.append(("head", None, False))
        return super().head(key)

    def delete(self, key, *, if_match=None):
        self.calls.append(("delete", if_match, False))
        super().delete(key, if_match=if_match)

    def taken(self) -> list[tuple[str, str | None, bool]]:
        calls, self.calls = self.calls, []
        return calls


def layout_of(store: MemoryStore, **options) -> ClassicLayout:
    return ClassicLayout(store, "", block_size=BLOCK, size=16 * BLOCK, **options)


def body(letter: str) -> bytes:
    return letter.encode() * BLOCK


@pytest.fixture
def store() -> Watched:
    return Watched()


def test_each_write_has_the_condition_of_what_is_there(store):
    layout = layout_of(store)
    layout.write(5, body("a"))
    first = store.head("00000005").etag
    layout.write(5, body("b"))
    second = store.head("00000005").etag
    layout.write(5, None)
    layout.write(5, body("c"))
    calls = [call for call in store.taken() if call[0] != "head"]
    assert calls == [("put", None, True), ("put", first, False), ("delete", second, False), ("put", None, True)]


def test_what_a_listing_or_a_read_has_told_needs_no_asking(store):
    for block in (1, 2):
        MemoryStore.put(store, f"0000000{block}", body("a"))
    etag = MemoryStore.head(store, "00000001").etag
    layout = layout_of(store)
    assert layout.read(1) == body("a")
    layout.survey(lambda: False)
    layout.write(1, body("b"))
    layout.write(2, body("b"))
    layout.write(3, body("b"))
    assert store.taken() == [("put", etag, False), ("put", etag, False), ("put", None, True)]


def test_what_is_unknown_is_asked_for_when_it_is_there(store):
    etag = MemoryStore.put(store, "00000001", body("a"))
    layout_of(store).write(1, body("b"))
    assert store.taken() == [("put", None, True), ("head", None, False), ("put", etag, False)]
    layout_of(store).write(1, None)
    assert store.taken() == [("delete", None, False)]


def test_a_forgotten_etag_costs_a_head(store):
    etag = MemoryStore.put(store, "00000001", body("a"))
    layout = layout_of(store)
    layout.read(1)
    assert layout._etags is not None
    layout._etags.set(1, None)
    layout.write(1, body("b"))
    assert store.taken() == [("head", None, False), ("put", etag, False)]


@pytest.mark.parametrize("fail", ["before", "after"])
@pytest.mark.parametrize("there", [False, True])
def test_after_a_failed_write_what_is_there_is_found_out(store, fail, there):
    layout = layout_of(store)
    if there:
        layout.write(1, body("a"))
    store.fail = fail
    with pytest.raises(StoreError):
        layout.write(1, body("b"))
    store.fail = ""
    layout.write(1, body("c"))
    assert store.get("00000001").body == body("c")


def test_a_change_by_somebody_else_is_replaced_only_if_the_volume_is_still_ours(store, caplog):
    layout = layout_of(store)
    layout.write(1, body("a"))
    layout.write(2, body("a"))
    confirmed = 0

    def confirm() -> None:
        nonlocal confirmed
        confirmed += 1

    layout.confirm = confirm
    MemoryStore.put(store, "00000001", body("x"))
    MemoryStore.delete(store, "00000002")
    layout.write(1, body("b"))
    layout.write(2, body("b"))
    assert confirmed == 2
    assert [record.message for record in caplog.records if "somebody else" in record.message] != []
    assert store.get("00000001").body == store.get("00000002").body == body("b")

    def deny() -> None:
        raise VolumeInUse("not ours")

    layout.confirm = deny
    MemoryStore.put(store, "00000001", body("x"))
    for new in (body("c"), None):
        # It is tried again and again.
        for _ in range(3):
            with pytest.raises(VolumeInUse):
                layout.write(1, new)
        assert store.get("00000001").body == body("x")
        layout.read(1)
        MemoryStore.put(store, "00000001", body("x") + b"y")
        MemoryStore.put(store, "00000001", body("x"))
        assert layout._etags is not None
        layout._etags.set(1, '"other"')


def test_an_object_that_never_stands_still_is_an_error(store):
    layout = layout_of(store)
    layout.write(1, body("a"))

    class Restless(Watched):
        def head(self, key):
            found = super().head(key)
            MemoryStore.put(self, key, bytes(found.size + 1))
            return found

    restless = Restless()
    restless._objects = store._objects
    layout._store = restless
    MemoryStore.put(restless, "00000001", body("x"))
    with pytest.raises(PreconditionFailed):
        layout.write(1, body("b"))


def test_a_store_whose_writes_are_never_late_is_asked_without_conditions():
    store = Watched()
    store.delayed = False
    layout = layout_of(store)
    layout.write(1, body("a"))
    layout.write(1, None)
    assert store.taken() == [("put", None, False), ("delete", None, False)]
    with pytest.raises(ObjectNotFound):
        store.get("00000001")


def test_an_empty_etag_of_a_listing_is_none(store):
    etag = MemoryStore.put(store, "00000001", body("a"))
    layout = layout_of(store)
    page = ListPage((ListEntry("00000001", BLOCK, ""),), False)
    store.list = lambda prefix, **options: page
    layout.survey(lambda: False)
    layout.write(1, body("b"))
    assert store.taken() == [("head", None, False), ("put", etag, False)]
