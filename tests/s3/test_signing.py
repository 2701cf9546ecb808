"""The signer against botocore's, for any request."""

from __future__ import annotations

import datetime
import hashlib
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import example, given, settings

from s3backer.s3.signing import UNSIGNED_PAYLOAD, Keys, Signer, encode_path, encode_query, payload_hash

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
TOKENS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)
SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


def botocore_signature(method, url, headers, body, keys, region, now, unsigned):
    request = AWSRequest(method=method, url=url, headers=headers, data=body)
    request.context["has_streaming_input"] = unsigned
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    with patch("botocore.auth.get_current_datetime", return_value=moment):
        S3SigV4Auth(Credentials(keys.access_key, keys.secret_key, keys.token or None), "s3", region).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@settings(max_examples=300, deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "PUT", "DELETE"]),
    key=TEXT,
    query=st.dictionaries(TEXT.filter(bool), TEXT, max_size=4),
    metadata=st.dictionaries(TOKENS, VALUES, max_size=4),
    body=st.binary(max_size=100),
    unsigned=st.booleans(),
    region=TOKENS,
    access_key=TOKENS,
    secret_key=SECRETS,
    token=st.one_of(st.just(""), SECRETS),
    now=st.integers(0, 4_000_000_000),
    port=st.sampled_from(["", ":9000"]),
)
@example("PUT", "a b+c%/ü//.", {"prefix": "a b", "a": ""}, {"n": " a   b "}, b"x", True, "r", "k", "s", "t", 1, "")
def test_signatures_are_those_of_botocore(
    method, key, query, metadata, body, unsigned, region, access_key, secret_key, token, now, port
):
    keys = Keys(access_key, secret_key, token)
    path, text = encode_path(f"/bucket/{key}"), encode_query(query)
    host = f"s3.example.com{port}"
    headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
    headers |= {"Content-Type": "text/plain", "Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg==", "User-Agent": "s3backer"}
    url = f"{'https' if unsigned else 'http'}://{host}{path}" + (f"?{text}" if text else "")
    expected = botocore_signature(method, url, headers, body, keys, region, now, unsigned)
    payload = UNSIGNED_PAYLOAD if unsigned else payload_hash(body)
    signed = Signer(region).sign(method, path, text, {"Host": host, **headers}, payload, keys, now)
    found = {name.lower(): value for name, value in signed.items()}
    for name in ("authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"):
        assert found.get(name) == expected.get(name)
    assert {name: found[name.lower()] for name in headers if name.startswith("x-amz-meta-")} == {
        name: value for name, value in headers.items() if name.startswith("x-amz-meta-")
    }


def parameters(url: str) -> list[str]:
    return sorted(url.partition("?")[2].split("&"))


@settings(max_examples=300, deadline=None)
@given(
    method=st.sampled_from(["PUT", "DELETE"]),
    key=TEXT,
    metadata=st.dictionaries(TOKENS, VALUES, max_size=4),
    region=TOKENS,
    access_key=TOKENS,
    secret_key=SECRETS,
    token=st.one_of(st.just(""), SECRETS),
    now=st.integers(0, 4_000_000_000),
    expires=st.integers(1, 604_800),
)
def test_signatures_with_an_expiry_are_those_of_botocore(
    method, key, metadata, region, access_key, secret_key, token, now, expires
):
    keys = Keys(access_key, secret_key, token)
    path = encode_path(f"/bucket/{key}")
    headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
    headers |= {"Content-Type": "text/plain", "If-Match": '"x"', "User-Agent": "s3backer"}
    request = AWSRequest(method=method, url=f"https://s3.example.com{path}", headers=headers)
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    with patch("botocore.auth.get_current_datetime", return_value=moment):
        credentials = Credentials(keys.access_key, keys.secret_key, keys.token or None)
        S3SigV4QueryAuth(credentials, "s3", region, expires=expires).add_auth(request)
    target = Signer(region).sign_until(
        method, path, "", {"Host": "s3.example.com", **headers}, UNSIGNED_PAYLOAD, keys, now, expires
    )
    assert target.partition("?")[0] == path
    assert parameters(target) == parameters(request.url)


def test_the_derived_key_follows_day_and_credentials():
    signer = Signer("us-east-1")

    def authorization(signer, keys, now):
        return signer.sign("GET", "/", "", {"Host": "h"}, UNSIGNED_PAYLOAD, keys, now)["Authorization"]

    day = 86400.0
    for keys in (Keys("a", "b"), Keys("a", "c"), Keys("a", "b")):
        for now in (0.0, day, day * 2 - 1, 0.0):
            assert authorization(signer, keys, now) == authorization(Signer("us-east-1"), keys, now)


def test_payloads():
    for body in (b"abc", bytearray(b"abc"), memoryview(b"xabc")[1:]):
        assert payload_hash(body) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format])
def test_keys_have_no_text(show):
    text = show(Keys("access-key-id", "very-secret", "session-token"))
    assert not any(secret in text for secret in ("access-key-id", "very-secret", "session-token"))
