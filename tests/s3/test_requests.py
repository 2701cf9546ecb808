"""What is sent and to whom, and that no secret is in any log."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from urllib.parse import parse_qsl

import pytest

from s3backer.errors import S3backerError, StoreError, StoreUnreachable, UsageError
from s3backer.s3 import engine
from s3backer.s3.http1 import Answer
from s3backer.s3.signing import Keys, Signer, payload_hash
from s3backer.stores.s3 import S3Store
from tests.support.nasty import NastyServer, Request, Step, fault, reply
from tests.support.talks import (
    A_ETAG,
    ACCESS,
    CALLS,
    EMPTY_LIST,
    NO_KEY,
    NOW,
    OK,
    PUT_OK,
    SECRET,
    TOKEN,
    options_for,
    talk,
)


def parameters(request: Request) -> dict[str, str]:
    """Return the parameters in a request's query."""
    return dict(parse_qsl(request.target.partition("?")[2], keep_blank_values=True))


def payload_of(request: Request) -> str:
    """Return what a request says of its body's hash."""
    asked = parameters(request)
    return request.headers.get("x-amz-content-sha256") or asked.get("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")


def signed_names(request: Request) -> list[str]:
    said = request.headers.get("authorization", "").partition("SignedHeaders=")[2].partition(",")[0]
    return (said or parameters(request)["X-Amz-SignedHeaders"]).split(";")


def check_signature(request: Request, body: bytes) -> None:
    """Sign a request again as it arrived, from what it says it signed."""
    names = signed_names(request)
    headers = {n: request.headers[n] for n in names if n not in ("x-amz-date", "x-amz-content-sha256")}
    path, _, query = request.target.partition("?")
    payload = payload_of(request)
    assert payload in (payload_hash(body), "UNSIGNED-PAYLOAD")
    signer, keys = Signer("eu-test-1"), Keys(ACCESS, SECRET)
    if request.method in ("PUT", "DELETE"):
        assert parameters(request)["X-Amz-Expires"] == "60"
        query = "&".join(pair for pair in query.split("&") if not pair.startswith("X-Amz-"))
        target = signer.sign_until(request.method, path, query, headers, payload, keys, NOW, 60)
        assert target == request.target
    else:
        again = signer.sign(request.method, path, query, headers, payload, keys, NOW)
        assert again["Authorization"] == request.headers["authorization"]


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_request_is_signed_as_it_is_sent(call):
    with talk(OK, EMPTY_LIST) as (store, server):
        if call is CALLS["list"]:
            store.get("key")
        try:
            call(store)
        except StoreError:
            assert call is CALLS["delete"]
        request = server.requests[-1]
        check_signature(request, request.body)
        assert request.headers["host"] == server.url.removeprefix("http://")
        assert request.headers["accept-encoding"] == "identity"
        # On plain http nothing else protects the body.
        assert payload_of(request) == hashlib.sha256(request.body).hexdigest()


def test_a_put():
    with talk(PUT_OK) as (store, server):
        etag = store.put(
            "pre/a b", bytearray(b"body"), content_type="t/x", content_encoding="deflate", metadata={"n": "v w"}
        )
        store.put("key", b"")
        store.put("key", b"x", if_match=etag)
        store.put("key", b"x", if_none_match=True)
    first, empty, over, new, *_ = server.requests
    assert (first.method, first.target.partition("?")[0], first.body) == ("PUT", "/bucket/pre/a%20b", b"body")
    assert first.headers["content-md5"] == base64.b64encode(hashlib.md5(b"body").digest()).decode()
    assert (first.headers["content-type"], first.headers["content-encoding"]) == ("t/x", "deflate")
    assert first.headers["x-amz-meta-n"] == "v w"
    assert "content-md5" in signed_names(first)
    assert empty.headers["content-length"] == "0"
    assert empty.headers["content-type"] == "application/octet-stream"
    assert "content-encoding" not in empty.headers
    assert not {"if-match", "if-none-match"} & {*first.headers, *empty.headers}
    assert over.headers["if-match"] == A_ETAG
    assert new.headers["if-none-match"] == "*"


@pytest.mark.parametrize("key", ["a b", "a+b", "a%b", "?", "#", "//a//", "./..", "ü/😀", "~", "a:b;c=d&e"])
def test_keys_arrive_byte_by_byte(key):
    with talk(OK) as (store, server):
        store.get(key)
    path = server.requests[0].target
    assert re.fullmatch(r"/bucket/(?:[A-Za-z0-9_.~/-]|%[0-9A-F]{2})*", path)
    decoded = re.sub(b"%(..)", lambda m: bytes.fromhex(m[1].decode()), path.encode())
    assert decoded.decode() == f"/bucket/{key}"
    check_signature(server.requests[0], b"")


