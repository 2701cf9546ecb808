"""The fault proxy does what it says: each kind seen by a plain client, and a store behind it that notices nothing."""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from s3backer.stores.s3 import S3Store
from tests.support.servers import free_ports
from tools.fault_proxy import KINDS, Fault, FaultProxy, Latency

BODY = b"<Object>" + bytes(range(256)) * 4


class Origin(BaseHTTPRequestHandler):
    """A server that keeps what took effect."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self.server.effects.append((self.command, self.path, self.rfile.read(length)))  # type: ignore[attr-defined]
        body = BODY if self.command in ("GET", "HEAD") else b""
        self.send_response(200)
        if not self.path.startswith("/list"):
            self.send_header("ETag", '"x"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = _answer


class Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Origin)
        self.effects: list[tuple[str, str, bytes]] = []

    @property
    def place(self) -> tuple[str, int]:
        return "127.0.0.1", self.server_address[1]


@pytest.fixture
def origin() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(proxy: FaultProxy, method: str = "GET", path: str = "/key", body: bytes | None = None) -> tuple[int, bytes]:
    """Return status and body that a plain client gets, or raise what it meets."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(proxy.url).port or 0, timeout=1)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


STATUSES = {
    "error500": 500,
    "error503": 503,
    "retry-after": 503,
    "error429": 429,
    "error499": 499,
    "request-timeout": 400,
    "html": 200,
    "html503": 503,
    "expired-token": 400,
    "redirect": 307,
}
BROKEN: dict[str, tuple[type[Exception] | tuple[type[Exception], ...], bool]] = {
    # Kind, what the client meets, whether the request took effect.
    "reset": (ConnectionResetError, False),
    "reset-after": (ConnectionResetError, True),
    "reset-midway": ((ConnectionResetError, http.client.IncompleteRead), True),
    "stall": (TimeoutError, False),
    "stall-after": (TimeoutError, True),
    "stall-midway": (TimeoutError, True),
    "truncated": (http.client.IncompleteRead, True),
    "long-length": (http.client.IncompleteRead, True),
    "drip": (TimeoutError, True),
}
SPOILT = {"altered", "altered-request", "short-length", "garbled", "error-after"}


def test_every_kind_is_tested_here():
    assert {*STATUSES, *BROKEN, *SPOILT} == set(KINDS)


@pytest.mark.parametrize("kind", STATUSES)
def test_an_answer_in_place_of_the_servers(origin, kind):
    with FaultProxy(origin.place) as proxy:
        proxy.script(kind)
        assert ask(proxy)[0] == STATUSES[kind]
        assert origin.effects == []
        assert ask(proxy) == (200, BODY)
        assert proxy.counts == {kind: 1}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_answer_that_does_not_come_whole(origin, kind):
    error, took_effect = BROKEN[kind]
    with FaultProxy(origin.place, stall=30) as proxy:
        proxy.script(kind)
        started = time.monotonic()
        with pytest.raises(error):
            ask(proxy)
        assert bool(origin.effects) == took_effect
        assert ask(proxy) == (200, BODY)
    # Stalls end with the proxy.
    assert time.monotonic() - started < 20


def test_spoilt_messages(origin):
    with FaultProxy(origin.place, seed=3) as proxy:
        proxy.script("altered")
        status, body = ask(proxy)
        assert status == 200 and len(body) == len(BODY)
        assert sum((a ^ b).bit_count() for a, b in zip(body, BODY, strict=True)) == 1
        proxy.script("altered-request")
        ask(proxy, "PUT", body=b"abc")
        sent = origin.effects[-1][2]
        assert sum((a ^ b).bit_count() for a, b in zip(sent, b"abc", strict=True)) == 1
        proxy.script("short-length")
        assert ask(proxy) == (200, BODY[:-1])
        proxy.script("garbled")
        body = ask(proxy, path="/list")[1]
        assert len(body) == len(BODY) and body != BODY
        proxy.script("error-after")
        assert ask(proxy, "DELETE")[0] == 500
        assert origin.effects[-1][0] == "DELETE"
        # What cannot be done to an answer is not done.
        proxy.script("altered", "garbled", "truncated")
        assert [ask(proxy, "PUT", body=b"x")[0] for _ in range(3)] == [200] * 3
        assert ask(proxy, "HEAD") == (200, b"")


