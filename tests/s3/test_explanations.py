"""What the user is told when an answer is no success, and what it takes to call an object absent."""

from __future__ import annotations

from email.utils import formatdate

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from s3backer.errors import (
    AccessDenied,
    BucketNotFound,
    ObjectNotFound,
    PreconditionFailed,
    S3backerError,
    StoreError,
    StoreFull,
    UsageError,
)
from tests.support.nasty import Step, fault, reply
from tests.support.talks import A_ETAG, BARE_404, CALLS, EMPTY_LIST, NO_BUCKET, NO_KEY, NOW, OK, PUT_OK, talk

EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def told(call, *script: bytes | Step, **options) -> S3backerError:
    """Return the error with which a call ends."""
    with talk(*script, **options) as (store, _), pytest.raises(S3backerError) as caught:
        call(store)
    return caught.value


# ── what the user is told ────────────────────────────────────────────────────────────────────────────────

#: The answer, the error, parts of its message and of its hint.
TOLD = {
    "signature": (
        fault(403, "SignatureDoesNotMatch", extra="<StringToSign>x</StringToSign>"),
        AccessDenied,
        ["refuses the signature", "s3://bucket/key", "http://127.0.0.1"],
        "AWS_SECRET_ACCESS_KEY",
    ),
    "access key": (fault(403, "InvalidAccessKeyId"), AccessDenied, ["does not know this access key"], "AWS_ACCESS_KEY"),
    "token": (fault(400, "ExpiredToken"), AccessDenied, ["not valid any more (ExpiredToken)"], "aws sso login"),
    "denied": (
        fault(403, "AccessDenied", "No."),
        AccessDenied,
        ["denies access to s3://bucket/key (403 AccessDenied: No.)"],
        "may get, put, delete and list",
    ),
    "denied by HTML": (reply(403, "<html>no</html>"), AccessDenied, ["denies access", "(403)"], "may get"),
    "bucket": (NO_BUCKET, BucketNotFound, ["there is no bucket 'bucket' at http://127.0.0.1"], "aws s3 mb"),
    "bucket name": (fault(400, "InvalidBucketName"), UsageError, ["'bucket' is no valid name"], "URL"),
    "region": (
        fault(301, "PermanentRedirect", x_amz_bucket_region="us-west-2"),
        StoreError,
        ["is in region us-west-2", "went to eu-test-1"],
        "--region us-west-2",
    ),
    "region of the signature": (
        fault(400, "AuthorizationHeaderMalformed", extra="<Region>us-west-2</Region>"),
        StoreError,
        ["is in region us-west-2"],
        "--region us-west-2",
    ),
    "elsewhere": (
        fault(307, "TemporaryRedirect", Location="http://127.0.0.1:1/"),
        StoreError,
        ["sends requests for bucket 'bucket' elsewhere"],
        "--endpoint-url",
    ),
    "HTML": (
        reply(404, "<html>nothing here</html>", Content_Type="text/html"),
        StoreError,
        ["answers 404 with text/html", "not as an S3 server does"],
        "endpoint URL",
    ),
    "clock": (
        fault(403, "RequestTimeTooSkewed", Date=formatdate(NOW - 7200)),
        AccessDenied,
        ["clock of this computer is off by 7199 s (ahead)"],
        "timedatectl",
    ),
    "clock without a date": (fault(403, "RequestTimeTooSkewed"), AccessDenied, ["computer is wrong"], "timedatectl"),
    "server": (
        fault(500, "InternalError", "Oops"),
        StoreError,
        ["fails for s3://bucket/key (500 InternalError: Oops)"],
        "later",
    ),
}


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("call", ["get", "put", "head", "delete"])
def test_the_cause_is_told(name, call):
    answer, kind, parts, hint = TOLD[name]
    if call == "head":
        # The answer to a HEAD is the same without its body; what follows is a GET.
        head, _, _ = answer.partition(b"\r\n\r\n")
        script = [head + b"\r\n\r\n", answer]
        if name in ("server", "elsewhere", "region"):
            script = script[:1]
            parts = [part.replace(" (500 InternalError: Oops)", " (500)") for part in parts]
    else:
        script = [answer]
    if (call, name) == ("delete", "HTML"):
        script = [answer, answer]
    error = told(CALLS[call], *script)
    assert type(error) is kind
    for part in parts:
        assert part in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (fault(507, "XMinioStorageFull", "Below the minimum."), "(507 XMinioStorageFull: Below the minimum.)"),
        (reply(507, "<html>full</html>"), "(507)"),
        (fault(500, "InternalError", "write: No space left on device"), "No space left on device"),
        (fault(403, "QuotaExceeded"), "(403 QuotaExceeded"),
    ],
)
def test_a_store_without_room_loses_nothing(answer, said):
    error = told(CALLS["put"], answer)
    assert type(error) is StoreFull
    assert "has no room for s3://bucket/key" in error.message and said in error.message
    assert "Free space there, or raise the quota." in error.hint and "nothing is lost" in error.hint


def test_no_credentials():
    error = told(CALLS["get"], OK, access_key=None, secret_key=None)
    assert type(error) is AccessDenied
    assert error.message == "no credentials found for s3://bucket"
    assert "AWS_ACCESS_KEY_ID" in error.hint


