"""A server that answers with whatever a test says, down to the byte and the reset.

    with NastyServer(reply(503), reply(200, ETag='"x"')) as server:
        ...
        assert [request.method for request in server.requests] == ["GET", "GET"]

Each request, on whatever connection, takes the next step of the script; the last step is repeated. A step is the
bytes of an answer, or a ``Step`` that says more. Free of pytest.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Step:
    """What is done with one request: ``data`` is sent, then the connection is kept, closed or reset.

    ``read`` False: the request is left unread. ``pause``: seconds before each byte. ``hold``: nothing more happens
    until the server stops.
    """

    data: bytes = b""
    end: str = "keep"
    read: bool = True
    pause: float = 0.0
    hold: bool = False


@dataclass(frozen=True)
class Request:
    """One request as it was read. Names of headers are lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def reply(status: int, body: bytes | str = b"", *, length: int | None = None, **headers: str) -> bytes:
    """Return an answer's bytes. Header names are given with '_' for '-'; ``length`` is what Content-Length says."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fault(status: int, code: str, message: str = "said so", extra: str = "", **headers: Any) -> bytes:
    """Return an S3 error document as an answer."""
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>'
    )
    return reply(status, text, Content_Type="application/xml", **headers)


class NastyServer:
    """Listens on a free port of 127.0.0.1 from the beginning of its ``with`` block to the end."""

    def __init__(self, *script: bytes | Step, tls: ssl.SSLContext | None = None) -> None:
        self.script = list(script)
        self.requests: list[Request] = []
        self._tls = tls
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="nasty accept")]

    @property
    def url(self) -> str:
        """The server's endpoint URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._stopping.is_set():
                    connection.close()
                    return
                self._open.add(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), name="nasty connection")
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        raw = connection
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            buffer = bytearray()
            while self._one(connection, buffer):
                pass
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._open.discard(raw)
            with suppress(OSError):
                connection.close()

    def _one(self, connection: socket.socket, buffer: bytearray) -> bool:
        if not buffer:
            buffer += connection.recv(1)
            if not buffer:
                return False
        with self._lock:
            step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, bytes):
            step = Step(step)
        if step.read:
            request = self._read(connection, buffer)
            with self._lock:
                self.requests.append(request)
        if step.pause:
            for byte in step.data:
                if self._stopping.wait(step.pause):
                    return False
                connection.sendall(bytes([byte]))
        else:
            connection.sendall(step.data)
        if step.hold:
            self._stopping.wait(60)
        if step.end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return step.end == "keep"

    @staticmethod
    def _read(connection: socket.socket, buffer: bytearray) -> Request:
        def more() -> None:
            data = connection.recv(1 << 16)
            if not data:
                raise ValueError("the client went away")
            buffer.extend(data)

        while b"\r\n\r\n" not in buffer:
            more()
        head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        buffer[:] = rest
        while len(buffer) < length:
            more()
        body = bytes(buffer[:length])
        del buffer[:length]
        return Request(method, target, headers, body)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopping.set()
            open_now = list(self._open)
        # Shutting a listener down wakes accept().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in open_now:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + 30
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), thread.name
