"""Answers as they come off the wire: whole, in any pieces, or none."""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import threading
import time
import tracemalloc
from contextlib import suppress
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from s3backer.s3 import http1
from s3backer.s3.http1 import Answer, BadHTTP, Connection, Exchange, LongAnswer, parse_head, request_head
from s3backer.stores.base import Buffer


def answered(wire: bytes, cuts: list[int], *, method: str = "GET", at_most: int | None = None) -> tuple[Answer, bool]:
    """Return the answer that comes in pieces cut at these places, and whether its connection can be used again."""
    ours, theirs = socket.socketpair()
    connection = Connection.__new__(Connection)
    connection.sock, connection.buffer = ours, memoryview(bytearray(1 << 16))
    exchange = Exchange(connection, method, at_most, 20.0)
    try:
        places = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
        for start, stop in pairwise(places):
            theirs.sendall(wire[start:stop])
            exchange.advance()
        theirs.shutdown(socket.SHUT_WR)
        assert exchange.wait(10)
        assert exchange.answer is not None
        return exchange.answer, exchange.reusable
    finally:
        ours.close()
        theirs.close()


CUTS = st.lists(st.integers(0, 400), max_size=6)
BODIES = st.binary(max_size=300)


@settings(max_examples=200)
@given(body=BODIES, cuts=CUTS, more=st.booleans())
def test_a_body_of_stated_length(body, cuts, more):
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-A:  b \r\n\r\n" % len(body) + body
    answer, reusable = answered(wire + (b"x" if more else b""), cuts)
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers == {"content-length": str(len(body)), "x-a": "b"}
    # What comes unasked belongs to nobody. Whether it is seen depends on how it comes.
    assert reusable or more


@settings(max_examples=200)
@given(chunks=st.lists(st.binary(min_size=1, max_size=80), max_size=5), cuts=CUTS, trailer=st.booleans())
def test_a_body_in_chunks(chunks, cuts, trailer):
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire += b"".join(b"%X;x=y\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    wire += b"0\r\n" + (b"Trailer: x\r\n" if trailer else b"") + b"\r\n"
    answer, reusable = answered(wire, cuts)
    assert answer.body == b"".join(chunks)
    assert reusable


@settings(max_examples=300)
@given(body=BODIES, cuts=CUTS, at=st.integers(0, 400), chunked=st.booleans())
def test_an_answer_that_is_cut_anywhere_is_none(body, cuts, at, chunked):
    if chunked:
        wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        wire = wire if body else wire.replace(b"\r\n\r\n0", b"", 1)
    else:
        wire = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with pytest.raises(BadHTTP, match="broke off"):
        answered(wire[: min(at, len(wire) - 1)], cuts)


@settings(max_examples=300)
@given(wire=st.binary(max_size=400), cuts=CUTS)
def test_nonsense_is_refused_and_nothing_worse(wire, cuts):
    for text in (wire, b"HTTP/1.1 200 OK\r\n" + wire, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire):
        with suppress(BadHTTP):
            answered(text, cuts)


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345", "two lengths"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "no valid Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n", "no valid Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "encoded in a way"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "encoded in a way"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "no valid chunks"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", "another length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 9000, "no end"),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", "how long it is"),
        (b"HTTP/1.1 200 OK\r\n a: b\r\n\r\n", "invalid header"),
        (b"HTTP/1.1 200 OK\r\nab\r\n\r\n", "invalid header"),
        (b"HTTP/2 200 OK\r\n\r\n", "in HTTP"),
        (b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "too many headers"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 70000, "no end"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 2000000\r\n\r\n", "more than 1 MiB"),
    ],
)
def test_what_is_refused(head, problem):
    if not problem:
        # The reason phrase says nothing.
        assert answered(head, [])[0].status == 200
        return
    with pytest.raises(BadHTTP, match=problem):
        answered(head, [])


def test_provisional_answers_are_passed_over():
    wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"
    wire += b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
    for cut in range(len(wire)):
        assert answered(wire, [cut])[0].body == b"a"


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)], ids=["HEAD", "no content", "not modified"]
)
def test_answers_without_a_body(method, status):
    answer, reusable = answered(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status, [], method=method)
    assert (answer.status, answer.body, reusable) == (status, b"", True)