def test_a_listing_is_asked_for_with_its_query_in_order():
    with talk(EMPTY_LIST) as (store, server):
        store.list("p /", start_after="p /+", limit=7)
        store.list("")
    assert server.requests[0].target == (
        "/bucket/?encoding-type=url&list-type=2&max-keys=7&prefix=p%20%2F&start-after=p%20%2F%2B"
    )
    assert server.requests[1].target == "/bucket/?encoding-type=url&list-type=2&max-keys=1000"


def test_anonymous_requests_are_not_signed():
    with talk(OK, access_key=None, secret_key=None, anonymous=True) as (store, server):
        store.get("key")
    assert not {"authorization", "x-amz-date", "x-amz-content-sha256"} & set(server.requests[0].headers)
    assert "X-Amz" not in server.requests[0].target


def test_connections_are_used_again():
    with talk(OK) as (store, server):
        for _ in range(5):
            store.get("key")
        assert len(server._threads) == 2


# ── where it is sent ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("bucket", "url", "virtual_host", "host", "header", "target"),
    [
        ("b", None, None, "b.s3.eu-test-1.amazonaws.com", "b.s3.eu-test-1.amazonaws.com", "/k"),
        ("b.c", None, None, "s3.eu-test-1.amazonaws.com", "s3.eu-test-1.amazonaws.com", "/b.c/k"),
        ("b", None, False, "s3.eu-test-1.amazonaws.com", "s3.eu-test-1.amazonaws.com", "/b/k"),
        ("b", "https://s3.example.com", None, "s3.example.com", "s3.example.com", "/b/k"),
        ("b", "https://s3.example.com", True, "b.s3.example.com", "b.s3.example.com", "/k"),
        ("b", "https://s3.example.com:443/", True, "b.s3.example.com", "b.s3.example.com", "/k"),
        ("b", "http://s3.example.com:81/up/", None, "s3.example.com", "s3.example.com:81", "/up/b/k"),
        ("b", "http://s3.example.com/up", True, "b.s3.example.com", "b.s3.example.com", "/up/k"),
        ("b", "http://127.0.0.1:9000", True, "127.0.0.1", "127.0.0.1:9000", "/b/k"),
        ("b", "http://[::1]:9000", None, "[::1]", "[::1]:9000", "/b/k"),
        ("b", "http://[::1]:9000", True, "[::1]", "[::1]:9000", "/b/k"),
    ],
)
def test_the_bucket_is_in_the_host_or_in_the_path(monkeypatch, bucket, url, virtual_host, host, header, target):
    sent = []

    class Recorder:
        def __init__(self, place, **options):
            self.host = options["host"]

        def start(self, method, target, headers, body, *, leave, at_most):
            sent.append((self.host, headers["Host"], target))

        def finish(self, exchange):
            return Answer(200, {"etag": A_ETAG}, b"a")

    monkeypatch.setattr(engine, "Transport", Recorder)
    store = S3Store(bucket, options_for(url, virtual_host=virtual_host))
    store.get("k")
    assert sent == [(host, header, target)]
    assert store.name == f"s3://{bucket}"
    assert store.endpoint == (url.rstrip("/").removesuffix(":443") if url else "https://s3.eu-test-1.amazonaws.com")


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_over_tls_the_payload_is_not_signed_but_its_checksums_are(certificate):
    context, bundle = certificate
    body = bytes(range(256)) * 5000
    with talk(PUT_OK, tls=context, ca_bundle=str(bundle)) as (store, server):
        store.put("key", body)
    (request,) = server.requests
    assert request.body == body
    assert payload_of(request) == "UNSIGNED-PAYLOAD"
    assert {"content-md5", "x-amz-checksum-crc64nvme"} <= set(signed_names(request))
    check_signature(request, body)


def test_the_bundle_may_come_from_the_environment_or_be_unnecessary(certificate, monkeypatch):
    context, bundle = certificate
    with talk(OK, tls=context, verify_tls=False) as (store, _):
        assert store.get("key").body == b"a"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    with talk(OK, tls=context) as (store, _):
        assert store.get("key").body == b"a"


def test_an_untrusted_certificate_is_final(certificate):
    context, _ = certificate
    with talk(OK, tls=context, patience=60.0) as (store, server):
        with pytest.raises(StoreUnreachable, match="certificate is not trusted") as caught:
            store.get("key")
        assert "--ca-bundle" in caught.value.hint
        assert server.requests == []
        assert store.counters.retries == 0


def test_https_where_http_is_spoken():
    with NastyServer(Step(reply(400), read=False, end="close")) as server:
        store = S3Store("bucket", options_for(server.url.replace("http:", "https:")))
        with pytest.raises(StoreUnreachable, match="TLS failed") as caught:
            store.get("key")
        assert "http://" in caught.value.hint
        store.close()


