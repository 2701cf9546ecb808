"""What is tried again, how long, and what a lost answer leads to: against a server that answers to a script."""

from __future__ import annotations

import calendar
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from urllib.parse import parse_qs

import hypothesis.strategies as st
import pytest
from hypothesis import given

from s3backer.errors import (
    AccessDenied,
    BucketNotFound,
    CorruptObject,
    PreconditionFailed,
    StoreError,
    StoreUnreachable,
)
from s3backer.s3.engine import SHORT_PATIENCE
from s3backer.s3.retries import RETRIED_CODES, RetryPolicy, is_retried, parse_retry_after
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from tests.support.nasty import NastyServer, Request, Step, fault, reply
from tests.support.servers import free_ports
from tests.support.talks import A_ETAG, CALLS, NO_KEY, OK, PUT_OK

LOST = Step(end="close")
FAILED = fault(412, "PreconditionFailed")


class Patient(S3Store):
    """A store whose pauses are written down in place of being waited for."""

    def __init__(self, url: str, **options) -> None:
        self.pauses: list[float] = []
        given = {"timeout": 10.0, "patience": 30.0, "region": "us-east-1", **options}
        super().__init__(
            "bucket",
            StoreOptions(endpoint_url=url, access_key="access", secret_key="secret", **given),
            sleep=self.pauses.append,
            random_source=random.Random(1),
        )


@contextmanager
def talk(*script: bytes | Step, **options) -> Iterator[tuple[Patient, NastyServer]]:
    with NastyServer(*script) as server:
        store = Patient(server.url, **options)
        try:
            yield store, server
        finally:
            store.close()


def put(store: S3Store, **options) -> str:
    return store.put("key", b"a", **options)


# ── silence ──────────────────────────────────────────────────────────────────────────────────────────────


def test_who_waits_for_the_first_answer_of_all_is_told(monkeypatch, caplog):
    """Later a pause is nothing new: the volume says when nothing can be stored."""
    monkeypatch.setattr("s3backer.s3.engine._LATE", 0.2)

    def later(pause: float) -> Step:
        return Step(OK, pause=pause)

    with talk(later(0.02), later(0.02)) as (store, server):
        store.get("key")
        (line,) = caplog.messages
        assert line == f"no answer from {server.url} yet; still trying"
        store.get("key")
        assert len(caplog.messages) == 1
    with talk(OK) as (store, server):
        store.get("key")
        time.sleep(0.4)
        assert len(caplog.messages) == 1


def test_without_a_thread_for_that_nothing_is_said(monkeypatch):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    with talk(OK) as (store, _):
        monkeypatch.setattr(threading.Timer, "start", no_thread)
        assert store.get("key").body == b"a"


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [408, 429, 499, 500, 502, 503, 504])
def test_statuses_that_are_tried_again(status):
    with talk(reply(status), reply(status, "<html>wait</html>"), OK) as (store, server):
        assert store.get("key").body == b"a"
        assert len(server.requests) == 3
        assert len(store.pauses) == 2
        assert store.counters.retries == 2
        count = store.counters.snapshot()["get"]
        assert (count.requests, count.failures) == (3, 2)
        assert count.bytes_received == len("<html>wait</html>") + 1


@pytest.mark.parametrize("code", sorted(RETRIED_CODES))
def test_codes_that_are_tried_again(code):
    with talk(fault(400, code), PUT_OK) as (store, server):
        assert put(store) == A_ETAG
        assert [request.body for request in server.requests] == [b"a", b"a"]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 409, 411, 501, 505])
def test_statuses_that_are_final(status):
    with talk(fault(status, "Whatever"), OK) as (store, server):
        with pytest.raises(StoreError):
            store.get("key")
        assert len(server.requests) == 1
        assert store.pauses == []
        assert not is_retried(status, "Whatever")


