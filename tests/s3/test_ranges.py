"""Ranges of objects, from servers that give another one, too little, all of the object, or none."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from s3backer._checksum import crc64nvme
from s3backer.errors import CorruptObject, ObjectNotFound, PreconditionFailed, StoreError
from s3backer.s3.http1 import Answer
from s3backer.s3.request import Request
from s3backer.stores.base import ObjectRange
from tests.support.nasty import Step, fault, reply
from tests.support.talks import NO_BUCKET, NO_KEY, talk

WHOLE = b"0123456789"
ETAG = f'"{hashlib.md5(WHOLE).hexdigest()}"'
PATIENT: dict[str, Any] = {"patience": 30.0, "first_pause": 0.01}
#: What is asked for here: bytes 2 to 4.
WANTED = ObjectRange(b"234", 10)


def part(body: bytes | str, said: str, **headers: Any) -> bytes:
    return reply(206, body, **{"ETag": ETAG, "Content_Range": said, **headers})


RIGHT = part(b"234", "bytes 2-4/10")


def test_what_is_asked_for():
    with talk(RIGHT) as (store, server):
        assert store.get_range("key", 2, 3) == WANTED
        assert store.get_range("key", 2, 3, if_match=ETAG) == WANTED
    first, second = server.requests
    assert (first.method, first.headers["range"], first.headers.get("if-match")) == ("GET", "bytes=2-4", None)
    assert (second.headers["range"], second.headers["if-match"]) == ("bytes=2-4", ETAG)
    signed = second.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0]
    assert {"range", "if-match"} <= set(signed.split(";"))


WRONG: dict[str, bytes | Step] = {
    "another start": part(b"123", "bytes 1-3/10"),
    "another end": part(b"2345", "bytes 2-5/10"),
    "less than fits": part(b"23", "bytes 2-3/10"),
    "another length than said": part(b"23", "bytes 2-4/10"),
    "more than said": part(b"2345", "bytes 2-4/10"),
    "beyond its own end": part(b"234", "bytes 2-4/4"),
    "size unknown": part(b"234", "bytes 2-4/*"),
    "none said": reply(206, b"234", ETag=ETAG),
    "several": part(b"234", "bytes 2-4/10, bytes 5-6/10"),
    "nonsense": part(b"234", "bytes two-four/ten"),
    "another script": part(b"234", "bytes ２-4/10".encode().decode("latin-1")),
    "no ETag": reply(206, b"234", Content_Range="bytes 2-4/10"),
    "cut short": Step(reply(206, b"23", length=3, ETag=ETAG, Content_Range="bytes 2-4/10"), end="close"),
    "not there though it is": reply(416, Content_Range="bytes */10"),
    "a log-in page": reply(200, "<html>log in</html>"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_another_range_is_refused_and_asked_for_again(wrong):
    with talk(wrong, RIGHT, **PATIENT) as (store, server):
        assert store.get_range("key", 2, 3) == WANTED
        assert len(server.requests) == 2
        assert store.counters.retries == 1
    with talk(wrong, patience=0.0) as (store, _), pytest.raises(StoreError):
        store.get_range("key", 2, 3)


def test_a_server_that_stays_wrong_is_an_error():
    with talk(WRONG["another start"], **PATIENT) as (store, server):
        with pytest.raises(StoreError, match="3 bytes said to be 3 from byte 1 of 10"):
            store.get_range("key", 2, 3)
        assert len(server.requests) == 8


def test_the_checksum_of_the_whole_is_not_that_of_a_part():
    kept = base64.b64encode(crc64nvme(WHOLE).to_bytes(8, "big")).decode()
    with talk(part(b"234", "bytes 2-4/10", x_amz_checksum_crc64nvme=kept)) as (store, server):
        assert store.get_range("key", 2, 3) == WANTED
        assert len(server.requests) == 1


# ── all of the object in place of a range ────────────────────────────────────────────────────────────────

ALL = reply(200, WHOLE, ETag=ETAG)


@pytest.mark.parametrize(("start", "length", "body"), [(2, 3, b"234"), (8, 9, b"89"), (10, 1, b""), (99, 1, b"")])
def test_a_server_that_gives_the_whole(start, length, body):
    with talk(ALL) as (store, server):
        assert store.get_range("key", start, length) == ObjectRange(body, 10)
        assert store.get_range("key", start, length, if_match=ETAG) == ObjectRange(body, 10)
        assert len(server.requests) == 2


def test_a_whole_that_was_altered_is_asked_for_again():
    with talk(reply(200, b"0123x56789", ETag=ETAG), ALL, **PATIENT) as (store, _):
        assert store.get_range("key", 2, 3) == WANTED
    with talk(reply(200, b"0123x56789", ETag=ETAG)) as (store, _), pytest.raises(CorruptObject):
        store.get_range("key", 2, 3)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("status", [200, 206])
def test_no_more_of_a_whole_is_read_than_can_be_held(status):
    # Only its beginning ever comes: whoever waited for the rest would wait for the time-out.
    long = reply(status, WHOLE, length=65 << 20, ETag=ETAG, Content_Range="bytes 2-4/10")
    with talk(long, timeout=50.0, **PATIENT) as (store, server):
        with pytest.raises(StoreError, match="a part of s3://bucket/key with more than 67108864 bytes") as caught:
            store.get_range("key", 2, 3)
        assert "ignores Range" in caught.value.hint
        assert len(server.requests) == 1


# ── the condition ────────────────────────────────────────────────────────────────────────────────────────

FAILED = fault(412, "PreconditionFailed")


@pytest.mark.parametrize("answer", [RIGHT, ALL], ids=["part", "whole"])
def test_a_server_that_ignores_the_condition_is_found_out(answer):
    with talk(answer) as (store, _), pytest.raises(PreconditionFailed):
        store.get_range("key", 2, 3, if_match='"other"')


def test_a_condition_that_fails():
    with talk(FAILED, reply(200, ETag=ETAG, length=0)) as (store, server):
        with pytest.raises(PreconditionFailed):
            store.get_range("key", 2, 3, if_match='"other"')
        assert [request.method for request in server.requests] == ["GET", "HEAD"]


def test_a_condition_that_fails_after_a_lost_answer():
    with talk(Step(end="reset"), FAILED, reply(200, ETag=ETAG, length=0), **PATIENT) as (store, _):
        with pytest.raises(PreconditionFailed):
            store.get_range("key", 2, 3, if_match='"other"')
        assert store._engine.unsettled.wait_before("key", lambda: None) == 0.0


def test_a_condition_fails_for_an_object_that_is_absent():
    with talk(FAILED, reply(404), NO_KEY) as (store, _), pytest.raises(ObjectNotFound):
        store.get_range("key", 2, 3, if_match=ETAG)


def test_a_missing_bucket_behind_no_such_key():
    # SeaweedFS says so where there is If-Match.
    with talk(NO_KEY, NO_BUCKET) as (store, _), pytest.raises(StoreError, match="no bucket"):
        store.get_range("key", 2, 3, if_match=ETAG)


# ── a range past the end ─────────────────────────────────────────────────────────────────────────────────

TEN = reply(200, ETag=ETAG, length=10)
PAST = fault(416, "InvalidRange")


def test_the_size_is_asked_for_where_it_is_not_said():
    with talk(PAST, TEN) as (store, server):
        assert store.get_range("key", 10, 3) == ObjectRange(b"", 10)
        assert [request.method for request in server.requests] == ["GET", "HEAD"]
    with talk(fault(416, "InvalidRange", Content_Range="bytes */10")) as (store, server):
        assert store.get_range("key", 10, 3) == ObjectRange(b"", 10)
        assert len(server.requests) == 1


def test_a_server_that_looks_at_the_range_before_the_condition():
    with talk(fault(416, "InvalidRange", Content_Range="bytes */10"), TEN) as (store, _):
        assert store.get_range("key", 10, 3, if_match=ETAG) == ObjectRange(b"", 10)
    with (
        talk(fault(416, "InvalidRange", Content_Range="bytes */10"), TEN) as (store, _),
        pytest.raises(PreconditionFailed),
    ):
        store.get_range("key", 10, 3, if_match='"other"')


def test_an_end_that_is_none():
    with talk(PAST, TEN) as (store, _), pytest.raises(StoreError, match="ends before a range that it has"):
        store.get_range("key", 9, 3)


def test_a_slow_range_may_be_asked_for_twice(monkeypatch):
    with talk(RIGHT) as (store, _):
        hedged = store._engine._hedged
        seen: list[str] = []

        def watched(request: Request) -> Answer:
            seen.append(request.resource)
            return hedged(request)

        monkeypatch.setattr(store._engine, "_hedged", watched)
        store.get_range("key", 2, 3)
        assert seen == ["key"]
