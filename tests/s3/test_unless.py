"""Objects that are asked for unless they are as before, from servers that take the condition in other ways."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from s3backer.errors import ObjectNotFound, StoreError
from tests.support.nasty import Step, reply
from tests.support.talks import NO_KEY, talk

OLD = '"781e5e245d69b566979b86e28d23f2c8"'
BODY = b"0123456789"
ETAG = f'"{hashlib.md5(BODY).hexdigest()}"'
WHOLE = reply(200, BODY, ETag=ETAG)


def test_what_is_asked_for() -> None:
    with talk(reply(304, ETag=OLD), WHOLE) as (store, server):
        assert store.get_unless("key", OLD) is None
        found = store.get_unless("key", OLD)
        assert found is not None and (found.body, found.info.etag) == (BODY, ETAG)
    for request in server.requests:
        assert (request.method, request.headers["if-none-match"]) == ("GET", OLD)
        signed = request.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0]
        assert {"if-none-match", "x-amz-checksum-mode"} <= set(signed.split(";"))


@pytest.mark.parametrize("headers", [{}, {"ETag": ETAG}, {"ETag": f"W/{OLD}"}])
def test_unchanged_is_believed_only_of_this_etag(headers: dict[str, Any]) -> None:
    with talk(reply(304, **headers), WHOLE) as (store, server):
        found = store.get_unless("key", OLD)
        assert found is not None and found.body == BODY
    assert [request.headers.get("if-none-match") for request in server.requests] == [OLD, None]


def test_a_server_that_leaves_out_the_quotes() -> None:
    with talk(reply(304, ETag=OLD.strip('"'))) as (store, _):
        assert store.get_unless("key", OLD) is None


def test_a_server_that_takes_no_notice_of_the_condition() -> None:
    with talk(WHOLE) as (store, _):
        found = store.get_unless("key", ETAG)
        assert found is not None and found.body == BODY


def test_it_is_tried_again_and_verified_as_every_get() -> None:
    wrong = reply(200, BODY[:-1] + b"x", ETag=ETAG)
    with talk(reply(503), Step(end="reset"), wrong, WHOLE, patience=30.0, first_pause=0.01) as (store, server):
        found = store.get_unless("key", OLD)
        assert found is not None and found.body == BODY
    assert len(server.requests) >= 3
    with talk(NO_KEY) as (store, _), pytest.raises(ObjectNotFound):
        store.get_unless("key", OLD)


def test_unchanged_without_a_condition_is_no_answer() -> None:
    with talk(reply(304, ETag=ETAG)) as (store, _), pytest.raises(StoreError):
        store.get("key")