@pytest.mark.parametrize(
    "broken",
    [
        Step(end="close"),
        Step(end="reset"),
        Step(end="reset", read=False),
        Step(reply(200, "a", length=5), end="close"),
        Step(reply(200, "", length=1, ETag=A_ETAG), end="reset"),
        Step(b"HTTP/1.1 200 OK\r\nETag: x\r\n\r\na", end="close"),
        Step(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na", end="close"),
        Step(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\na", end="close"),
        Step(b"HTTP/1.1 200 OK\r\nContent-Le", end="close"),
        Step(b"SSH-2.0-OpenSSH_9.2\r\n", end="close"),
        Step(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n", end="close"),
    ],
    ids=[
        *("closed", "reset", "reset unread", "truncated", "reset in the body", "endless", "half a chunk"),
        *("bad chunk", "half a header", "no HTTP", "too many headers"),
    ],
)
def test_answers_that_break_off_are_tried_again(broken):
    with talk(broken, broken, OK) as (store, _):
        assert store.get("key").body == b"a"
        assert len(store.pauses) == 2
    with talk(broken, patience=1.0) as (store, _):
        with pytest.raises(StoreUnreachable) as caught:
            store.get("key")
        assert store.endpoint in caught.value.message
        assert "cannot be reached" in caught.value.message
        assert caught.value.hint
        assert sum(store.pauses) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "slow",
    [
        Step(hold=True),
        Step(OK[:20], hold=True),
        Step(OK[:-1], hold=True),
        Step(reply(200, "a" * 100, ETag="x"), pause=0.05),
    ],
    ids=["silence", "half a header", "half a body", "drip"],
)
def test_a_slow_answer_is_given_up_after_the_timeout(slow):
    with talk(slow, OK, timeout=0.3) as (store, server):
        assert store.get("key").body == b"a"
        assert len(server.requests) == 2
    with talk(slow, timeout=0.2, patience=0.0) as (store, _):
        with pytest.raises(StoreUnreachable, match=r"no whole answer within 0\.2 s") as caught:
            store.get("key")
        assert "--timeout" in caught.value.hint


def test_a_server_that_does_not_read_is_given_up_after_the_timeout():
    expected = pytest.raises(StoreUnreachable, match=r"no whole answer within 0\.3 s")
    with talk(Step(read=False, hold=True), timeout=0.3, patience=0.0) as (store, _), expected:
        store.put("key", bytes(32 << 20))


def test_sending_has_the_whole_timeout_on_a_used_connection():
    # The time that is left of the first answer must not be what the second request gets.
    with talk(Step(OK, pause=0.01), PUT_OK, timeout=2.0, patience=0.0) as (store, server):
        store.get("key")
        store.put("key", bytes(8 << 20), metadata={"a": "1"})
        assert len(server.requests) == 2


def test_an_answer_before_the_body_was_read_is_heard():
    with talk(Step(fault(403, "AccessDenied"), read=False, end="close")) as (store, _), pytest.raises(StoreError):
        store.put("key", bytes(8 << 20))


def test_connection_refused():
    store = Patient(f"http://127.0.0.1:{free_ports(1)[0]}", patience=5.0)
    with pytest.raises(StoreUnreachable, match="connection refused") as caught:
        store.get("key")
    assert "server runs" in caught.value.hint
    assert sum(store.pauses) == pytest.approx(5.0)
    count = store.counters.snapshot()["get"]
    assert count.requests == count.failures == len(store.pauses) + 1 == store.counters.retries + 1


def test_an_unknown_host():
    store = Patient("http://s3.invalid", patience=0.0)
    with pytest.raises(StoreUnreachable, match="host name is unknown") as caught:
        store.get("key")
    assert "endpoint URL" in caught.value.hint


def test_a_host_name_that_is_none():
    store = Patient(f"http://{'x' * 70}.invalid")
    with pytest.raises(StoreUnreachable, match="not a valid one"):
        store.get("key")
    assert store.pauses == []


# ── pauses ───────────────────────────────────────────────────────────────────────────────────────────────


def test_how_many_attempts_the_defaults_are():
    """The manual's times until an unmount gives its reason come from here."""
    counts = []
    for seed in range(300):
        policy, source, waited = RetryPolicy(), random.Random(seed), 0.0
        attempts = 1
        while (pause := policy.pause(attempts, waited, SHORT_PATIENCE, source)) is not None:
            waited += pause
            attempts += 1
        assert waited == pytest.approx(30)
        counts.append(attempts)
    assert min(counts) >= 10 and max(counts) <= 20
    assert 11.5 < sum(counts) / len(counts) < 13.5
    assert StoreOptions().timeout == 30


def test_retry_after_makes_a_pause_longer():
    with talk(reply(503, Retry_After="7"), reply(429, Retry_After="0"), OK) as (store, _):
        store.get("key")
        assert store.pauses[0] == 7.0
        assert store.pauses[1] < 1.0


@pytest.mark.parametrize("name", ["get", "head", "list", "put", "delete"])
def test_reads_have_patience_with_a_service_that_is_known(name):
    """Before its first answer it may be a mistaken URL; writes have whoever wrote to try again."""
    away = reply(503)
    with talk(away, OK, away, patience=300.0) as (store, _):
        store.get("key")
        store.pauses.clear()
        with pytest.raises(StoreError):
            CALLS[name](store)
        assert sum(store.pauses) == pytest.approx(300 if name in ("get", "head", "list") else 30)
    with talk(away, patience=300.0) as (store, _):
        with pytest.raises(StoreError):
            CALLS[name](store)
        assert sum(store.pauses) == pytest.approx(30)


def test_retry_after_beyond_all_patience():
    with talk(reply(503, Retry_After="3600"), patience=4.0) as (store, server):
        with pytest.raises(StoreError):
            store.get("key")
        assert store.pauses == [4.0]
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3.0), (" 3 ", 3.0), ("", 0.0), ("-3", 0.0), ("1e9", 0.0), ("9" * 30, 0.0), ("²", 0.0), ("soon", 0.0)],
)
def test_retry_after_as_text(text, seconds):
    assert parse_retry_after(text) == seconds