def test_a_server_without_conditions():
    for answer in (fault(501, "NotImplemented"), reply(501), fault(400, "NotImplemented")):
        error = told(CALLS["put new"], answer)
        assert "does not support conditional writes" in error.message
        assert "s3://bucket/key" in error.message
        assert "Without them" in error.hint
    assert "conditional" not in told(CALLS["put"], fault(501, "NotImplemented")).message


@EVERY_CALL
@pytest.mark.parametrize(
    "page",
    [
        reply(200, "<html><body>Please log in</body></html>", Content_Type="text/html"),
        reply(200, "<!DOCTYPE html><html></html>", Content_Type="text/html"),
        reply(206, "a", ETag=A_ETAG, Content_Range="bytes 0-0/9"),
    ],
    ids=["HTML", "doctype", "a part"],
)
def test_a_web_page_is_no_success(call, page):
    page = page.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if call is CALLS["head"] else page
    error = told(call, Step(page, end="close"))
    assert isinstance(error, StoreError)
    assert not isinstance(error, ObjectNotFound)
    assert error.hint


# ── absent objects and missing buckets ───────────────────────────────────────────────────────────────────


def test_an_absent_object():
    assert type(told(CALLS["get"], NO_KEY)) is ObjectNotFound
    with talk(BARE_404, NO_KEY, BARE_404) as (store, server):
        for _ in range(2):
            with pytest.raises(ObjectNotFound):
                store.head("key")
        assert [request.method for request in server.requests] == ["HEAD", "GET", "HEAD"]
        assert server.requests[1].headers["range"] == "bytes=0-0"


def test_a_bucket_that_has_been_seen_is_not_asked_for_again():
    with talk(OK, BARE_404) as (store, server):
        store.get("key")
        with pytest.raises(ObjectNotFound):
            store.head("other")
        store.delete("other")
        assert [request.method for request in server.requests] == ["GET", "HEAD", "DELETE"]


@pytest.mark.parametrize(
    "proof",
    [reply(206, "a", ETag=A_ETAG), OK, fault(416, "InvalidRange")],
    ids=["first byte", "whole", "empty"],
)
def test_an_object_that_appears_meanwhile_proves_the_bucket(proof):
    assert type(told(CALLS["head"], BARE_404, proof)) is ObjectNotFound


@pytest.mark.parametrize(
    ("call", "answer"),
    [("head", BARE_404), ("delete", BARE_404), ("delete", NO_KEY), ("put new", fault(412, "PreconditionFailed"))],
)
def test_a_missing_bucket_never_looks_like_an_absent_object(call, answer):
    assert type(told(CALLS[call], answer, NO_BUCKET)) is BucketNotFound
    assert type(told(CALLS[call], answer, fault(403, "AccessDenied"))) is AccessDenied
    html = told(CALLS[call], answer, reply(404, "<html></html>"))
    assert type(html) is StoreError
    page = told(CALLS[call], answer, reply(200, "<html></html>"))
    assert "it gives no ETag" in page.message


def test_a_bucket_that_goes_away_is_missed_wherever_the_server_says_so():
    for call in ("get", "put", "put new", "delete", "list"):
        with talk(OK, NO_BUCKET) as (store, _):
            store.get("key")
            with pytest.raises(BucketNotFound):
                CALLS[call](store)


def test_delete():
    for answer in (reply(204), reply(200)):
        with talk(answer) as (store, server):
            store.delete("key")
            assert len(server.requests) == 1
    for absent in (NO_KEY, BARE_404):
        with talk(absent, NO_KEY) as (store, server):
            store.delete("key")
            assert [request.method for request in server.requests] == ["DELETE", "GET"]


@pytest.mark.parametrize("page", ["404 page not found\n", "<html>nothing here</html>"])
def test_a_page_that_says_404_deletes_nothing(page):
    """So does whatever stands before a service that is away."""
    with talk(OK, reply(404, page, Content_Type="text/plain")) as (store, _):
        store.get("key")
        with pytest.raises(StoreError, match="not as an S3 server does"):
            store.delete("key")


def test_conditions_that_fail():
    for answer in (fault(412, "PreconditionFailed"), reply(412), NO_KEY):
        with talk(OK, answer) as (store, _):
            store.get("key")
            with pytest.raises(PreconditionFailed) as caught:
                store.put("key", b"a", if_match='"x"')
            assert caught.value.key == "key"


def test_a_head_that_alone_is_denied():
    error = told(CALLS["head"], *[reply(403), OK] * 8)
    assert type(error) is AccessDenied


def test_a_head_that_says_no_length():
    error = told(CALLS["head"], Step(b"HTTP/1.1 200 OK\r\nETag: x\r\n\r\n", end="close"))
    assert "does not say how long" in error.message


# ── anything at all ──────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_is_answered_there_is_an_answer_or_an_explained_error(data):
    base = data.draw(st.sampled_from([OK, PUT_OK, NO_KEY, NO_BUCKET, EMPTY_LIST, BARE_404]))
    junk = bytearray(base)
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(junk)))
        junk[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=12))
    call = CALLS[data.draw(st.sampled_from(sorted(CALLS)))]
    with talk(Step(bytes(junk), end="close")) as (store, _):
        try:
            call(store)
        except S3backerError as error:
            assert error.message
