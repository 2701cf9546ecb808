"""Where S3 is and who we are, found as the AWS command line finds them."""

from __future__ import annotations

import pytest

from s3backer.errors import AccessDenied, UsageError
from s3backer.s3.credentials import Environment, parse_endpoint
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from tests.support.nasty import NastyServer, fault
from tests.support.talks import OK, options_for


@pytest.mark.parametrize(
    ("region", "endpoint"),
    [
        ("us-east-1", "https://s3.us-east-1.amazonaws.com"),
        ("cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "https://s3.us-gov-west-1.amazonaws.com"),
        ("mars-1", "https://s3.mars-1.amazonaws.com"),
    ],
)
def test_the_endpoint_of_a_region(region, endpoint):
    assert endpoint_of(Environment(StoreOptions(region=region))) == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "s3.example.com",
        "ftp://x",
        "http://",
        "http://a b",
        "http://x:port",
        "http://x/?q",
        "http://x/#f",
        "http://[",
        "http://é",
    ],
)
def test_what_is_no_endpoint(url):
    with pytest.raises(UsageError) as caught:
        S3Store("bucket", options_for(url))
    assert url in caught.value.message
    assert "https://s3.example.com" in caught.value.hint


def test_an_endpoint_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(UsageError) as caught:
        parse_endpoint("https://me:hidden@s3.example.com")
    assert "hidden" not in caught.value.message + caught.value.hint


def endpoint_of(environment: Environment) -> str:
    return str(environment.endpoint_in(environment.region))


def access_key_of(environment: Environment) -> str | None:
    keys = environment.keys()
    return keys.access_key if keys else None


def test_the_environment_is_that_of_the_aws_command_line(monkeypatch, no_configuration):
    (no_configuration / "CONFIG_FILE").write_text(
        "[profile p]\nregion = eu-two-2\nservices = s\nca_bundle = /ca\n[services s]\ns3 =\n  endpoint_url = http://four\n"
        "[profile q]\nendpoint_url = http://five\n"
    )
    (no_configuration / "SHARED_CREDENTIALS_FILE").write_text(
        "[p]\naws_access_key_id = id-p\naws_secret_access_key = secret-p\naws_session_token = token-p\n"
    )
    found = Environment(StoreOptions(profile="p"))
    keys = found.keys()
    assert keys is not None
    assert (keys.access_key, keys.secret_key, keys.token) == ("id-p", "secret-p", "token-p")
    assert (found.region, endpoint_of(found), found.ca_bundle) == ("eu-two-2", "http://four", "/ca")
    assert endpoint_of(Environment(StoreOptions(profile="q"))) == "http://five"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://three")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-three-3")
    assert endpoint_of(Environment(StoreOptions(profile="p"))) == "http://three"
    assert Environment(StoreOptions()).region == "eu-three-3"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://two")
    monkeypatch.setenv("AWS_REGION", "eu-four-4")
    found = Environment(StoreOptions())
    assert (endpoint_of(found), found.region) == ("http://two", "eu-four-4")
    found = Environment(StoreOptions(endpoint_url="http://one", region="r", access_key="a", secret_key="b"))
    assert (endpoint_of(found), found.region) == ("http://one", "r")
    assert access_key_of(found) == "a"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id-e")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-e")
    assert access_key_of(Environment(StoreOptions())) == "id-e"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"profile": "none-such"}, "none-such"),
        ({"access_key": "a"}, "go together"),
        ({"secret_key": "a"}, "go together"),
        ({"region": "EU west"}, "no region"),
    ],
)
def test_an_environment_that_cannot_be_used(options, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        Environment(StoreOptions(**options))
    assert caught.value.hint


#: What services answer to keys that are not theirs, or not any more, and what the user is told.
REFUSED = {
    "InvalidAccessKeyId": (fault(403, "InvalidAccessKeyId"), "does not know this access key"),
    "SignatureDoesNotMatch": (fault(403, "SignatureDoesNotMatch"), "refuses the signature .* for s3://bucket/key$"),
    "InvalidToken": (fault(400, "InvalidToken"), "not valid any more"),
}
refused = pytest.mark.parametrize(("answer", "told"), REFUSED.values(), ids=REFUSED)


def keys_file(directory, name: str) -> None:
    text = f"[default]\naws_access_key_id = {name}\naws_secret_access_key = s\n"
    (directory / "SHARED_CREDENTIALS_FILE").write_text(text)


def keys_used(server: NastyServer) -> list[str]:
    return [request.headers["authorization"].split("Credential=")[1].split("/")[0] for request in server.requests]


def a_store(server: NastyServer) -> S3Store:
    return S3Store("bucket", StoreOptions(endpoint_url=server.url, region="r", patience=5.0))


@refused
def test_keys_that_were_replaced_while_running_are_used(no_configuration, answer, told):
    keys_file(no_configuration, "old")
    with NastyServer(OK, answer, OK, OK) as server:
        store = a_store(server)
        store.get("key")
        keys_file(no_configuration, "new")
        for _ in range(2):
            store.get("key")
        store.close()
    assert keys_used(server) == ["old", "old", "new", "new"]


@refused
def test_keys_that_are_refused_and_stay_are_an_error(no_configuration, answer, told):
    keys_file(no_configuration, "old")
    with NastyServer(OK, answer) as server:
        store = a_store(server)
        store.get("key")
        with pytest.raises(AccessDenied, match=told) as caught:
            store.get("key")
        assert caught.value.hint
        store.close()
    assert len(server.requests) == 2


@refused
def test_keys_that_never_worked_are_not_looked_up_anew(monkeypatch, no_configuration, answer, told):
    keys_file(no_configuration, "wrong")
    monkeypatch.setattr(Environment, "renew", lambda self: pytest.fail("looked for other keys"))
    with NastyServer(answer) as server:
        store = a_store(server)
        with pytest.raises(AccessDenied, match=told):
            store.get("key")
        store.close()
    assert len(server.requests) == 1