@given(st.integers(0, 2**32), st.floats(0, 100), st.floats(0, 20))
def test_pauses_are_drawn_below_a_ceiling_that_doubles_and_add_up_to_the_patience(seed, patience, retry_after):
    policy, source = RetryPolicy(), random.Random(seed)
    waited, attempt = 0.0, 1
    while (
        pause := policy.pause(attempt, waited, patience, source, retry_after if attempt % 3 == 0 else 0.0)
    ) is not None:
        ceiling = min(policy.longest_pause, policy.first_pause * 2 ** (attempt - 1))
        assert 0 < pause <= max(ceiling, retry_after if attempt % 3 == 0 else 0.0)
        waited, attempt = waited + pause, attempt + 1
        assert attempt < 20_000
    assert waited == pytest.approx(patience)


def test_pauses_differ_between_clients():
    policy = RetryPolicy()
    pauses = [policy.pause(5, 0.0, 30.0, random.Random(seed)) or 0.0 for seed in range(200)]
    assert min(pauses) < 0.3
    assert max(pauses) > 2.9


def test_closing_ends_the_wait():
    with NastyServer(reply(503, Retry_After="600")) as server:
        store = S3Store(
            "bucket",
            StoreOptions(endpoint_url=server.url, access_key="a", secret_key="b", region="r", patience=600),
        )
        errors: list[BaseException] = []

        def get() -> None:
            try:
                store.get("key")
            except StoreError as error:
                errors.append(error)

        thread = threading.Thread(target=get, name="waiting get", daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        store.close()
        thread.join(timeout=30)
        assert not thread.is_alive()
        assert "was closed" in str(errors[0])
        assert len(server.requests) == 1
        with pytest.raises(StoreError, match="was closed"):
            store.head("key")


def test_closing_ends_the_wait_for_a_connection():
    with NastyServer(Step(hold=True)) as server:
        options = StoreOptions(
            endpoint_url=server.url, access_key="a", secret_key="b", region="r", connections=1, timeout=1.5
        )
        store = S3Store("bucket", options)
        errors: list[BaseException] = []

        def get() -> None:
            try:
                store.get("key")
            except StoreError as error:
                errors.append(error)

        threads = [threading.Thread(target=get, name=f"get {n}", daemon=True) for n in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while not server.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        store.close()
        for thread in threads:
            thread.join(timeout=30)
        assert [thread.is_alive() for thread in threads] == [False] * 3
        assert all("was closed" in str(error) for error in errors)


# ── lost answers of conditional writes ───────────────────────────────────────────────────────────────────

OURS = reply(200, "a", ETag=A_ETAG, x_amz_meta_token="mine")
THEIRS = reply(200, "a", ETag=A_ETAG, x_amz_meta_token="theirs")
OTHER_BODY = reply(200, "b", ETag='"92eb5ffee6ae2fec3ad71c777531578f"', x_amz_meta_token="mine")


@pytest.mark.parametrize("condition", [{"if_none_match": True}, {"if_match": '"old"'}], ids=["new", "over"])
@pytest.mark.parametrize(
    "lost", [LOST, Step(end="reset"), fault(500, "InternalError"), reply(504)], ids=["closed", "reset", "500", "504"]
)
def test_a_lost_answer_is_settled_by_reading_back(condition, lost):
    with talk(lost, FAILED, OURS) as (store, server):
        assert put(store, metadata={"token": "mine"}, **condition) == A_ETAG
        assert [request.method for request in server.requests] == ["PUT", "PUT", "GET"]
    for found in (THEIRS, OTHER_BODY, NO_KEY):
        with talk(lost, FAILED, found) as (store, _), pytest.raises(PreconditionFailed):
            put(store, metadata={"token": "mine"}, **condition)


def test_the_object_that_was_to_be_replaced_has_gone_after_a_lost_answer():
    with talk(LOST, NO_KEY, NO_KEY) as (store, _), pytest.raises(PreconditionFailed):
        put(store, if_match='"old"')


def test_a_condition_that_fails_at_once_needs_no_reading_back():
    with talk(OURS, FAILED) as (store, server):
        store.get("key")
        with pytest.raises(PreconditionFailed):
            put(store, metadata={"token": "mine"}, if_none_match=True)
        assert [request.method for request in server.requests] == ["GET", "PUT"]


@pytest.mark.parametrize("settled", [fault(503, "SlowDown", x=""), fault(409, "ConditionalRequestConflict")])
def test_a_conflict_is_tried_again(settled):
    with talk(settled, PUT_OK) as (store, server):
        assert put(store, if_none_match=True) == A_ETAG
        assert len(server.requests) == 2


def test_a_refused_connection_leaves_nothing_to_settle(monkeypatch):
    # Nothing was sent, so another's object with the same content is not taken for ours.
    with talk(OURS, FAILED, OURS) as (store, server):
        store.get("key")
        real = store._engine._transport.start
        refused = Patient(f"http://127.0.0.1:{free_ports(1)[0]}")._engine._transport.start
        calls = iter([refused, real])
        monkeypatch.setattr(store._engine._transport, "start", lambda *a, **k: next(calls)(*a, **k))
        with pytest.raises(PreconditionFailed):
            put(store, metadata={"token": "mine"}, if_none_match=True)
        assert [request.method for request in server.requests] == ["GET", "PUT"]


def test_an_unsettled_write_into_a_bucket_that_goes_away():
    with talk(LOST, FAILED, fault(404, "NoSuchBucket")) as (store, _), pytest.raises(BucketNotFound):
        put(store, if_none_match=True)


# ── bodies that are not what their ETag says ─────────────────────────────────────────────────────────────

WRONG = reply(200, "b", ETag=A_ETAG)


def test_a_wrong_body_is_asked_for_again():
    with talk(WRONG, OK) as (store, server):
        assert store.get("key").body == b"a"
        assert len(server.requests) == 2
        assert store.counters.retries == 1


def test_a_body_that_stays_wrong_is_an_error():
    with talk(WRONG) as (store, server):
        with pytest.raises(CorruptObject) as caught:
            store.get("key")
        assert len(server.requests) == 8
        assert "'key'" in caught.value.message
        assert "s3://bucket" in caught.value.message
        assert "altered" in caught.value.hint
        assert store.counters.retries == 7


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": f'"{A_ETAG[1:-1]}-3"'},
        {"ETag": '"opaque"'},
        {"ETag": A_ETAG, "x_amz_server_side_encryption": "aws:kms"},
        {"ETag": A_ETAG, "x_amz_server_side_encryption_customer_algorithm": "AES256"},
    ],
)
def test_bodies_whose_etag_is_no_md5(headers):
    with talk(reply(200, "b", **headers)) as (store, server):
        assert store.get("key").body == b"b"
        assert len(server.requests) == 1


