"""10,000 objects listed, and deleted: S3Store on MinIO, beside what the wire and the server take.

raw      the same requests, signed beforehand, over one kept connection; the answers are read and thrown away
CPU      user and system seconds of the client, which the server is no part of
"""

from __future__ import annotations

import http.client
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import pytest

from perf.side_by_side import Ratio, Report, compare, interleave
from s3backer.s3.checksums import md5_base64
from s3backer.s3.responses import deletion
from s3backer.s3.signing import Keys, Signer, encode_query, payload_hash
from s3backer.stores.s3 import S3Store
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.servers import MinioServer

OBJECTS = 10_000
PAGE = 1000
ROUNDS = 5
CALLERS = 8
#: So many are deleted raw, and one by one: enough to know what all of them would take.
SOME = 1000
NAMES = [f"{number * 7:08x}" for number in range(OBJECTS)]

pytestmark = pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT)


@pytest.fixture(scope="module")
def server() -> Iterator[MinioServer]:
    with MinioServer() as server:
        yield server


@pytest.fixture
def store(server: MinioServer) -> Iterator[S3Store]:
    store = S3Store(server.make_bucket(), replace(server.options(), connections=CALLERS))
    yield store
    store.close()


def fill(store: S3Store, names: list[str]) -> None:
    with ThreadPoolExecutor(CALLERS) as pool:
        for _ in pool.map(lambda name: store.put(name, b"x"), names):
            pass


@dataclass(frozen=True)
class Prepared:
    """A signed request."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


def prepared(
    server: MinioServer, bucket: str, method: str, query: Mapping[str, str], body: bytes = b"", **headers: str
) -> Prepared:
    host, keys = urlsplit(server.endpoint).netloc, Keys(server.access_key, server.secret_key)
    path, text = f"/{bucket}", encode_query(query)
    named = {"Host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
    signed = Signer("us-east-1").sign(method, path, text, named, payload_hash(body), keys, time.time())
    return Prepared(method, f"{path}?{text}", signed, body)


class Wire:
    """One kept connection."""

    def __init__(self, server: MinioServer) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc)

    def renew(self) -> None:
        """Connect anew: the server closes a connection that is idle for long."""
        self._connection.close()
        self._connection.connect()

    def ask(self, requests: list[Prepared]) -> int:
        """Send these requests one after the other, read the answers and return their bytes."""
        received = 0
        for request in requests:
            self._connection.request(request.method, request.target, request.body or None, dict(request.headers))
            answer = self._connection.getresponse()
            received += len(answer.read())
            assert answer.status == 200
        return received

    def close(self) -> None:
        self._connection.close()


def test_listing(server: MinioServer, store: S3Store, report: Report) -> None:
    fill(store, NAMES)

    def listed() -> list[str]:
        found: list[str] = []
        page = store.list("")
        found += [entry.key for entry in page.entries]
        while page.truncated:
            page = store.list("", start_after=found[-1])
            found += [entry.key for entry in page.entries]
        return found

    assert listed() == NAMES
    assert store.counters.snapshot()["list"].requests == OBJECTS // PAGE
    usual = {"list-type": "2", "max-keys": str(PAGE), "encoding-type": "url"}
    after = ["", *NAMES[PAGE - 1 : -1 : PAGE]]
    pages = [prepared(server, store.bucket, "GET", usual | ({"start-after": name} if name else {})) for name in after]
    wire = Wire(server)
    contenders: dict[str, Callable[[], object]] = {"store": listed, "raw": lambda: wire.ask(pages)}
    for what, clock in (("wall", time.perf_counter), ("CPU", time.process_time)):
        times = interleave(contenders, rounds=ROUNDS, clock=clock)
        mine, bare = (statistics.median(times[name]) * 1e3 for name in ("store", "raw"))
        ours, raw = f"{OBJECTS} keys listed, {what}: {mine:.0f} ms", f"raw: {bare:.0f} ms"
        report.add(compare({ours: times["store"], raw: times["raw"]}, ours, [raw], None))
    wire.close()


def test_deleting(server: MinioServer, store: S3Store, report: Report) -> None:
    """What takes longest is making the objects: the seconds of raw and of single deletes are extrapolated."""
    wire = Wire(server)
    body = deletion(NAMES[:SOME])
    batch = prepared(server, store.bucket, "POST", {"delete": ""}, body, Content_MD5=md5_base64(body))

    def one_by_one() -> None:
        with ThreadPoolExecutor(CALLERS) as pool:
            for _ in pool.map(store.delete, NAMES[:SOME]):
                pass

    contenders: dict[str, Callable[[], object]] = {
        "store": lambda: store.delete_many(NAMES),
        "raw": lambda: wire.ask([batch]),
        "single": one_by_one,
    }
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS):
        for name in list(contenders)[number % 3 :] + list(contenders)[: number % 3]:
            fill(store, NAMES if name == "store" else NAMES[:SOME])
            scale = 1 if name == "store" else OBJECTS / SOME
            wire.renew()
            before = store.counters.snapshot()["delete"].requests
            started, used = time.perf_counter(), time.process_time()
            contenders[name]()
            wall[name].append((time.perf_counter() - started) * scale)
            cpu[name].append((time.process_time() - used) * scale)
            requests = store.counters.snapshot()["delete"].requests - before
            assert requests == {"store": OBJECTS // PAGE, "raw": 0, "single": SOME}[name]
            assert not store.list("").entries
    wire.close()
    requests = OBJECTS // PAGE
    fewer = OBJECTS / requests
    report.add(
        Ratio(f"{OBJECTS} objects deleted: {requests} requests", "one each", fewer, fewer, fewer, 1000.0, "times fewer")
    )
    for what, times in (("wall", wall), ("CPU", cpu)):
        median = {name: statistics.median(found) for name, found in times.items()}
        ours = f"{OBJECTS} objects deleted, {what}: {median['store'] * 1e3:.0f} ms"
        for other in ("raw", "single"):
            label = f"{other}: {median[other] * 1e3:.0f} ms"
            report.add(compare({ours: times["store"], label: times[other]}, ours, [label], None))
