"""What shows that a body is the one that was sent, and what is done where it is not."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest

from s3backer._checksum import crc32c, crc64nvme
from s3backer.errors import CorruptObject
from s3backer.s3.request import Request
from s3backer.stores.s3 import S3Store
from tests.support.nasty import fault, reply
from tests.support.talks import A_ETAG, OK, PUT_OK, talk

B_ETAG = '"92eb5ffee6ae2fec3ad71c777531578f"'


def crc64(body: bytes) -> str:
    return base64.b64encode(crc64nvme(body).to_bytes(8, "big")).decode()


def md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def test_a_put_carries_both_until_the_server_has_shown_that_it_keeps_the_one():
    knows = reply(200, ETag=A_ETAG, x_amz_checksum_crc64nvme=crc64(b"a"))
    with talk(PUT_OK, knows, PUT_OK) as (store, server):
        for _ in range(3):
            store.put("key", b"a")
    sent = [(r.headers["x-amz-checksum-crc64nvme"], r.headers.get("content-md5")) for r in server.requests]
    assert sent == [(crc64(b"a"), md5(b"a")), (crc64(b"a"), md5(b"a")), (crc64(b"a"), None)]


@pytest.mark.parametrize("echo", [crc64(b"b"), "", "nonsense"])
def test_a_server_that_answers_something_else_does_not_keep_it(echo):
    with talk(reply(200, ETag=A_ETAG, x_amz_checksum_crc64nvme=echo), PUT_OK) as (store, server):
        store.put("key", b"a")
        store.put("key", b"a")
    assert server.requests[1].headers["content-md5"] == md5(b"a")


def test_a_get_asks_for_what_is_kept():
    with talk(OK) as (store, server):
        store.get("key")
    assert server.requests[0].headers["x-amz-checksum-mode"] == "ENABLED"


KEPT = {
    "crc64nvme": {"x_amz_checksum_crc64nvme": crc64(b"a")},
    "crc32c": {"x_amz_checksum_crc32c": base64.b64encode(crc32c(b"a").to_bytes(4, "big")).decode()},
    "full": {"x_amz_checksum_crc64nvme": crc64(b"a"), "x_amz_checksum_type": "FULL_OBJECT"},
}


@pytest.mark.parametrize("headers", KEPT.values(), ids=KEPT)
def test_a_body_is_verified_by_the_checksum_that_is_kept(headers):
    # Its ETag says nothing: it is that of an object in parts.
    etag = f'"{A_ETAG[1:-1]}-2"'
    with talk(reply(200, "a", ETag=etag, **headers)) as (store, server):
        assert store.get("key").body == b"a"
        assert len(server.requests) == 1
    with talk(reply(200, "b", ETag=etag, **headers)) as (store, _), pytest.raises(CorruptObject):
        store.get("key")
    with talk(
        reply(200, "b", ETag=etag, **headers), reply(200, "a", ETag=etag, **headers), patience=9.0, first_pause=0.01
    ) as (store, server):
        assert store.get("key").body == b"a"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("etag", "headers", "means"),
    [
        (A_ETAG, {}, "md5"),
        (A_ETAG, KEPT["crc64nvme"], "crc64nvme"),
        (A_ETAG, KEPT["crc32c"], "crc32c"),
        (A_ETAG, {**KEPT["crc32c"], **KEPT["crc64nvme"]}, "crc64nvme"),
        (A_ETAG, {"x_amz_checksum_sha1": "AAAA"}, "md5"),
        (f'"{A_ETAG[1:-1]}-2"', {}, ""),
        (A_ETAG, {"x_amz_server_side_encryption": "aws:kms"}, ""),
        ('"opaque"', {}, ""),
        (f'"{A_ETAG[1:-1]}-2"', {"x_amz_checksum_crc32c": "AAAAAA==-3"}, ""),
    ],
)
def test_it_says_by_what_a_body_was_verified(etag, headers, means):
    with talk(reply(200, "a", ETag=etag, **headers)) as (store, _):
        assert store.get("key").verified == means


def test_a_server_whose_etags_are_no_md5_verifies_nothing_by_them():
    with talk(reply(200, ETag=B_ETAG), reply(200, "a", ETag=B_ETAG)) as (store, _):
        store.put("key", b"a")
        assert store.get("key").verified == ""


def test_a_body_that_is_not_what_its_etag_says_is_refused():
    with talk(reply(200, "b", ETag=A_ETAG)) as (store, _), pytest.raises(CorruptObject):
        store.get("key")


@pytest.mark.parametrize(
    "headers",
    [
        {"x_amz_checksum_crc64nvme": crc64(b"a"), "x_amz_checksum_type": "COMPOSITE"},
        {"x_amz_checksum_crc32c": "AAAAAA==-3"},
        {"x_amz_checksum_sha1": "AAAA"},
    ],
)
def test_a_checksum_of_something_else_than_the_body_is_not_compared(headers):
    with talk(reply(200, "b", ETag=B_ETAG, **headers)) as (store, _):
        assert store.get("key").body == b"b"


@pytest.mark.parametrize("code", ["BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"])
def test_a_body_that_arrived_altered_is_sent_again(code):
    with talk(fault(400, code), PUT_OK, patience=9.0, first_pause=0.01) as (store, server):
        assert store.put("key", b"a") == A_ETAG
        assert [request.body for request in server.requests] == [b"a", b"a"]


def test_both_servers_keep_it_and_refuse_another(s3_server):
    store = S3Store(s3_server.make_bucket(), replace(s3_server.options(), patience=0.3))
    body = bytes(range(256)) * 100
    etag = store.put("key", body)
    assert store._checksums._knows_crc
    assert store.get("key").body == body
    wrong = {"x-amz-checksum-crc64nvme": crc64(b"other")}
    with pytest.raises(Exception, match=r"BadDigest|ChecksumMismatch"):
        store._engine.perform(Request("put", "PUT", "key", body=body, headers=wrong))
    assert store.head("key").etag == etag
    store.close()