def test_a_server_whose_etags_are_something_else():
    # It has checked the PUT against Content-MD5 and names it otherwise.
    with talk(reply(200, ETag='"92eb5ffee6ae2fec3ad71c777531578f"'), WRONG) as (store, server):
        put(store)
        assert store.get("key").body == b"b"
        assert len(server.requests) == 2


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: " + A_ETAG.encode() + b"\r\n\r\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "long",
    [
        Step(reply(200, "a" * 11, ETag=A_ETAG)),
        # Only its beginning ever comes: whoever waited for the rest would wait for the time-out.
        Step(reply(200, "a" * 11, length=10**12, ETag=A_ETAG)),
        Step(CHUNKED + b"b\r\n" + b"a" * 11 + b"\r\n"),
    ],
    ids=["by one byte", "by its length", "in pieces"],
)
def test_of_an_object_that_is_too_large_no_more_is_read(long):
    with talk(*[long] * 20, OK, connections=1, timeout=50.0) as (store, _):
        for _ in range(20):
            with pytest.raises(CorruptObject, match="'key' in s3://bucket has more than 10 bytes"):
                store.get("key", at_most=10)
        # It is asked for once, and the one connection is free again.
        assert store.get("key", at_most=10).body == b"a"
        assert store.pauses == []


def test_a_long_page_instead_of_an_answer_is_no_large_object():
    with talk(Step(reply(503, "busy" * 1000)), OK) as (store, _):
        assert store.get("key", at_most=10).body == b"a"
    with talk(Step(CHUNKED + b"1\r\na\r\n0\r\n\r\n")) as (store, _):
        assert store.get("key", at_most=1).body == b"a"


