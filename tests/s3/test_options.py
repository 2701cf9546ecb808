"""What the options of a store change in what is sent: headers of a PUT, credentials, speed, the socket."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

from s3backer.s3 import http1, transport
from s3backer.stores.s3 import S3Store
from tests.support.nasty import NastyServer, reply
from tests.support.talks import CALLS, EMPTY_LIST, NOW, OK, PUT_OK, options_for, talk

HEADERS: dict[str, dict[str, Any]] = {
    "x-amz-acl": {"acl": "public-read"},
    "x-amz-storage-class": {"storage_class": "STANDARD_IA"},
    "x-amz-server-side-encryption": {"encryption": "aws:kms"},
    "x-amz-server-side-encryption-aws-kms-key-id": {"encryption_key": "a-key"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_puts_is_sent_with_every_put_and_only_with_those(name):
    with talk(PUT_OK, PUT_OK, OK, OK, EMPTY_LIST, **HEADERS[name]) as (store, server):
        for call in ("put", "put new", "get", "head", "list"):
            CALLS[call](store)
    (value,) = HEADERS[name].values()
    assert [request.headers.get(name) for request in server.requests] == [value, value, None, None, None]
    assert name in server.requests[0].target.partition("X-Amz-SignedHeaders=")[2].partition("&")[0]


def test_without_options_no_such_header_is_sent():
    with talk(PUT_OK) as (store, server):
        store.put("key", b"a")
    assert not set(HEADERS) & set(server.requests[0].headers)


@pytest.mark.parametrize(("limit", "call"), [("upload_limit", "put"), ("download_limit", "get")])
def test_a_limited_transfer_takes_as_long_as_the_limit_says(limit, call):
    waits: list[float] = []
    with NastyServer(PUT_OK if call == "put" else OK) as server:
        store = S3Store("bucket", options_for(server.url, **{limit: 1}), clock=lambda: NOW, sleep=waits.append)
        started = time.perf_counter()
        CALLS[call](store)
        took = time.perf_counter() - started
        store.close()
    # One byte at one bit per second, less what the request itself took.
    assert len(waits) == 1 and 8 - took <= waits[0] <= 8


def test_the_first_pause_is_what_was_asked_for():
    with talk(OK, first_pause=3.0) as (store, _):
        assert store._engine.policy.first_pause == 3.0


def test_the_type_of_service_reaches_the_socket(monkeypatch):
    seen: list[int] = []
    made = http1.Connection

    def watched(sock, close):
        seen.append(sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS))
        return made(sock, close)

    monkeypatch.setattr(transport, "Connection", watched)
    with talk(OK, type_of_service=0x10) as (store, _):
        store.get("key")
    assert seen == [0x10]


def test_the_role_of_the_instance_signs(monkeypatch):
    """The metadata service is asked with a token of its own, and nothing else gives credentials."""
    keys = {"Code": "Success", "AccessKeyId": "ROLEKEY", "SecretAccessKey": "s", "Token": "the-token"}
    keys |= {"Expiration": "2099-01-01T00:00:00Z", "LastUpdated": "2026-01-01T00:00:00Z", "Type": "AWS-HMAC"}
    script = (reply(200, "imds-token"), reply(200, "a-role"), reply(200, json.dumps(keys)))
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ENVIRONMENT")
    with NastyServer(*script) as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        with talk(OK, access_key=None, secret_key=None, instance_role=True) as (store, server):
            store.get("key")
    assert "Credential=ROLEKEY/" in server.requests[0].headers["authorization"]
    assert server.requests[0].headers["x-amz-security-token"] == "the-token"
    token, role, _ = metadata.requests
    assert (token.method, token.target) == ("PUT", "/latest/api/token")
    assert role.headers["x-aws-ec2-metadata-token"] == "imds-token"
