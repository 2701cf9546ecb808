"""Mounting a volume of 1 TiB with 100,000 blocks on MinIO, beside Debian's s3backer: time, and requests.

    usable      from the start of the program until its file is there
    listed      until the program knows which blocks there are: the original lists before it mounts, ours after
    requests    those sent until the file is there

A program's own start (``--version``) is in the times, and is shown beside them.
"""

from __future__ import annotations

import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from perf.side_by_side import Ratio, Report, compare, interleave
from s3backer.admin import create_volume
from s3backer.codec.choice import EncodingOptions, choose_codec
from s3backer.control.asking import call
from s3backer.control.sockets import socket_name
from s3backer.layouts.classic import ClassicLayout
from s3backer.mountpoint import find_mount
from s3backer.stores.s3 import S3Store
from tests.support.forwarder import Forwarder
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.mounts import environment, umount
from tests.support.servers import MinioServer

ORIGINAL = "/usr/bin/s3backer"
SIZE = 1 << 40
BLOCK = 128 << 10
PRESENT = 100_000
ROUNDS = 5
#: Seconds after which a mount has failed.
PATIENCE = 300.0
_REQUEST = re.compile(rb"(GET|HEAD|PUT|DELETE|POST) \S+ HTTP/1\.[01]\r\n")
_LONGEST_LINE = 4096

pytestmark = [
    pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT),
    pytest.mark.skipif(not Path(ORIGINAL).exists(), reason="Debian's s3backer is not installed: apt install s3backer"),
]


class Counting(Forwarder):
    """A network that counts the requests that go through it, by method."""

    def __init__(self, target: int) -> None:
        self.requests: Counter[str] = Counter()
        self._target_port = target
        super().__init__(target)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        to_server = sink.getpeername()[1] == self._target_port
        before = b""
        with suppress(OSError):
            while data := source.recv(65536):
                if to_server:
                    seen = before + data
                    last = 0
                    for found in _REQUEST.finditer(seen):
                        self.requests[found[1].decode()] += 1
                        last = found.end()
                    before = seen[max(last, len(seen) - _LONGEST_LINE) :]
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Place:
    """A volume, and a network before its server."""

    server: MinioServer
    bucket: str
    network: Counting

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.network.port}"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with MinioServer() as server:
        bucket = server.make_bucket()
        store = S3Store(bucket, replace(server.options(), connections=16))
        encoding = EncodingOptions(compress="deflate")
        create_volume(store, "", size=SIZE, block_size=BLOCK, encoding=encoding)
        codec = choose_codec(encoding, None, bucket=bucket, prefix="", block="")
        layout = ClassicLayout(store, "", block_size=BLOCK, size=SIZE, codec=codec)
        body = b"s3backer" * (BLOCK // 8)
        step = SIZE // BLOCK // PRESENT
        with ThreadPoolExecutor(16) as pool:
            for _ in pool.map(lambda number: layout.write(number * step, body), range(1, PRESENT)):
                pass
        store.close()
        with Counting(int(server.endpoint.rpartition(":")[2])) as network:
            yield Place(server, bucket, network)


@dataclass(frozen=True)
class Mounted:
    """One mount: seconds until it was usable and until it had listed, and the requests until it was usable."""

    usable: float
    listed: float
    requests: Counter[str]


def mounted(place: Place, command: list[str], directory: Path, listed: Callable[[], bool] | None) -> Mounted:
    """Mount in the foreground, measure, and unmount again."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True)
    place.network.requests.clear()
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, str(mountpoint)],
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: find_mount(str(mountpoint)) is not None, process)
        (mountpoint / "file").stat()
        usable, requests = time.perf_counter() - started, Counter(place.network.requests)
        if listed is not None:
            wait_for(listed, process)
        seconds = time.perf_counter() - started
        umount(mountpoint)
        assert process.wait(PATIENCE) == 0
    finally:
        if find_mount(str(mountpoint)):
            subprocess.run(["umount", "-l", str(mountpoint)], check=False)
        if process.poll() is None:
            process.kill()
        process.wait()
        shutil.rmtree(directory)
    return Mounted(usable, seconds, requests)


def wait_for(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None, "the program ended"
        assert time.monotonic() < end, "too slow"
        time.sleep(0.005)


def programs(place: Place, *, listing: bool) -> dict[str, Callable[[Path], Mounted]]:
    """Return how each program is mounted once, in a directory that is made and removed."""
    server = place.server
    reach = [f"--accessId={server.access_key}", f"--accessKey={server.secret_key}", f"--baseURL={place.endpoint}/"]
    more = ["--listBlocks"] if listing else []
    common = ["-f", "--quiet", *reach, *more, place.bucket]

    def ours(directory: Path) -> Mounted:
        store = S3Store(place.bucket, replace(server.options(), endpoint_url=place.endpoint))
        volume = socket_name(store, "")
        store.close()

        def listed() -> bool:
            facts = call(volume, "info", None, None)
            return facts is not None and bool(facts["surveyed"])

        return mounted(place, [sys.executable, "-m", "s3backer", *common], directory, listed if listing else None)

    return {"original": lambda directory: mounted(place, [ORIGINAL, *common], directory, None), "ours": ours}


def rounds(place: Place, directory: Path, *, listing: bool) -> dict[str, list[Mounted]]:
    """Mount with each program in turn, after one round to warm up."""
    contenders = programs(place, listing=listing)
    results: dict[str, list[Mounted]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):
        for name in sorted(contenders, reverse=bool(number % 2)):
            result = contenders[name](directory / f"{name}{number}")
            if number:
                results[name].append(result)
    return results


def add(report: Report, what: str, results: dict[str, list[Mounted]], value: Callable[[Mounted], float]) -> None:
    times = {name: [value(result) for result in found] for name, found in results.items()}
    ratio = compare({what: times["ours"], "the original": times["original"]}, what, ["the original"], 1.0)
    report.add(ratio)
    print({name: f"{statistics.median(found):.3f} s" for name, found in times.items()})


def test_mounting_with_listing(place: Place, report: Report, tmp_path: Path) -> None:
    """Not slower: until the disk can be used, and until the blocks are listed."""
    results = rounds(place, tmp_path, listing=True)
    add(report, "mount 1 TiB, 100,000 blocks, listBlocks: usable", results, lambda result: result.usable)
    add(report, "mount 1 TiB, 100,000 blocks, listBlocks: listed", results, lambda result: result.listed)


def test_mounting_without_listing(place: Place, report: Report, tmp_path: Path) -> None:
    """No more requests; the times as they are."""
    results = rounds(place, tmp_path, listing=False)
    add(report, "mount 1 TiB, 100,000 blocks: usable", results, lambda result: result.usable)
    counts = {name: [sum(result.requests.values()) for result in found] for name, found in results.items()}
    print({name: dict(found[-1].requests) for name, found in results.items()})
    ours, theirs = max(counts["ours"]), min(counts["original"])
    report.add(
        Ratio("requests until mounted", "the original", theirs / ours, theirs / ours, theirs / ours, 1.0, "times fewer")
    )


def test_the_start_of_the_programs(report: Report) -> None:
    """What of these times is the program's own start."""

    def version(*command: str) -> Callable[[], object]:
        return lambda: subprocess.run([*command, "--version"], check=True, capture_output=True)

    times = interleave(
        {
            "s3backer --version": version(sys.executable, "-m", "s3backer"),
            "the original --version": version(ORIGINAL),
        }
    )
    report.add(compare(times, "s3backer --version", ["the original --version"], None))
    print({name: f"{statistics.median(found):.3f} s" for name, found in times.items()})