# ── what the server knows better: the time, the region, the credentials ──────────────────────────────────


def stamp(request: Request) -> str:
    found = parse_qs(request.target.partition("?")[2]).get("X-Amz-Date")
    return found[0] if found else request.headers["x-amz-date"]


@pytest.mark.parametrize("off", [-7200, -61, 61, 86400])
@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "AccessDenied"])
def test_the_clock_of_the_server_is_followed(off, code):
    late = fault(403, code, Date=formatdate(time.time() + off, usegmt=True))
    with talk(late, PUT_OK, PUT_OK, OK) as (store, server):
        put(store)
        put(store)
        store.get("key")
        assert store.pauses == []
    moments = [calendar.timegm(time.strptime(stamp(r), "%Y%m%dT%H%M%SZ")) for r in server.requests]
    assert [round((moment - moments[0]) / 60) for moment in moments] == [0, *[round(off / 60)] * 3]


def test_the_clock_is_followed_before_anything_is_refused():
    """A clock that is ahead would make signatures good for longer than later writes wait."""
    fine = reply(200, "a", ETag=A_ETAG, Date=formatdate(time.time() - 40, usegmt=True), x_amz_request_id="1")
    with talk(fine, PUT_OK) as (store, server):
        store.get("key")
        put(store)
        assert store.pauses == []
    moments = [calendar.timegm(time.strptime(stamp(r), "%Y%m%dT%H%M%SZ")) for r in server.requests]
    assert -42 <= moments[1] - moments[0] <= -38


