"""A proxy between an S3 client and an S3 server that does what networks and servers do on their bad days.

By hand:  .venv/bin/python -m tools.fault_proxy --to 127.0.0.1:9000 --fault error503=0.03 --latency get=0.35
In tests: ``with FaultProxy(("127.0.0.1", 9000), faults={"reset-after": 0.03}, seed=7) as proxy: … proxy.url …``

Each request is taken whole, meets at most one fault, and is forwarded unless the fault says otherwise; Host stays as it
was, so that signatures hold. What happens to a request depends on its number and the seed alone. ``KINDS`` lists the
faults; docs/faults.md describes them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import re
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from tools.fault_wire import Answer, Upstream, flipped, made, parse_head, read_body, reset

T = TypeVar("T")
_METHODS = ("GET", "HEAD", "PUT", "DELETE", "POST")
_HTML = b"<html><body>Please log in</body></html>"


def _xml(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>fault</Message></Error>".encode()


#: Answers that are given in place of the server's: status, body, further headers.
_ANSWERS: dict[str, tuple[int, bytes, Mapping[str, str]]] = {
    "error500": (500, _xml("InternalError"), {}),
    "error503": (503, _xml("SlowDown"), {}),
    "retry-after": (503, _xml("SlowDown"), {"Retry-After": "1"}),
    "error429": (429, _xml("TooManyRequests"), {}),
    "error499": (499, b"", {}),
    "request-timeout": (400, _xml("RequestTimeout"), {}),
    "html": (200, _HTML, {"Content-Type": "text/html"}),
    "html503": (503, _HTML, {"Content-Type": "text/html"}),
    "expired-token": (400, _xml("ExpiredToken"), {}),
    "redirect": (307, _xml("TemporaryRedirect"), {"Location": "http://127.0.0.1:1/"}),
}
#: Every kind of fault, in the order in which they are drawn.
KINDS = (
    *_ANSWERS,
    "error-after",
    "reset",
    "reset-after",
    "reset-midway",
    "stall",
    "stall-after",
    "stall-midway",
    "truncated",
    "altered",
    "altered-request",
    "drip",
    "long-length",
    "short-length",
    "garbled",
)


#: Kinds that an answer without a body cannot meet.
_OF_BODIES = ("truncated", "long-length", "short-length", "reset-midway", "stall-midway")


@dataclass(frozen=True)
class Fault:
    """What is done to one request: a kind, and for stalls and drips how many seconds."""

    kind: str
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no fault {self.kind!r}; there are {', '.join(KINDS)}")


@dataclass(frozen=True)
class Latency:
    """Seconds before an answer: ``seconds`` ± ``spread`` of them; with the share ``tail``, ``tail_seconds``."""

    seconds: float
    spread: float = 0.0
    tail: float = 0.0
    tail_seconds: float = 0.0

    def draw(self, source: random.Random) -> float:
        """Return the seconds of one request."""
        usual = self.seconds * source.uniform(1 - self.spread, 1 + self.spread)
        return self.tail_seconds if source.random() < self.tail else usual


@dataclass
class Seen:
    """One request as it came: what was done to it, and the status that the server gave (0: none)."""

    number: int
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    head: bytes
    fault: str = ""
    status: int = 0

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


class Held:
    """A request that is held back; the client's connection is reset, the server has not seen it."""

    def __init__(self, proxy: FaultProxy, method: str, part: str) -> None:
        self._proxy = proxy
        self._method = method
        self._part = part
        self._came = threading.Event()
        self.request: Seen | None = None

    def matches(self, seen: Seen) -> bool:
        """Whether this is the request to hold."""
        return self.request is None and seen.method == self._method and self._part in seen.path

    def take(self, seen: Seen) -> None:
        """Hold this request."""
        self.request = seen
        self._came.set()

    def wait(self, seconds: float = 30.0) -> Seen:
        """Return the request when it has come; TimeoutError if it does not."""
        if not self._came.wait(seconds) or self.request is None:
            raise TimeoutError(f"no {self._method} of {self._part!r} came")
        return self.request

    def end(self) -> None:
        """Hold nothing any more, if nothing has come."""
        with contextlib.suppress(ValueError):
            self._proxy._held.remove(self)

    def release(self) -> int:
        """Let the request go on to the server, any number of times, and return the status of the answer."""
        return self._proxy.call(self._proxy.forward_alone(self.wait())).status