@pytest.mark.parametrize("name", ["absent.pem", "garbage.pem"])
def test_a_bundle_that_is_none(tmp_path, name):
    (tmp_path / "garbage.pem").write_text("garbage")
    with pytest.raises(UsageError, match=name) as caught:
        S3Store("bucket", options_for("https://127.0.0.1:1", ca_bundle=str(tmp_path / name)))
    assert "PEM" in caught.value.hint


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────


def test_no_secret_is_in_any_log_or_error(monkeypatch, caplog, certificate):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    context, bundle = certificate
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, name)
    script: list[bytes | Step] = [
        reply(503),
        Step(end="reset"),
        OK,
        fault(403, "SignatureDoesNotMatch"),
        fault(400, "ExpiredToken"),
    ]
    texts, sent = [], []
    for tls in (None, context):
        with talk(*script, tls=tls, access_key=None, secret_key=None, ca_bundle=str(bundle), patience=0.5) as (
            store,
            server,
        ):
            assert store.get("key").body == b"a"
            for call in CALLS.values():
                try:
                    call(store)
                except S3backerError as caught:
                    error: BaseException | None = caught
                    while error is not None:
                        texts.append(f"{error!r} {error} {getattr(error, 'hint', '')} {error.args}")
                        error = error.__cause__ or error.__context__
            texts += [repr(store), repr(vars(store)), repr(options_for(server.url))]
            sent += server.requests
    assert all(
        TOKEN in (r.headers.get("x-amz-security-token"), parameters(r).get("X-Amz-Security-Token")) for r in sent
    )
    records = [f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in caplog.records]
    assert any("attempt 2" in record for record in records)
    assert any("botocore" in record.name for record in caplog.records)
    signatures = {parameters(r).get("X-Amz-Signature") or r.headers["authorization"].rpartition("=")[2] for r in sent}
    for text in [*records, *texts]:
        for secret in (SECRET, TOKEN, "AWS4-HMAC", *signatures):
            assert secret not in text
        assert "authorization:" not in text.lower()


REFUSED = fault(412, "PreconditionFailed")


def conditions_of(server: NastyServer) -> list[tuple[str | None, str | None]]:
    return [(request.headers.get("if-match"), request.headers.get("if-none-match")) for request in server.requests]


@pytest.mark.parametrize(
    ("trials", "heeded"),
    [
        ([REFUSED, REFUSED], True),
        ([fault(409, "ConditionalRequestConflict"), REFUSED, REFUSED], True),
        ([REFUSED, NO_KEY], True),
        # A log-in page says nothing about the server behind it.
        ([reply(200, "<html>Log in", Content_Type="text/html"), REFUSED, REFUSED], True),
        ([REFUSED, PUT_OK], False),
        ([PUT_OK, REFUSED], False),
        ([PUT_OK, PUT_OK], False),
    ],
)
def test_whether_conditions_are_heeded_is_tried_once(trials, heeded, caplog, monkeypatch):
    """With the second conditional PUT: the first is the mount token, and an opening costs little."""
    with talk(PUT_OK, PUT_OK, *trials, PUT_OK, patience=30.0) as (store, server):
        store._engine._sleep = lambda _: None
        # A trial whose answer was lost delays the next write of its object.
        monkeypatch.setattr(store._engine, "wait", lambda _: None)
        store.put("token", b"t", if_none_match=True)
        assert store.conditions is None and len(server.requests) == 1
        store.put("key", b"x", if_none_match=True)
        assert store.conditions is heeded
        store.put("key", b"y", if_match=A_ETAG)
        assert len(server.requests) == 3 + len(trials)
        tried = server.requests[2 : 2 + len(trials)]
        assert {(request.target.partition("?")[0], request.body) for request in tried} == {("/bucket/key", b"x")}
        assert {"*", None} == {request.headers.get("if-none-match") for request in tried}
        assert sum(request.headers.get("if-match") == f'"{"0" * 32}"' for request in tried) == 1
    assert ("does not heed the conditions" in caplog.text) is not heeded


def test_a_trial_that_fails_is_made_again():
    away = reply(500)
    with talk(PUT_OK, PUT_OK, away, PUT_OK, REFUSED, REFUSED) as (store, _):
        for key in ("token", "one"):
            store.put(key, b"", if_none_match=True)
        assert store.conditions is None
        store.put("two", b"", if_none_match=True)
        assert store.conditions is True


def test_a_server_without_conditions_for_deletions_is_asked_without_them():
    unknown = fault(501, "NotImplemented")
    with talk(unknown, reply(204)) as (store, server):
        store.delete("key", if_match=A_ETAG)
        store.delete("key", if_match=A_ETAG)
    assert [condition for condition, _ in conditions_of(server)] == [A_ETAG, None, None]