def test_a_clock_that_cannot_be_followed_is_an_error():
    late = fault(403, "RequestTimeTooSkewed", Date=formatdate(time.time() - 7200, usegmt=True))
    with talk(late) as (store, server):
        with pytest.raises(AccessDenied, match=r"off by 7\d\d\d s \(ahead\)"):
            store.get("key")
        assert len(server.requests) == 2


def test_a_denial_with_the_right_clock_is_final():
    denied = fault(403, "AccessDenied", Date=formatdate(time.time() + 3, usegmt=True))
    with talk(denied) as (store, server):
        with pytest.raises(AccessDenied, match="denies access"):
            store.get("key")
        assert len(server.requests) == 1


ELSEWHERE = {
    "header": fault(301, "PermanentRedirect", x_amz_bucket_region="eu-two-2"),
    "document": fault(400, "AuthorizationHeaderMalformed", extra="<Region>eu-two-2</Region>"),
    "bare": reply(301, x_amz_bucket_region="eu-two-2"),
}


@pytest.mark.parametrize("answer", ELSEWHERE.values(), ids=ELSEWHERE)
def test_the_region_is_the_one_that_the_server_names(answer):
    with talk(answer, OK, OK, region=None) as (store, server):
        store.get("key")
        store.get("key")
        assert store.pauses == []
        scopes = [r.headers["authorization"].partition("Credential=access/")[2][9:17] for r in server.requests]
        assert [scope.strip("/s") for scope in scopes] == ["us-east-", "eu-two-2", "eu-two-2"]


def test_many_requests_are_told_of_the_region_at_once():
    with talk(*[Step(ELSEWHERE["header"], pause=0.003)] * 8, OK, region=None) as (store, server):
        problems: list[StoreError] = []

        def get() -> None:
            try:
                store.get("key")
            except StoreError as error:
                problems.append(error)

        threads = [threading.Thread(target=get) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert problems == []
        assert len(server.requests) == 16


@pytest.mark.parametrize("region", ["eu two", "", "../x", "EU"])
def test_a_region_that_is_none_is_not_followed(region):
    with talk(reply(301, x_amz_bucket_region=region), OK, region=None) as (store, server):
        with pytest.raises(StoreError, match="elsewhere"):
            store.get("key")
        assert len(server.requests) == 1


def test_servers_that_send_each_other_the_request_are_left():
    answers = [reply(301, x_amz_bucket_region=region) for region in ("eu-a-1", "eu-b-1")] * 5
    with talk(*answers, region=None) as (store, server):
        with pytest.raises(StoreError, match="elsewhere"):
            store.get("key")
        assert len(server.requests) == 4


EXPIRED = fault(400, "ExpiredToken")


def test_credentials_that_were_renewed_meanwhile_are_used(monkeypatch, no_configuration):
    file = no_configuration / "SHARED_CREDENTIALS_FILE"
    text = "[default]\naws_access_key_id = {0}\naws_secret_access_key = s\naws_session_token = token-{0}\n"
    file.write_text(text.format("old"))
    with NastyServer(OK, EXPIRED, OK) as server:
        store = S3Store("bucket", StoreOptions(endpoint_url=server.url, region="r", patience=0.0))
        store.get("key")
        file.write_text(text.format("new"))
        store.get("key")
        store.close()
    assert [r.headers["x-amz-security-token"] for r in server.requests] == ["token-old", "token-old", "token-new"]


def test_credentials_that_stay_expired_are_an_error(no_configuration):
    (no_configuration / "SHARED_CREDENTIALS_FILE").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = s\naws_session_token = t\n"
    )
    with NastyServer(EXPIRED) as server:
        store = S3Store("bucket", StoreOptions(endpoint_url=server.url, region="r", patience=5.0))
        with pytest.raises(AccessDenied, match="not valid any more") as caught:
            store.get("key")
        assert "aws sso login" in caught.value.hint
        assert len(server.requests) == 1
        store.close()


