"""HTTP/1.1 as an S3 client needs it: one request and one whole answer at a time over a connected socket.

urllib3 makes the connections (s3/transport.py); what goes over them is done here, because its requests cost four
times the CPU. Source: RFC 9112.

Guarantees
  * An answer is whole: as many bytes as Content-Length or the chunks say. One that ends with its connection has no
    end that could be told from a break, and is refused.
  * A body is neither copied on its way out nor on its way in.
  * What comes is never trusted: heads, lines and bodies have limits, lengths that contradict each other are refused.
"""

from __future__ import annotations

import math
import socket
import ssl
import struct
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from s3backer import _fast
from s3backer.stores.base import Body
from s3backer.stores.bodies import Unsent, pieces, size_of

_MAX_HEAD = 1 << 16
_MAX_HEADERS = 128
_MAX_LINE = 1 << 12
#: Bytes of an answer that is no success, and of any answer whose reader sets no limit.
MAX_ERROR = 1 << 20
MAX_ANSWER = 5 << 30
#: Up to so many bytes are allocated because an answer says that they come.
_BELIEVED = 64 << 20
_PIECE = 1 << 18
#: Time-outs that sending a request may last while some of it goes out: a large block on a slow way.
SLOWEST = 10
_NO_BODY = (204, 304)


class BadHTTP(Exception):
    """What came is no HTTP/1.1, or no whole answer."""