class FaultProxy:
    """Listens on 127.0.0.1; ``target`` is (host, port). Any thread may use its methods.

    ``faults``: the share of requests that meet a kind, by its name. ``stall``: seconds of stalls and drips.
    ``latency``: by method, or "*" for all others. ``up`` and ``down``: bytes per second of everything together.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        port: int = 0,
        seed: int = 0,
        faults: Mapping[str, float] | None = None,
        stall: float = 30.0,
        latency: Mapping[str, Latency] | None = None,
        up: float | None = None,
        down: float | None = None,
        remembered: int | None = None,
    ) -> None:
        self._target = target
        self._port = port
        self._source = random.Random(seed)
        self.faults = dict(faults or {})
        for kind in self.faults:
            Fault(kind)
        self._stall = stall
        self.latency = dict(latency or {})
        self._pace = {"up": up, "down": down}
        self._free_at = {"up": 0.0, "down": 0.0}
        self._script: deque[Fault | None] = deque()
        self._chooser: Callable[[Seen], Fault | None] | None = None
        self._held: list[Held] = []
        self._outage = ""
        #: The requests, or the last ``remembered`` of them; how many there were.
        self.seen: deque[Seen] = deque(maxlen=remembered)
        self.requests = 0
        #: How many requests met which fault.
        self.counts: Counter[str] = Counter()
        self.keep_bodies = False
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="fault-proxy")
        self._ready = threading.Event()
        self._problem: OSError | None = None

    # ── what a test says ─────────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"http://127.0.0.1:{self._port}"

    def script(self, *faults: Fault | str | None) -> None:
        """Give the next requests these faults, None for none; then it goes on as before."""
        self._script.extend(Fault(fault, self._stall) if isinstance(fault, str) else fault for fault in faults)

    def choose(self, chooser: Callable[[Seen], Fault | None] | None) -> None:
        """Let a function decide about each request, in place of the seed."""
        self._chooser = chooser

    def outage(self, kind: str) -> None:
        """Break every connection off and let none through: ``refuse`` resets, ``silent`` never answers, "" ends it."""
        self._outage = kind
        if kind:
            self._loop.call_soon_threadsafe(self._cut)

    def hold(self, method: str, part: str) -> Held:
        """Hold back the next request of this method whose path contains ``part``."""
        held = Held(self, method, part)
        self._held.append(held)
        return held

    def call(self, work: Awaitable[T]) -> T:
        """Run something in the proxy's loop and return its result."""

        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._problem is not None:
            self._thread.join()
            raise self._problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            server = self._loop.run_until_complete(
                asyncio.start_server(self._connected, "127.0.0.1", self._port, backlog=512)
            )
        except OSError as error:
            self._problem = error
            self._loop.close()
            self._ready.set()
            return
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._cut()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _cut(self) -> None:
        for writer in self._writers:
            reset(writer)
        for task in self._tasks:
            task.cancel()

    # ── one connection ───────────────────────────────────────────────────────────────────────────────

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._outage == "refuse":
            reset(writer)
            return
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        self._writers.add(writer)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = Upstream(self._target)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
                while await self._one(reader, writer, upstream):
                    pass
        except asyncio.CancelledError:
            pass
        finally:
            upstream.close()
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: Upstream) -> bool:
        """Serve one request; False ends the connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, headers = parse_head(head)
        method, target, _ = line.split(" ", 2)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await read_body(reader, headers)
        seen = Seen(self.requests, method, target, headers, body, head)
        self.requests += 1
        fault = self._decide(seen)
        self.seen.append(seen)
        if self._outage:
            await asyncio.Event().wait()
        for held in self._held:
            if held.matches(seen):
                seen.fault = "held"
                held.take(seen)
                reset(writer)
                return False
        try:
            return await self._answer(seen, fault, writer, upstream)
        finally:
            if not self.keep_bodies and seen.fault != "held":
                seen.body = b""

    def _decide(self, seen: Seen) -> Fault | None:
        # Always as many draws, so that a request's fate depends on its number and the seed alone.
        drawn = [kind for kind in KINDS if kind in self.faults and self._source.random() < self.faults[kind]]
        if self._script:
            return self._script.popleft()
        if self._chooser is not None:
            return self._chooser(seen)
        return Fault(drawn[0], self._stall) if drawn else None

    async def _answer(self, seen: Seen, fault: Fault | None, writer: asyncio.StreamWriter, upstream: Upstream) -> bool:
        kind = fault.kind if fault else ""
        seconds = fault.seconds if fault else 0.0
        latency = self.latency.get(seen.method, self.latency.get("*"))
        if latency is not None:
            await asyncio.sleep(latency.draw(self._source))
        if kind == "altered-request":
            kind = kind if seen.body else ""
        if kind == "stall":
            self._note(seen, kind)
            await asyncio.sleep(seconds)
        if kind == "reset" or kind in _ANSWERS:
            self._note(seen, kind)
            if kind == "reset":
                reset(writer)
                return False
            status, body, more = _ANSWERS[kind]
            return await self._write(writer, made(seen.method, status, body, more))
        await self._wait_for("up", len(seen.body))
        body = flipped(seen.body, self._source) if kind == "altered-request" else seen.body
        if kind == "altered-request":
            self._note(seen, kind)
        answer = await upstream.ask(seen.head, body, seen.method)
        seen.status = answer.status
        await self._wait_for("down", len(answer.body))
        return await self._spoilt(seen, kind, seconds, answer, writer)

    async def _spoilt(
        self, seen: Seen, kind: str, seconds: float, answer: Answer, writer: asyncio.StreamWriter
    ) -> bool:
        """Pass an answer on as the fault has it."""
        is_object = seen.method == "GET" and "etag" in answer.headers and answer.body
        is_text = answer.body.startswith(b"<") and "etag" not in answer.headers and len(answer.body) > 8
        applies = {
            "altered": bool(is_object),
            "garbled": is_text,
            **dict.fromkeys(
                ("truncated", "long-length", "short-length", "reset-midway", "stall-midway"), bool(answer.body)
            ),
        }
        if not kind or kind in ("stall", "altered-request") or not applies.get(kind, True):
            return await self._write(writer, answer)
        self._note(seen, kind)
        half = len(answer.body) // 2
        match kind:
            case "error-after":
                return await self._write(writer, made(seen.method, 500, _xml("InternalError"), {}))
            case "reset-after":
                reset(writer)
                return False
            case "stall-after":
                await asyncio.sleep(seconds)
            case "reset-midway" | "truncated" | "stall-midway":
                writer.write(answer.head + answer.body[:half])
                await writer.drain()
                if kind == "stall-midway":
                    await asyncio.sleep(seconds)
                    writer.write(answer.body[half:])
                    return answer.keep
                if kind == "reset-midway":
                    reset(writer)
                return False
            case "altered":
                answer.body = flipped(answer.body, self._source)
            case "garbled":
                answer.body = answer.body[:half] + b"\x00&" + answer.body[half + 2 :]
            case "drip":
                pieces = answer.head + answer.body
                step = max(1, len(pieces) // 20)
                for start in range(0, len(pieces), step):
                    writer.write(pieces[start : start + step])
                    await asyncio.sleep(seconds / 20)
                return answer.keep
            case "long-length" | "short-length":
                length = len(answer.body) + (100 if kind == "long-length" else -1)
                head = re.sub(rb"(?i)content-length: *\d+", b"Content-Length: %d" % length, answer.head)
                writer.write(head + answer.body)
                await writer.drain()
                return False
        return await self._write(writer, answer)

    def _note(self, seen: Seen, kind: str) -> None:
        seen.fault = kind
        self.counts[kind] += 1

    async def _write(self, writer: asyncio.StreamWriter, answer: Answer) -> bool:
        writer.write(answer.head + answer.body)
        await writer.drain()
        return answer.keep

    async def _wait_for(self, way: str, size: int) -> None:
        rate = self._pace[way]
        if rate and size:
            now = time.monotonic()
            self._free_at[way] = max(now, self._free_at[way]) + size / rate
            await asyncio.sleep(self._free_at[way] - now)

    async def forward_alone(self, seen: Seen) -> Answer:
        """Send a request to the server on a connection of its own."""
        upstream = Upstream(self._target)
        try:
            answer = await upstream.ask(seen.head, seen.body, seen.method)
            seen.status = answer.status
            return answer
        finally:
            upstream.close()


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def _share(text: str) -> tuple[str, float]:
    kind, _, share = text.partition("=")
    try:
        Fault(kind)
        value = float(share)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a share is a number from 0 to 1")
    return kind, value


def _latency(text: str) -> tuple[str, Latency]:
    method, _, numbers = text.partition("=")
    name = method.upper()
    try:
        values = [float(number) for number in numbers.split(",")]
        if name not in (*_METHODS, "*") or not 1 <= len(values) <= 4 or min(values) < 0:
            raise ValueError
        return name, Latency(*values)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no latency; one looks like get=0.35 or put=0.2,0.1,0.01,10 "
            "(seconds, spread, share of the tail, its seconds)"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the proxy until it is interrupted."""
    parser = argparse.ArgumentParser(
        description="A proxy that spoils some of the requests to an S3 server.", epilog=f"Faults: {', '.join(KINDS)}."
    )
    parser.add_argument("--to", type=_place, required=True, metavar="HOST:PORT", help="the S3 server, plain http")
    parser.add_argument("--port", type=int, default=9100, help="where to listen on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same faults")
    parser.add_argument("--fault", type=_share, action="append", default=[], metavar="KIND=SHARE")
    parser.add_argument("--stall", type=float, default=30.0, metavar="SECONDS", help="of stalls and drips")
    parser.add_argument("--latency", type=_latency, action="append", default=[], metavar="METHOD=SECONDS[,…]")
    parser.add_argument("--up", type=float, metavar="BYTES", help="bytes per second to the server")
    parser.add_argument("--down", type=float, metavar="BYTES", help="bytes per second from it")
    given = parser.parse_args(arguments)
    proxy = FaultProxy(
        given.to,
        port=given.port,
        seed=given.seed,
        faults=dict(given.fault),
        stall=given.stall,
        latency=dict(given.latency),
        up=given.up,
        down=given.down,
        # It may run for days.
        remembered=0,
    )
    # It warns of each write to a client that has gone.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    # Whoever is started in the background of a shell has SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with proxy:
            print(f"{proxy.url} → {given.to[0]}:{given.to[1]}; Ctrl-C ends it", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
    except OSError as error:
        print(f"fault_proxy: port {given.port} cannot be used: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{proxy.requests} requests, {sum(proxy.counts.values())} of them spoilt")
    for kind, count in sorted(proxy.counts.items()):
        print(f"  {kind:<16} {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