# ── deleting many ────────────────────────────────────────────────────────────────────────────────────────

NONE_LEFT = reply(200, "<DeleteResult/>")


def not_deleted(code: str) -> bytes:
    return reply(200, f"<DeleteResult><Error><Key>a</Key><Code>{code}</Code></Error></DeleteResult>")


def test_ten_thousand_are_deleted_by_ten_requests():
    with talk(NONE_LEFT) as (store, server):
        store.delete_many([f"{number:08x}" for number in range(10_000)])
        assert len(server.requests) == 10
        assert all(request.body.count(b"<Key>") == 1000 for request in server.requests)
        assert all("X-Amz-Expires=60" in request.target for request in server.requests)


@pytest.mark.parametrize("code", ["InternalError", "SlowDown"])
def test_what_was_not_deleted_for_a_moment_is_tried_again(code):
    with talk(not_deleted(code), NONE_LEFT) as (store, server):
        store.delete_many(["a", "b"])
        assert len(server.requests) == 2


def test_what_may_not_be_deleted_is_named():
    with talk(not_deleted("AccessDenied")) as (store, _), pytest.raises(AccessDenied, match="s3://bucket/a"):
        store.delete_many(["a", "b"])
    with talk(not_deleted("Odd")) as (store, _), pytest.raises(StoreError, match="Odd"):
        store.delete_many(["a", "b"])
    with talk(not_deleted("NoSuchKey")) as (store, _):
        store.delete_many(["a", "b"])


@pytest.mark.parametrize("unknown", [fault(501, "NotImplemented"), reply(405)])
def test_a_server_that_deletes_one_at_a_time(unknown):
    with talk(unknown, reply(204)) as (store, server):
        store.delete_many(["a", "b"])
        store.delete_many(["c"])
        assert [request.method for request in server.requests] == ["POST", "DELETE", "DELETE", "DELETE"]


def test_keys_that_xml_cannot_carry_are_deleted_alone():
    with talk(NONE_LEFT, reply(204)) as (store, server):
        store.delete_many(["a", "b\x01"])
        assert [request.method for request in server.requests] == ["POST", "DELETE"]


@pytest.mark.parametrize("answer", [reply(200, "<html></html>"), reply(200, "<DeleteResult>"), reply(200)])
def test_an_answer_that_is_none_is_not_taken_for_a_success(answer):
    with talk(answer, patience=1.0) as (store, _), pytest.raises(StoreError, match="unusable answer"):
        store.delete_many(["a"])


# ── what is no answer of S3 ──────────────────────────────────────────────────────────────────────────────

PAGE = "<html>Please log in</html>"


@pytest.mark.parametrize("answer", [(200, PAGE), (502, PAGE), (503, ""), (403, PAGE)])
def test_the_date_of_a_portal_is_not_the_servers(answer):
    status, page = answer
    portal = reply(status, page, Date="Mon, 01 Jan 2001 00:00:00 GMT", Content_Type="text/html")
    with talk(portal, OK) as (store, server):
        with suppress(StoreError):
            store.get("key")
        assert store._engine._server_clock.ahead == 0
        assert server.requests


def test_the_date_of_a_refusal_by_s3_is():
    refused = fault(403, "RequestTimeTooSkewed").replace(b"\r\n", b"\r\nDate: Mon, 01 Jan 2001 00:00:00 GMT\r\n", 1)
    with talk(refused, OK) as (store, _):
        store.get("key")
        assert store._engine._server_clock.ahead > 0


def test_a_listing_has_a_bound(monkeypatch):
    page = reply(200, b"<ListBucketResult>" + b" " * (17 << 20) + b"</ListBucketResult>")
    with talk(page) as (store, server):
        with pytest.raises(StoreError, match="more than 16777216 bytes"):
            store.list("")
        assert len(server.requests) == 1