class LongAnswer(Exception):
    """A success has more than ``at_most`` bytes."""

    def __init__(self, at_most: int) -> None:
        super().__init__(at_most)
        self.at_most = at_most


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """A connected socket. ``reused``: it has answered before."""

    def __init__(self, sock: socket.socket, close: Callable[[], None]) -> None:
        self.sock = sock
        self.close = close
        self.reused = False
        self.idle_since = 0.0
        self.buffer = memoryview(bytearray(_MAX_HEAD))
        self._tls = isinstance(sock, ssl.SSLSocket)
        if not self._tls:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def drop(self) -> None:
        """Close it and forget what has not been sent: it would only be in the way of the next attempt."""
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def pending(self) -> bool:
        """Whether bytes have come that the system's poll does not see."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def send(
        self, head: bytes, body: Body | None, seconds: float, leave: Callable[[], float] = lambda: math.inf
    ) -> None:
        """Send a request; TimeoutError if nothing of it goes out for ``seconds``, or not all in SLOWEST times that.

        What does not go out at once asks ``leave`` for how many seconds it may be sent, and again after them; it may
        raise.
        """
        until = time.monotonic()
        deadline = until + SLOWEST * seconds
        unsent = Unsent((memoryview(head), *pieces(body or ())))
        self.sock.settimeout(seconds)
        while unsent:
            unsent.take(self.sock.send(unsent.first(_PIECE)) if self._tls else self.sock.sendmsg(unsent.next_ones()))
            if unsent:
                now = time.monotonic()
                left = deadline - now
                if left <= 0:
                    raise TimeoutError("timed out")
                if now >= until:
                    # The server has looked at the signature long ago: a lease that has ended must end this.
                    until = now + leave()
                self.sock.settimeout(min(left, seconds))


class Exchange:
    """The answer to one request that was sent: read as it comes, by ``wait`` or by ``advance``."""

    def __init__(self, connection: Connection, method: str, at_most: int | None, seconds: float) -> None:
        self.connection = connection
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.answer: Answer | None = None
        #: Whether the connection can carry another request.
        self.reusable = False
        #: Whether any byte of the answer has come.
        self.begun = False
        self._parser = self._parse(method, at_most)
        self._want = next(self._parser)

    def wait(self, seconds: float) -> bool:
        """Read for at most ``seconds``, and return whether the answer is whole; TimeoutError at the deadline."""
        until = min(time.monotonic() + seconds, self.deadline)
        while self.answer is None:
            now = time.monotonic()
            if now >= until:
                if now >= self.deadline:
                    raise TimeoutError("timed out")
                return False
            self.connection.sock.settimeout(until - now)
            try:
                self._feed(self.connection.sock.recv_into(self._want))
            except TimeoutError:
                continue
        return True

    def advance(self) -> bool:
        """Read what has come without waiting, and return whether the answer is whole."""
        self.connection.sock.settimeout(0)
        try:
            while self.answer is None:
                self._feed(self.connection.sock.recv_into(self._want))
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    def _feed(self, count: int) -> None:
        self.begun = self.begun or count > 0
        try:
            self._want = self._parser.send(count)
        except StopIteration as end:
            self.answer = end.value

    def _parse(self, method: str, at_most: int | None) -> Generator[memoryview, int, Answer]:
        """Parse an answer: yields where the next bytes are to go, is sent how many came (0: the end)."""
        buffer = self.connection.buffer
        filled = 0
        while True:
            end = bytes(buffer[:filled]).find(b"\r\n\r\n")
            if end < 0:
                if filled == _MAX_HEAD:
                    raise BadHTTP("the head of the answer has no end")
                count = yield buffer[filled:]
                if not count:
                    raise BadHTTP("the connection broke off")
                filled += count
                continue
            status, headers, lasting = parse_head(bytes(buffer[:end]))
            rest = bytes(buffer[end + 4 : filled])
            if status >= 200:
                break
            buffer[: len(rest)] = rest
            filled = len(rest)
        body, rest = yield from self._body(method, status, headers, rest, at_most)
        self.reusable = lasting and not rest
        return Answer(status, headers, body)

    def _body(
        self, method: str, status: int, headers: Mapping[str, str], rest: bytes, at_most: int | None
    ) -> Generator[memoryview, int, tuple[bytes, bytes]]:
        """Return the body and what came after it."""
        if method == "HEAD" or status in _NO_BODY:
            return b"", rest
        limit = MAX_ERROR if status >= 300 else MAX_ANSWER if at_most is None else at_most
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
                raise BadHTTP("the answer is encoded in a way that was not asked for")
            return (yield from self._chunks(rest, limit, status))
        said = headers.get("content-length")
        if said is None:
            raise BadHTTP("the answer does not say how long it is")
        if not (said.isascii() and said.isdecimal()) or len(said) > 18:
            raise BadHTTP("the answer has no valid Content-Length")
        length = int(said)
        if length > limit:
            raise _too_long(limit, status)
        if len(rest) >= length:
            return rest[:length], rest[length:]
        if not 2 <= length <= _BELIEVED:
            pieces = bytearray(rest)
            while len(pieces) < length:
                view = memoryview(bytearray(min(_PIECE, length - len(pieces))))
                pieces += view[: (yield from _some(view))]
            return bytes(pieces), b""
        body, view = _fast.writable_bytes(length)
        view[: len(rest)] = rest
        filled = len(rest)
        while filled < length:
            filled += yield from _some(view[filled:])
        view.release()
        return body, b""

    def _chunks(self, rest: bytes, limit: int, status: int) -> Generator[memoryview, int, tuple[bytes, bytes]]:
        data, body = bytearray(rest), bytearray()
        piece = memoryview(bytearray(_MAX_LINE))
        while True:
            line = yield from _line(data, piece)
            size = _chunk_size(line)
            if size == 0:
                while (yield from _line(data, piece)):
                    pass
                return bytes(body), bytes(data)
            if len(body) + size > limit:
                raise _too_long(limit, status)
            while len(data) < size + 2:
                data += piece[: (yield from _some(piece))]
            if data[size : size + 2] != b"\r\n":
                raise BadHTTP("a chunk of the answer has another length than it says")
            body += data[:size]
            del data[: size + 2]


def _some(view: memoryview) -> Generator[memoryview, int, int]:
    """Return how many bytes came, at least one."""
    count = yield view
    if not count:
        raise BadHTTP("the connection broke off")
    return count


def _line(data: bytearray, piece: memoryview) -> Generator[memoryview, int, bytes]:
    """Take a line off ``data``, without its end."""
    while (end := data.find(b"\r\n")) < 0:
        if len(data) > _MAX_LINE:
            raise BadHTTP("a line of the answer has no end")
        data += piece[: (yield from _some(piece))]
    line = bytes(data[:end])
    del data[: end + 2]
    return line


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
        raise BadHTTP("the answer has no valid chunks")
    return int(digits, 16)


def _too_long(limit: int, status: int) -> Exception:
    return BadHTTP("an error message of more than 1 MiB") if status >= 300 else LongAnswer(limit)


def parse_head(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Return (status, headers, whether the connection stays) of a head without its last line ends."""
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isascii() and code.isdecimal() and len(code) == 3):
        raise BadHTTP("it does not answer in HTTP")
    if len(lines) > _MAX_HEADERS:
        raise BadHTTP("the answer has too many headers")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if not colon or not name or name != name.strip():
            raise BadHTTP("the answer has an invalid header")
        if name in headers:
            if name == "content-length" and headers[name] != value:
                raise BadHTTP("the answer has two lengths")
            if name != "content-length":
                value = f"{headers[name]}, {value}"
        headers[name] = value
    connection = headers.get("connection", "").lower()
    return int(code), headers, version == "HTTP/1.1" and "close" not in connection


def request_head(method: str, target: str, headers: Mapping[str, str], body: Body | None) -> bytes:
    """Return the bytes before the body. Headers are printable ASCII already; Host is among them."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {size_of(body)}")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("latin-1")
