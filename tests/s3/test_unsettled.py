"""Writes whose answers were lost: which later write has to wait for them, and how long."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from urllib.parse import urlsplit

import hypothesis.strategies as st
import pytest
from hypothesis import given

from s3backer.clocks import boot_time
from s3backer.errors import PreconditionFailed, StoreError
from s3backer.s3.unsettled import ABSENT, ANYTHING, Unsettled
from s3backer.stores.s3 import S3Store
from tests.support.servers import S3Server
from tools.fault_proxy import FaultProxy

pytestmark = pytest.mark.usefixtures("same_clock")

STATES = st.sampled_from([ABSENT, '"a"', '"b"', None])
ATTEMPTS = st.lists(st.tuples(st.sampled_from([ANYTHING, ABSENT, '"a"', '"b"']), st.integers(0, 30)), max_size=6)


@given(ATTEMPTS, STATES, st.integers(0, 60))
def test_the_table_against_its_rules(attempts, becomes, now):
    clock = 0.0
    table = Unsettled(lambda: clock, 20.0)
    for accepts, sent_at in attempts:
        table.add("key", accepts, sent_at)
    clock = now
    binding = [
        sent_at + 20 - now
        for accepts, sent_at in attempts
        if accepts in (ANYTHING, becomes) or (becomes is None and accepts != ABSENT)
    ]
    assert table.wait_before("key", lambda: becomes) == max([0, *binding])
    assert table.wait_before("other", lambda: becomes) == 0


def test_many_attempts_that_still_bind_take_little_time():
    table = Unsettled(lambda: 0.0, 10.0)
    started = time.thread_time()
    for number in range(8_000):
        table.add(f"key{number}", ABSENT, 0.0)
    assert time.thread_time() - started < 5


def test_what_has_expired_is_forgotten():
    now = 0.0
    table = Unsettled(lambda: now, 10.0)
    for number in range(5000):
        now = number / 100
        table.add(f"key{number}", ABSENT, now)
    assert len(table._until) <= 2100


class Held:
    """A store behind a proxy that holds a request back, on a real server."""

    def __init__(self, server: S3Server, proxy: FaultProxy, expiry: int) -> None:
        bucket = server.make_bucket()
        options = replace(server.options(), endpoint_url=proxy.url, timeout=0.4, first_pause=0.01)
        self.store = S3Store(bucket, options, expiry=expiry)
        self.plain = S3Store(bucket, server.options())
        # The first object of a bucket takes SeaweedFS longer than others, nearly as long as a request has here.
        self.plain.put("first", b"first")
        self.plain.delete("first")
        self.proxy = proxy

    def close(self) -> None:
        self.store.close()
        self.plain.close()


@pytest.fixture
def make_held(s3_server):
    made: list[Held] = []
    address = urlsplit(s3_server.endpoint)
    with FaultProxy((address.hostname or "", address.port or 0)) as proxy:

        def make(expiry: int = 60) -> Held:
            made.append(Held(s3_server, proxy, expiry))
            # By now it is known that the server heeds conditions.
            for key in ("one", "another"):
                made[-1].store.put(key, b"", if_none_match=True)
                made[-1].plain.delete(key)
            assert made[-1].store.conditions
            return made[-1]

        yield make
        for held in made:
            held.close()


def test_a_late_put_never_replaces_newer_data(make_held):
    held = make_held()
    store = held.store
    first = store.put("key", b"a", if_none_match=True)
    late = held.proxy.hold("PUT", "key")
    second = store.put("key", b"b", if_match=first)
    assert late.wait().body == b"b"
    third = store.put("key", b"c", if_match=second)
    assert late.release() == 412
    assert held.plain.get("key").body == b"c"
    store.delete("key", if_match=third)
    assert late.release() in (404, 412)
    assert held.plain.list("").entries == ()


def test_a_late_put_that_was_to_create_never_revives_an_object(make_held):
    held = make_held(expiry=1)
    late = held.proxy.hold("PUT", "key")
    etag = held.store.put("key", b"a", if_none_match=True)
    assert late.wait()
    started = time.monotonic()
    # Only once the late one is refused.
    held.store.delete("key", if_match=etag)
    assert time.monotonic() - started >= 1
    assert late.release() == 403
    assert held.plain.list("").entries == ()


def test_content_that_returns_waits_for_a_late_put(make_held):
    """A → B → A: the late "B if it is A" must not find an A again."""
    held = make_held(expiry=1)
    store = held.store
    first = store.put("key", b"a")
    late = held.proxy.hold("PUT", "key")
    second = store.put("key", b"b", if_match=first)
    started = time.monotonic()
    assert store.put("key", b"a", if_match=second) == first
    assert time.monotonic() - started >= 1
    assert late.release() == 403
    assert held.plain.get("key").body == b"a"


def test_a_late_delete_never_removes_newer_data(make_held):
    held = make_held(expiry=1)
    store = held.store
    first = store.put("key", b"a")
    late = held.proxy.hold("DELETE", "key")
    store.delete("key", if_match=first)
    assert late.wait()
    started = time.monotonic()
    store.put("key", b"b", if_none_match=True)
    assert time.monotonic() - started >= 1
    assert late.release() == 403
    assert held.plain.get("key").body == b"b"


def test_a_put_that_took_effect_without_an_answer_is_found(make_held):
    held = make_held(expiry=1)
    held.proxy.script("reset-after")
    etag = held.store.put("key", b"a", metadata={"n": "1"}, if_none_match=True)
    assert etag == held.plain.head("key").etag
    held.proxy.script("reset-after")
    etag = held.store.put("key", b"b", if_match=etag)
    assert etag == held.plain.head("key").etag
    held.proxy.script("reset-after")
    held.plain.put("other", b"x")
    with pytest.raises(PreconditionFailed):
        held.store.put("other", b"y", if_none_match=True)
    held.proxy.script("reset-after")
    held.store.delete("key", if_match=etag)
    assert [entry.key for entry in held.plain.list("").entries] == ["other"]


def test_closing_ends_the_wait(make_held):
    held = make_held()
    first = held.store.put("key", b"a")
    held.proxy.hold("DELETE", "key")
    held.store.delete("key", if_match=first)
    problems: list[BaseException] = []

    def put() -> None:
        try:
            held.store.put("key", b"b")
        except StoreError as error:
            problems.append(error)

    waiting = threading.Thread(target=put)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    held.store.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert "was closed" in str(problems[0])


def test_an_upload_that_lasts_longer_than_its_signature_is_fenced_from_its_end(make_held, monkeypatch):
    held = make_held(expiry=1)
    first = held.store.put("key", b"a")
    engine = held.store._engine
    failure, began = engine._transport._timed_out(), boot_time()

    def slow(request, turn):
        monkeypatch.undo()
        time.sleep(2)
        engine.limiter.end(turn, seconds=None)
        raise failure

    monkeypatch.setattr(engine, "_attempt", slow)
    held.store.delete("key", if_match=first)
    assert began + 2 + engine.unsettled.lasting - 1 - boot_time() <= held.store.settles_in() + 0.2


def test_a_write_that_waited_for_its_place_is_fenced_from_when_it_was_signed(make_held):
    held = make_held(expiry=1)
    store = held.store
    first = store.put("key", b"a")
    limiter = store._engine.limiter
    taken = [limiter.begin(write=True) for _ in range(limiter.allowed * 3 // 4)]
    assert all(taken)
    late = held.proxy.hold("DELETE", "key")
    deleting = threading.Thread(target=store.delete, args=("key",), kwargs={"if_match": first})
    deleting.start()
    # Longer than what was sent at the beginning could be on its way.
    deleting.join(store._engine.unsettled.lasting + 0.5)
    assert deleting.is_alive()
    for turn in taken:
        limiter.end(turn, seconds=None)
    deleting.join(20)
    assert not deleting.is_alive()
    store.put("key", b"b", if_none_match=True)
    assert late.release() == 403
    assert held.plain.get("key").body == b"b"
