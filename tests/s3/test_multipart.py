"""Objects in parts: what is sent, and that a failure at any point leaves neither parts nor doubt."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import pytest

from s3backer._checksum import crc64nvme
from s3backer.errors import AccessDenied, BucketNotFound, PreconditionFailed, StoreError
from s3backer.s3 import multipart
from s3backer.s3.engine import Engine
from s3backer.s3.retries import Failure
from s3backer.stores.bodies import size_of
from s3backer.stores.s3 import S3Store
from tests.support.nasty import NastyServer, Request, Step, fault, reply
from tests.support.talks import NO_BUCKET, NO_KEY, options_for

#: Three parts of at most four bytes.
BODY = [b"01", b"2345", b"67", b"89"]
WHOLE = b"0123456789"
PARTS = (b"0123", b"4567", b"89")
ETAG = '"0123456789abcdef0123456789abcdef-3"'
CREATED = reply(
    200,
    "<InitiateMultipartUploadResult><UploadId>up/1+</UploadId></InitiateMultipartUploadResult>",
    x_amz_checksum_algorithm="CRC64NVME",
)
PART_OK = reply(200, ETag='"part"')
COMPLETE = reply(
    200,
    '<?xml version="1.0"?><CompleteMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    f"<ETag>{ETAG.replace(chr(34), '&quot;')}</ETag></CompleteMultipartUploadResult>",
)
ABORTED = reply(204)
LOST = Step(end="close")
FAILED = fault(412, "PreconditionFailed")
NO_UPLOAD = fault(404, "NoSuchUpload")
HEAD = reply(200, length=10, ETag=ETAG, x_amz_meta_token="mine")
RANGES = [
    reply(206, WHOLE[at : at + 4], ETag=ETAG, Content_Range=f"bytes {at}-{min(at + 4, 10) - 1}/10") for at in (0, 4, 8)
]


class Large:
    """A store with tiny parts and a server that answers to a script. Its pauses take no time."""

    def __init__(self, *script: bytes | Step, **options: Any) -> None:
        self.server = NastyServer(*script)
        given = options_for(self.server.url, **{"patience": 5.0, **options})
        self.store = S3Store("bucket", given, part_size=4, sleep=lambda _: None)

    def __enter__(self) -> tuple[S3Store, NastyServer]:
        self.server.__enter__()
        return self.store, self.server

    def __exit__(self, *_: object) -> None:
        self.store.close()
        self.server.__exit__()


def query_of(request: Request) -> dict[str, str]:
    found = dict(parse_qsl(request.target.partition("?")[2], keep_blank_values=True))
    return {name: value for name, value in found.items() if not name.startswith("X-Amz-")}


def put(store: S3Store, **options: Any) -> str:
    return store.put_large("a b", BODY, metadata={"token": "mine"}, **options)


def steps(server: NastyServer) -> list[str]:
    """Return what was asked of the server, parts in any order."""
    names = []
    for request in server.requests:
        query = query_of(request)
        kind = {"POST": "complete" if "uploadId" in query else "create", "DELETE": "abort", "PUT": "part"}
        names.append(kind.get(request.method, request.method))
    return names


def crc64(body: bytes) -> str:
    return base64.b64encode(crc64nvme(body).to_bytes(8, "big")).decode()


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_object_in_parts():
    with Large(CREATED, PART_OK, PART_OK, PART_OK, COMPLETE, storage_class="COLD") as (store, server):
        assert put(store, content_type="t/x", content_encoding="deflate") == ETAG
        counts = store.counters.snapshot()
    assert steps(server) == ["create", "part", "part", "part", "complete"]
    assert (counts["put"].requests, counts["put"].failures, counts["delete"].requests) == (5, 0, 0)
    create, *parts, complete = server.requests
    assert {request.target.partition("?")[0] for request in server.requests} == {"/bucket/a%20b"}
    assert all("X-Amz-Expires=60" in request.target for request in server.requests)
    assert query_of(create) == {"uploads": ""}
    said = ("content-type", "content-encoding", "x-amz-meta-token", "x-amz-storage-class", "x-amz-checksum-algorithm")
    assert [create.headers[name] for name in said] == ["t/x", "deflate", "mine", "COLD", "CRC64NVME"]
    by_number = {int(query_of(part)["partNumber"]): part for part in parts}
    assert [by_number[number].body for number in (1, 2, 3)] == list(PARTS)
    for part in parts:
        assert query_of(part)["uploadId"] == "up/1+"
        assert part.headers["x-amz-checksum-crc64nvme"] == crc64(part.body)
        assert part.headers["content-md5"] == base64.b64encode(hashlib.md5(part.body).digest()).decode()
    assert query_of(complete) == {"uploadId": "up/1+"}
    assert complete.headers["x-amz-checksum-crc64nvme"] == crc64(WHOLE)
    assert not {"if-match", "if-none-match"} & set(complete.headers)
    listed = re.findall(rb"<Part><PartNumber>(\d)</PartNumber><ETag>(.*?)</ETag><Ch\w+>(.*?)</Ch\w+>", complete.body)
    assert listed == [(b"%d" % n, b'"part"', crc64(body).encode()) for n, body in enumerate(PARTS, 1)]


def test_what_one_part_holds_is_a_put():
    with Large(reply(200, ETag='"x"')) as (store, server):
        assert store.put_large("key", [b"01", b"23"], if_none_match=True) == '"x"'
    assert [(request.method, query_of(request)) for request in server.requests] == [("PUT", {})]
    assert server.requests[0].headers["if-none-match"] == "*"


def test_a_server_that_keeps_no_sum_of_the_whole_is_told_none():
    old = CREATED.replace(b"x-amz-checksum-algorithm", b"x-amz-something-elsewhere")
    with Large(old, PART_OK, PART_OK, PART_OK, COMPLETE) as (store, server):
        put(store)
    assert "x-amz-checksum-crc64nvme" not in server.requests[-1].headers


def test_parts_are_sent_several_at_once_and_never_more_than_allowed(monkeypatch):
    met, under_way, most = threading.Barrier(4), 0, 0
    real, lock = Engine.perform, threading.Lock()

    def perform(engine: Engine, request, *arguments, **options):
        nonlocal under_way, most
        if request.method != "PUT":
            return real(engine, request, *arguments, **options)
        with lock:
            under_way += 1
            most = max(most, under_way)
        # Without company it breaks.
        met.wait(timeout=20)
        try:
            return real(engine, request, *arguments, **options)
        finally:
            with lock:
                under_way -= 1

    monkeypatch.setattr(Engine, "perform", perform)
    with Large(CREATED, *[PART_OK] * 8, COMPLETE) as (store, _):
        store.put_large("key", bytes(32))
    assert most == 4


def test_no_object_has_more_parts_than_s3_takes(monkeypatch):
    monkeypatch.setattr(multipart, "MOST_PARTS", 5)
    assert [size_of(part) for part in multipart.cut_parts(bytes(20), 4)] == [4] * 5
    assert [size_of(part) for part in multipart.cut_parts(bytes(21), 4)] == [5, 5, 5, 5, 1]
    assert (multipart.PART, len(multipart.cut_parts(bytes(8 << 20))), len(multipart.cut_parts(b""))) == (8 << 20, 1, 0)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "bad",
    [
        reply(503),
        LOST,
        fault(400, "BadDigest"),
        reply(200),
        reply(200, ETag='"part"', x_amz_checksum_crc64nvme="AAAAAAAAAAA="),
    ],
    ids=["503", "lost", "altered on the way", "no ETag", "another sum"],
)
def test_a_part_is_sent_again(bad):
    with Large(CREATED, bad, PART_OK, PART_OK, PART_OK, COMPLETE, connections=1) as (store, server):
        assert put(store) == ETAG
        assert steps(server) == ["create", *["part"] * 4, "complete"]
        sent = sorted(request.body for request in server.requests[1:5])
        assert set(sent) == set(PARTS)
        # Nothing of the object has changed meanwhile.
        assert store._engine.unsettled.wait_before("a b", lambda: None) == 0.0


def test_the_etag_of_a_part_is_compared_where_it_is_an_md5(monkeypatch):
    # One after the other, so that each meets its own answer.
    monkeypatch.setattr(multipart, "_AT_ONCE", 1)
    right = [reply(200, ETag=f'"{hashlib.md5(part).hexdigest()}"') for part in PARTS]
    wrong = reply(200, ETag=f'"{"0" * 32}"')
    known = reply(200, ETag=f'"{hashlib.md5(b"").hexdigest()}"')
    with Large(known, CREATED, wrong, *right, COMPLETE) as (store, server):
        store.put("key", b"")
        put(store)
        assert steps(server)[1:] == ["create", *["part"] * 4, "complete"]


@pytest.mark.parametrize("failing", range(3))
def test_a_part_that_fails_ends_the_upload(failing):
    answers = [fault(403, "AccessDenied") if number == failing else PART_OK for number in range(3)]
    with Large(CREATED, *answers, ABORTED) as (store, server), pytest.raises(AccessDenied):
        put(store)
    assert steps(server)[-1] == "abort" and "complete" not in steps(server)
    assert query_of(server.requests[-1]) == {"uploadId": "up/1+"}
    assert not any("part of" in thread.name for thread in threading.enumerate())


def test_no_part_is_begun_after_one_has_failed():
    with Large(CREATED, fault(403, "AccessDenied")) as (store, server), pytest.raises(AccessDenied):
        store.put_large("key", bytes(4 * 100))
    assert steps(server).count("part") <= multipart._AT_ONCE


# ── beginning ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", [reply(200), reply(200, "<html></html>"), reply(503), LOST, reply(200, "<Initiate")])
def test_an_upload_is_begun_again(bad):
    with Large(bad, CREATED, PART_OK, PART_OK, PART_OK, COMPLETE) as (store, server):
        assert put(store) == ETAG
    assert steps(server)[:3] == ["create", "create", "part"]


def test_an_upload_that_cannot_be_begun():
    with Large(NO_BUCKET) as (store, server), pytest.raises(BucketNotFound):
        put(store)
    assert steps(server) == ["create"]


@pytest.mark.parametrize(
    ("found", "condition"),
    [(HEAD, {"if_none_match": True}), (HEAD, {"if_match": '"other"'}), (reply(404), {"if_match": ETAG})],
)
def test_a_condition_that_fails_already_costs_no_upload(found, condition):
    with Large(found, NO_KEY) as (store, server), pytest.raises(PreconditionFailed):
        put(store, **condition)
    assert set(steps(server)) <= {"HEAD", "GET"}


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────

UPLOADED = (CREATED, PART_OK, PART_OK, PART_OK)


def inside_200(code: str, blanks: str = "") -> bytes:
    text = f"<Error><Code>{code}</Code><Message>so</Message></Error>"
    return reply(200, f'<?xml version="1.0" encoding="UTF-8"?>\n{blanks}{text}', Content_Type="application/xml")


@pytest.mark.parametrize("code", ["InternalError", "SlowDown"])
def test_an_error_inside_a_200_is_tried_again(code):
    with Large(*UPLOADED, inside_200(code, " \n " * 50), COMPLETE) as (store, server):
        assert put(store) == ETAG
        counts = store.counters.snapshot()["put"]
    assert steps(server)[4:] == ["complete", "complete"]
    assert (counts.requests, counts.failures) == (6, 1)


@pytest.mark.parametrize(
    ("code", "error"), [("AccessDenied", AccessDenied), ("PreconditionFailed", PreconditionFailed), ("Odd", StoreError)]
)
def test_an_error_inside_a_200_that_is_final(code, error):
    with Large(reply(404), NO_KEY, *UPLOADED, inside_200(code), ABORTED) as (store, server), pytest.raises(error):
        put(store, if_none_match=True)
    assert steps(server)[-2:] == ["complete", "abort"]


@pytest.mark.parametrize("bad", [reply(200), reply(200, "<html>log in</html>"), reply(200, "<CompleteMultip")])
def test_an_end_that_is_none_is_no_success(bad):
    with Large(*UPLOADED, bad, COMPLETE) as (store, _):
        assert put(store) == ETAG
    expected = pytest.raises(StoreError, match="unusable answer")
    with Large(*UPLOADED, *[bad] * 8, ABORTED) as (store, server), expected:
        put(store)
    assert steps(server)[-1] == "abort"


def test_blanks_before_the_end():
    kept_waiting = reply(200, b" \n" * 20 + COMPLETE.partition(b"\r\n\r\n")[2])
    with Large(*UPLOADED, kept_waiting) as (store, server):
        assert put(store) == ETAG
        assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("condition", "failed"),
    [({}, NO_UPLOAD), ({"if_none_match": True}, NO_UPLOAD), ({"if_none_match": True}, FAILED)],
    ids=["plain", "new, no upload", "new, condition"],
)
@pytest.mark.parametrize("lost", [LOST, Step(end="reset"), reply(500), inside_200("InternalError")])
def test_a_lost_answer_at_the_end_is_settled_by_reading_back(lost, condition, failed):
    first = [reply(404), NO_KEY] if condition else []
    script = [*first, *UPLOADED, lost, failed, ABORTED]
    with Large(*script, HEAD, *RANGES) as (store, server):
        assert put(store, **condition) == ETAG
        asked = ["complete", "complete", "abort", "HEAD", "GET", "GET", "GET"]
        assert steps(server)[-7:] == asked
        assert [request.headers["if-match"] for request in server.requests[-3:]] == [ETAG] * 3
        # The first one may still arrive.
        assert store._engine.unsettled.wait_before("a b", lambda: None) > 0
    other_body = RANGES[1].replace(b"4567", b"45x7")
    for found in (
        [reply(404), NO_KEY],
        [HEAD.replace(b"mine", b"theirs")],
        [HEAD.replace(b"Length: 10", b"Length: 11")],
        [HEAD, RANGES[0], other_body],
        [HEAD, RANGES[0], FAILED, HEAD],
    ):
        with Large(*script, *found) as (store, _), pytest.raises(PreconditionFailed):
            put(store, **condition)


def test_an_upload_that_is_gone_without_a_lost_answer():
    for script in ([*UPLOADED, NO_UPLOAD], [CREATED, NO_UPLOAD]):
        expected = pytest.raises(StoreError, match="has lost the parts of s3://bucket/a b")
        with Large(*script) as (store, server), expected:
            put(store)
        assert steps(server)[-1] == "abort"


# ── aborting ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gone", [ABORTED, reply(200), NO_UPLOAD, reply(404)])
def test_an_abort_of_what_is_gone_is_a_success(gone, caplog, monkeypatch):
    monkeypatch.setattr(multipart, "_AT_ONCE", 1)
    denied = fault(403, "AccessDenied")
    with Large(CREATED, denied, gone) as (store, server), pytest.raises(AccessDenied):
        store.put_large("a b", BODY)
    assert steps(server) == ["create", "part", "abort"]
    assert "are left" not in caplog.text


def test_parts_that_cannot_be_removed_are_named(caplog):
    with Large(CREATED, reply(503)) as (store, server):
        with pytest.raises(StoreError, match="503"), caplog.at_level(logging.WARNING):
            put(store)
        assert steps(server)[-2:] == ["abort", "abort"]
    assert "parts of an upload of s3://bucket/a b are left in the store: abort upload 'up/1+' there" in caplog.text


@pytest.mark.parametrize("conditional", [False, True])
def test_both_servers_when_the_answer_at_the_end_is_lost(s3_server, conditional, monkeypatch):
    store = S3Store(s3_server.make_bucket(), replace(s3_server.options(), patience=9.0), part_size=5 << 20)
    real = Engine._once
    lost: list[int] = []

    def once(engine: Engine, request):
        answer = real(engine, request)
        if request.method == "POST" and "uploadId" in request.query and not lost:
            lost.append(answer.status)
            raise Failure(StoreError("lost"), retried=True)
        return answer

    monkeypatch.setattr(Engine, "_once", once)
    body = [bytes([7]) * (5 << 20), b"end"]
    etag = store.put_large("key", body, metadata={"a": "1"}, if_none_match=conditional)
    assert lost == [200]
    # Neither the repetition nor the abort has taken anything away.
    assert store.head("key").etag == etag
    assert store.get("key").body == b"".join(body)
    store.close()