def test_no_more_is_read_than_wanted():
    with pytest.raises(LongAnswer):
        answered(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", [], at_most=10)
    with pytest.raises(LongAnswer):
        answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n", [], at_most=10)


@pytest.mark.parametrize("line", [b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: Close\r\n"])
def test_a_connection_that_ends_is_not_used_again(line):
    assert answered(line + b"Content-Length: 0\r\n\r\n", [])[1] is False


def test_headers_of_one_name_are_joined():
    assert parse_head(b"HTTP/1.1 200 OK\r\nA: b\r\na:c")[1] == {"a": "b, c"}


def test_the_head_of_a_request():
    assert request_head("PUT", "/a?b", {"Host": "h", "X": "y"}, memoryview(b"abcd").cast("H")) == (
        b"PUT /a?b HTTP/1.1\r\nHost: h\r\nX: y\r\nContent-Length: 4\r\n\r\n"
    )
    assert b"Content-Length" not in request_head("GET", "/", {}, None)


def test_a_body_is_sent_whole_to_a_slow_reader():
    ours, theirs = socket.socketpair()
    connection = Connection.__new__(Connection)
    connection.sock, connection._tls = ours, False
    body = bytes(range(256)) * (1 << 14)
    received = bytearray()

    def read() -> None:
        while len(received) < len(body) + 4:
            received.extend(theirs.recv(100_000))

    reader = threading.Thread(target=read)
    reader.start()
    connection.send(b"head", body, 30.0)
    reader.join(30)
    assert received == b"head" + body
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.send(b"head", body, 0.2)
    assert time.monotonic() - started >= 0.2
    ours.close()
    theirs.close()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_a_body_in_pieces_is_sent_in_order_and_never_copied(secure, certificate):
    ours, theirs = socket.socketpair()
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 16))

    def receive() -> None:
        source = certificate[0].wrap_socket(theirs, server_side=True) if secure else theirs
        while count := source.recv_into(buffer):
            digest.update(buffer[:count])
        source.close()

    receiver = threading.Thread(target=receive, name="receiver")
    receiver.start()
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        ours = context.wrap_socket(ours)
    connection = Connection.__new__(Connection)
    connection.sock, connection._tls = ours, secure
    memory = memoryview(random.Random(1).randbytes(8 << 20))
    # More pieces than one system call takes, and one that no call takes whole.
    body: list[Buffer] = [
        b"header",
        *(memory[at : at + 1000] for at in range(0, 2_000_000, 1000)),
        b"",
        memory[2_000_000:],
    ]
    tracemalloc.start()
    try:
        connection.send(b"POST\r\n\r\n", body, 60.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        ours.shutdown(socket.SHUT_WR)
        receiver.join(timeout=60)
        ours.close()
    assert digest.hexdigest() == hashlib.sha256(b"POST\r\n\r\nheader" + memory).hexdigest()
    assert peak < 1 << 20


@pytest.mark.parametrize(("pause", "whole"), [(0.05, True), (0.6, False)])
def test_sending_may_last_longer_while_it_goes_on(pause, whole):
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = Connection.__new__(Connection)
    connection.sock, connection._tls = ours, False
    body = bytes(200_000)
    over = threading.Event()

    def read() -> None:
        left = len(body)
        while left and not over.wait(pause):
            left -= len(theirs.recv(8192))

    reader = threading.Thread(target=read)
    reader.start()
    started = time.monotonic()
    try:
        if whole:
            connection.send(b"", body, 0.3)
            assert time.monotonic() - started > 0.6
        else:
            with pytest.raises(TimeoutError):
                connection.send(b"", body, 0.3)
    finally:
        over.set()
        reader.join()
        ours.close()
        theirs.close()


def test_sending_has_an_end(monkeypatch):
    monkeypatch.setattr(http1, "SLOWEST", 2)
    with pytest.raises(TimeoutError):
        test_sending_may_last_longer_while_it_goes_on(0.05, True)
