"""Where S3 is and who we are, found as the AWS command line finds them."""

from __future__ import annotations

import pytest

from s3backer.errors import UsageError
from s3backer.s3.credentials import Environment, parse_endpoint
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from tests.support.talks import options_for


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
