"""HTTP/1.1 between the fault proxy and both its sides: whole messages, passed on as they are."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

_MAX_BODY = 64 << 20


@dataclass
class Answer:
    """An answer of the server, or one made up."""

    status: int
    head: bytes
    headers: Mapping[str, str]
    body: bytes
    keep: bool


@dataclass
class Upstream:
    """A connection to the server, made when it is needed."""

    target: tuple[str, int]
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None, repr=False)

    async def ask(self, head: bytes, body: bytes, method: str) -> Answer:
        """Send a request and return the server's whole answer."""
        kept = self._streams is not None
        try:
            return await self._ask(head, body, method)
        except (OSError, asyncio.IncompleteReadError):
            # The server had closed the kept connection.
            self.close()
            if not kept:
                raise
            return await self._ask(head, body, method)

    async def _ask(self, head: bytes, body: bytes, method: str) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self.target, limit=1 << 18)
        reader, writer = self._streams
        # The body is here already.
        writer.write(re.sub(rb"(?i)\r\nexpect: [^\r]*", b"", head) + body)
        await writer.drain()
        while True:
            answer_head = await reader.readuntil(b"\r\n\r\n")
            line, headers = parse_head(answer_head)
            status = int(line.split(" ", 2)[1])
            if status != 100:
                break
        data = b"" if method == "HEAD" or status in (204, 304) else await read_body(reader, headers)
        if "transfer-encoding" in headers:
            answer_head = re.sub(rb"(?i)transfer-encoding: [^\r]*", b"Content-Length: %d" % len(data), answer_head)
        keep = "close" not in headers.get("connection", "").lower()
        if not keep:
            self.close()
        return Answer(status, answer_head, headers, data, keep)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    """Return the first line and the headers, their names in lower case."""
    line, *rest = head.decode("latin-1").rstrip().split("\r\n")
    pairs = (text.partition(":") for text in rest)
    return line, {name.lower(): value.strip() for name, _, value in pairs}


async def read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    """Return the body that these headers announce."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = bytearray()
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return bytes(body)
    length = int(headers.get("content-length", "0"))
    if length > _MAX_BODY:
        raise ValueError("too long for this proxy")
    return await reader.readexactly(length)


def made(method: str, status: int, body: bytes, headers: Mapping[str, str]) -> Answer:
    """Return an answer that no server gave."""
    lines = [f"HTTP/1.1 {status} Fault", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in headers.items())]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    return Answer(status, head, headers, b"" if method == "HEAD" else body, True)


def flipped(body: bytes, source: random.Random) -> bytes:
    """Return a body with one bit turned over."""
    at = source.randrange(len(body))
    return body[:at] + bytes([body[at] ^ 1 << source.randrange(8)]) + body[at + 1 :]


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST in place of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
