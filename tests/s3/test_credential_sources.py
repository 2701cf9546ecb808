"""Each source of credentials that the AWS command line knows: found, refreshed while running, named where it fails."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import botocore.credentials
import pytest

from s3backer.errors import AccessDenied
from s3backer.s3.credentials import Environment
from s3backer.s3.signing import Keys
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from tests.support.aws_services import AWSServices
from tests.support.nasty import NastyServer, fault, reply
from tests.support.talks import A_ETAG, OK

Setup = Callable[[AWSServices, pytest.MonkeyPatch, Path], StoreOptions]
_START = "https://example.test/start"


@pytest.fixture
def services(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with AWSServices() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", running.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", running.url)
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", running.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
        yield running


def profile(home: Path, text: str) -> StoreOptions:
    (home / "CONFIG_FILE").write_text(f"[profile p]\nregion = eu-test-1\n{text}\n[profile base]\n")
    (home / "SHARED_CREDENTIALS_FILE").write_text("[base]\naws_access_key_id = b\naws_secret_access_key = s\n")
    return StoreOptions(profile="p")


def assume_role(_services: AWSServices, _patch: pytest.MonkeyPatch, home: Path) -> StoreOptions:
    return profile(home, "role_arn = arn:aws:iam::1:role/r\nsource_profile = base")


def web_identity(_services: AWSServices, patch: pytest.MonkeyPatch, home: Path) -> StoreOptions:
    (home / "token").write_text("a web token")
    patch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(home / "token"))
    patch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")
    patch.setenv("AWS_REGION", "eu-test-1")
    return StoreOptions()


def sso(_services: AWSServices, patch: pytest.MonkeyPatch, home: Path, hours: int = 1) -> StoreOptions:
    cache = home / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + hours * 3600))
    name = hashlib.sha1(_START.encode()).hexdigest()
    (cache / f"{name}.json").write_text(json.dumps({"startUrl": _START, "accessToken": "t", "expiresAt": end}))
    patch.setattr(botocore.credentials.SSOProvider, "_SSO_TOKEN_CACHE_DIR", str(cache))
    return profile(
        home, f"sso_start_url = {_START}\nsso_region = eu-test-1\nsso_account_id = 123456789012\nsso_role_name = r"
    )


def container(services: AWSServices, patch: pytest.MonkeyPatch, _home: Path) -> StoreOptions:
    patch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/container")
    return StoreOptions()


def imds(_services: AWSServices, patch: pytest.MonkeyPatch, _home: Path) -> StoreOptions:
    patch.delenv("AWS_EC2_METADATA_DISABLED")
    return StoreOptions()


def instance_role(services: AWSServices, patch: pytest.MonkeyPatch, home: Path) -> StoreOptions:
    patch.setenv("AWS_ACCESS_KEY_ID", "not this one")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "nor this")
    imds(services, patch, home)
    return StoreOptions(instance_role=True)


def process(services: AWSServices, _patch: pytest.MonkeyPatch, home: Path) -> StoreOptions:
    script = home / "program.py"
    script.write_text(
        "import json, sys, urllib.request\n"
        f"try:\n    facts = json.load(urllib.request.urlopen({services.url + '/program'!r}))\n"
        "except OSError:\n    sys.exit('the vault is sealed')\n"
        "facts['SessionToken'] = facts.pop('Token')\n"
        "print(json.dumps({'Version': 1, **facts}))\n"
    )
    return profile(home, f"credential_process = python3 {script}")


SOURCES: dict[str, tuple[Setup, str]] = {
    "assume role": (assume_role, "AssumeRole"),
    "web identity": (web_identity, "AssumeRoleWithWebIdentity"),
    "SSO": (sso, "SSO"),
    "container": (container, "container"),
    "IMDSv2": (imds, "IMDS"),
    "instance role alone": (instance_role, "IMDS"),
    "process": (process, "container"),
}


@pytest.fixture(params=SOURCES)
def source(request, services, monkeypatch, no_configuration):
    setup, name = SOURCES[request.param]
    return setup(services, monkeypatch, no_configuration), name


def test_each_source_gives_credentials_once(services, source):
    options, name = source
    environment = Environment(options)
    for _ in range(3):
        keys = environment.keys()
        assert keys is not None
        assert (keys.access_key, keys.secret_key, keys.token) == (f"{name}-1", "secret", f"token-of-{name}")
    assert services.issued == {name: 1}


def test_each_source_is_asked_again_before_its_credentials_end(services, source):
    options, name = source
    services.lasting = 300
    environment = Environment(options)
    first = access_key(environment)
    almost_ended(environment, services)
    second = access_key(environment)
    assert second.startswith(name) and second != first
    assert access_key(environment) == second


def test_a_source_that_is_away_leaves_what_is_still_good(services, source, caplog):
    options, _ = source
    services.lasting = 300
    environment = Environment(options)
    first = access_key(environment)
    almost_ended(environment, services)
    services.broken = 403
    asked = len(services.asked)
    for _ in range(5):
        assert access_key(environment) == first
    # It is not asked with every request, and the log says what it said.
    assert len(services.asked) - asked <= 5
    assert "those in use go on" in caplog.text
    services.broken = 0
    assert environment.renew()
    assert access_key(environment) != first


def test_nobody_waits_for_a_refresh_who_has_credentials(services, monkeypatch, no_configuration):
    environment = Environment(container(services, monkeypatch, no_configuration))
    first = access_key(environment)
    almost_ended(environment, services)
    services.hold.clear()
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(access_key, environment) for _ in range(8)]
        assert sum(_ends(future) for future in futures) == 7
        services.hold.set()
        found = Counter(future.result() for future in futures)
        assert len(found) == 2 and found[first] == 7


def almost_ended(environment: Environment, services: AWSServices) -> None:
    """Let what the instance handed out have ended almost, too: botocore believes that it is good for longer."""
    services.lasting = 3 * 3600
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3300)
    environment._credentials._time_fetcher = lambda: moment


def access_key(environment: Environment) -> str:
    keys = environment.keys()
    assert keys is not None
    return keys.access_key


def _ends(future) -> bool:
    try:
        future.result(timeout=1.0)
    except TimeoutError:
        return False
    return True


def test_no_source_at_all_is_no_error_of_its_own(services, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert Environment(StoreOptions()).keys() is None


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        (assume_role, ["AssumeRole", "AccessDenied", "not this role"]),
        (web_identity, ["AssumeRoleWithWebIdentity", "not this role"]),
        (container, ["container-role"]),
        (process, ["custom-process", "the vault is sealed"]),
    ],
)
def test_a_source_that_refuses_is_named(services, monkeypatch, no_configuration, setup, told):
    services.broken = 403
    with pytest.raises(AccessDenied, match="the AWS credentials cannot be had") as caught:
        Environment(setup(services, monkeypatch, no_configuration)).keys()
    for text in told:
        assert text in caught.value.message
    assert caught.value.hint


def test_an_sso_session_that_has_ended_says_what_to_do(services, monkeypatch, no_configuration):
    with pytest.raises(AccessDenied, match="SSO") as caught:
        Environment(sso(services, monkeypatch, no_configuration, hours=-1)).keys()
    assert "aws sso login" in caught.value.hint


def test_a_program_that_prints_nonsense_is_no_traceback(services, no_configuration):
    with pytest.raises(AccessDenied, match="cannot be had"):
        Environment(profile(no_configuration, "credential_process = echo nonsense")).keys()
    with pytest.raises(AccessDenied, match=r"cannot be had.*none-such"):
        Environment(profile(no_configuration, "credential_process = /none-such")).keys()


def test_a_code_that_nobody_can_give_is_asked_of_the_command_line(services, monkeypatch, no_configuration):
    options = profile(
        no_configuration, "role_arn = arn:aws:iam::1:role/r\nsource_profile = base\nmfa_serial = arn:aws:iam::1:mfa/me"
    )

    monkeypatch.setattr("sys.stdin", io.StringIO())
    with warnings.catch_warnings(), pytest.raises(AccessDenied, match="asks for a code") as caught:
        warnings.simplefilter("ignore")
        Environment(options).keys()
    assert "aws sts get-caller-identity" in caught.value.hint


def test_what_the_command_line_was_given_is_used(services, monkeypatch, no_configuration):
    cache = no_configuration / ".aws" / "cli" / "cache"
    cache.mkdir(parents=True)
    assert access_key(Environment(assume_role(services, monkeypatch, no_configuration))) == "AssumeRole-1"
    assert len(list(cache.iterdir())) == 1
    assert access_key(Environment(StoreOptions(profile="p"))) == "AssumeRole-1"
    assert services.issued == {"AssumeRole": 1}


def test_requests_survive_the_end_of_their_credentials_and_an_outage_of_their_source(
    services, monkeypatch, no_configuration
):
    options = container(services, monkeypatch, no_configuration)
    # The pauses of this test take no time.
    monkeypatch.setattr("s3backer.s3.credentials._FAILED", 0.0)
    ended = fault(400, "ExpiredToken")
    with NastyServer(OK, ended, ended, ended, OK) as server:
        pauses: list[float] = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                services.broken = 0

        store = S3Store(
            "bucket",
            StoreOptions(endpoint_url=server.url, region="eu-test-1", patience=300.0),
            sleep=sleep,
        )
        store.get("key")
        services.broken = 500
        store.get("key")
        store.close()
        keys = [request.headers["authorization"].split("Credential=")[1].split("/")[0] for request in server.requests]
    assert options == StoreOptions()
    assert keys[0] == keys[1]
    assert keys[-1].startswith("container-") and keys[-1] != keys[0]
    assert len(pauses) >= 2


def test_many_requests_with_expired_credentials_look_for_new_ones_once(services, monkeypatch, no_configuration):
    container(services, monkeypatch, no_configuration)
    barrier = threading.Barrier(8)
    with NastyServer(*[fault(400, "ExpiredToken")] * 8, reply(200, "a", ETag=A_ETAG)) as server:
        store = S3Store("bucket", StoreOptions(endpoint_url=server.url, region="eu-test-1"))
        attempt = store._engine._attempt

        def refused_together(*args):
            answer = attempt(*args)
            if answer.status == 400:
                # Before anybody asks once more all of them have been refused.
                barrier.wait(20)
            return answer

        monkeypatch.setattr(store._engine, "_attempt", refused_together)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: store.get("key").body, range(8))) == [b"a"] * 8
        store.close()
    assert services.issued["container"] == 2


@pytest.mark.parametrize("outcome", ["fails", "is the same"])
def test_a_renewal_in_vain_is_not_repeated_by_every_request(outcome, monkeypatch, no_configuration):
    environment = Environment(StoreOptions())
    looks = []

    def look():
        looks.append(time.monotonic())
        if outcome == "fails" and len(looks) < 3:
            raise AccessDenied("away", hint="Log in.")
        return Keys("a", "s") if len(looks) < 3 else Keys("b", "s")

    monkeypatch.setattr(environment, "_look", look)
    environment._last = Keys("a", "s")
    for _ in range(20):
        if outcome == "fails":
            with pytest.raises(AccessDenied, match="away"):
                environment.renew()
        else:
            assert environment.renew() is False
    assert len(looks) == 1
    looks.append(0.0)
    environment._renewed_at -= 10
    assert environment.renew() is True
    assert len(looks) == 3
    assert environment.renew() is True


def test_who_waits_in_vain_for_another_one_who_looks_tries_again(monkeypatch, no_configuration):
    monkeypatch.setattr("s3backer.s3.credentials._LOOKING", 0.01)
    environment = Environment(StoreOptions())
    with environment._looking, pytest.raises(AccessDenied, match="takes more than"):
        environment.renew()