def test_the_same_seed_does_the_same(origin):
    def run(seed: int) -> list[str]:
        faults = {"error500": 0.2, "error503": 0.2, "html": 0.1}
        with FaultProxy(origin.place, seed=seed, faults=faults) as proxy:
            for _ in range(60):
                ask(proxy)
            return [seen.fault for seen in proxy.seen]

    first = run(7)
    assert first == run(7) != run(8)
    assert 10 < sum(map(bool, first)) < 45


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_request_is_held_back_and_let_go_twice(origin, method):
    with FaultProxy(origin.place) as proxy:
        held = proxy.hold(method, "some")
        ask(proxy, method, "/other")
        with pytest.raises(ConnectionResetError):
            ask(proxy, method, "/some/key", b"late")
        assert held.wait().body == b"late"
        ask(proxy, method, "/some/key", b"early")
        assert [body for _, _, body in origin.effects] == [b"", b"early"]
        assert [held.release(), held.release()] == [200, 200]
        assert [body for _, _, body in origin.effects[2:]] == [b"late"] * 2
        with pytest.raises(TimeoutError):
            proxy.hold("PUT", "never").wait(0.01)


def test_outages(origin):
    with FaultProxy(origin.place) as proxy:
        proxy.outage("refuse")
        for _ in range(3):
            with pytest.raises(ConnectionResetError):
                ask(proxy)
        proxy.outage("silent")
        with pytest.raises(TimeoutError):
            ask(proxy)
        assert origin.effects == []
        proxy.outage("")
        assert ask(proxy) == (200, BODY)


def test_latency_and_bandwidth_are_added(origin):
    with FaultProxy(origin.place, latency={"GET": Latency(0.2)}, down=len(BODY) * 10) as proxy:
        started = time.monotonic()
        for _ in range(3):
            ask(proxy)
        assert time.monotonic() - started >= 3 * (0.2 + 0.1)
        ask(proxy, "PUT", body=b"")


def test_a_tail_is_as_heavy_as_asked_for():
    source = random.Random(1)
    drawn = [Latency(0.02, 0.2, 0.01, 10.0).draw(source) for _ in range(20_000)]
    assert 150 <= drawn.count(10.0) <= 250
    assert all(0.016 <= seconds <= 0.024 for seconds in drawn if seconds != 10.0)


def test_nothing_is_left_of_it(origin):
    threads = threading.active_count()
    with FaultProxy(origin.place, faults={"stall": 1.0}, stall=100) as proxy:
        clients = [socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port or 0)) for _ in range(20)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        deadline = time.monotonic() + 20
        while len(proxy.seen) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not proxy._thread.is_alive()
    assert threading.active_count() == threads
    for client in clients:
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        client.close()


def test_a_store_behind_it_notices_nothing(s3_server):
    address = urlsplit(s3_server.endpoint)
    with FaultProxy((address.hostname or "", address.port or 0)) as proxy:
        store = S3Store(s3_server.make_bucket(), replace(s3_server.options(), endpoint_url=proxy.url))
        body = random.Random(1).randbytes(300_000)
        etag = store.put("a b", body, metadata={"n": "v"})
        found = store.get("a b")
        assert (found.body, found.info.etag, found.info.metadata) == (body, etag, {"n": "v"})
        assert [entry.key for entry in store.list("").entries] == ["a b"]
        store.delete("a b")
        assert store.list("").entries == ()
        store.close()
        assert store.counters.retries == 0


def test_by_hand(origin):
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "tools.fault_proxy", "--to", f"127.0.0.1:{origin.place[1]}", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--fault", "error503=1", "--latency", "get=0.01,0.5"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"http://127.0.0.1:{port} → 127.0.0.1:")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().status == 503
        connection.close()
        process.send_signal(2)
        said = process.communicate(timeout=30)[0]
        assert process.returncode == 0
        assert "1 requests, 1 of them spoilt" in said and "error503" in said
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "nowhere"], "is no HOST:PORT"),
        (["--to", "h:1", "--fault", "flood=1"], "there is no fault 'flood'"),
        (["--to", "h:1", "--fault", "stall=2"], "from 0 to 1"),
        (["--to", "h:1", "--latency", "get"], "is no latency"),
        ([], "--to"),
    ],
)
def test_by_hand_and_wrong(arguments, said):
    command = [sys.executable, "-m", "tools.fault_proxy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_kind_that_there_is_not():
    with pytest.raises(ValueError, match="there is no fault 'flood'"):
        Fault("flood")
