"""The article's replay: large files copied onto a filesystem in the bucket, round after round, while requests fail.

Files of 10 to 100 MB that do not compress, onto xfs on a loop device (direct I/O) on the volume, blocks of 128 KiB,
MinIO. Of the attempts 2.5 % get a 500 and 2.5 % no answer in time: ``--timeout 2``, four times what the slowest answer
takes here, and what is late comes to the server after it was given up. A round is closed by a flush, so that
its bytes are in the bucket; all rounds have files of the same sizes. In 2010 the rate fell from 27.8 MB/s to 0.3.

The server keeps its objects in memory: 5 GB on a disk that others use as well made a round take 17 to 39 s. Without a
journal each flush of xfs (several a round: of its log, when it looks for free space) waits for the slowest attempt, two
or four seconds; how many there are differs from round to round. With one they wait for the local disk. What else the
machine does shows in the rates. So the last round is compared with the first also beside bare PUTs, made just
before each of them.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from perf.side_by_side import Ratio, Report
from s3backer.admin import create_volume
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.mounts import filesystem, loop_device, mounted, needs_mounts
from tests.support.proxied import proxied
from tests.support.servers import MinioServer
from tests.support.tools import run

ROUNDS = 5
#: A round ends with its last time-out, and one attempt in 1600 meets two of them in a row: of a round of 200 MB
#: these four seconds would be most, and a matter of luck.
FILES = 16
SEED = 2010
MB = 1_000_000
PIECE = 1 << 20
BLOCK = 128 << 10
VOLUME = 8 << 30
IN_MEMORY = "/dev/shm"
TIMEOUT = 2.0
#: Blocks that are stored without any of this before each round, and by how many callers.
BARE = 800
CALLERS = 16
#: Silence ends after the attempt was given up: the request then still goes on to the server.
STALL = 3.0
_ENDS_IN = 300.0
FAULTS = {"error500": 0.025, "stall": 0.025}

pytestmark = [needs_mounts, pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT)]


def sizes() -> list[int]:
    """Return the bytes of each file of a round."""
    source = random.Random(SEED)
    return [source.randrange(10 * MB, 100 * MB) for _ in range(FILES)]


@contextmanager
def attached(bucket: str, options: StoreOptions, directory: Path, journal: int = 0) -> Iterator[str]:
    """Mount the volume, and yield a loop device on it; on leaving see that everything could be stored."""
    mountpoint = directory / "volume"
    mountpoint.mkdir(exist_ok=True)
    store = {name: getattr(options, name) for name in ("endpoint_url", "region", "access_key", "secret_key", "timeout")}
    what: dict[str, object] = {
        "url": f"s3://{bucket}",
        "mountpoint": str(mountpoint),
        "store": store,
        "volume": {"journal": journal},
        "request": {"foreground": True},
    }
    with mounted(what, directory) as mount:
        try:
            with loop_device(mount.file) as device:
                yield device
        finally:
            print(f"The mount {'runs' if mount.process.poll() is None else 'has ended'}; {said_by(mount.process)}")
        mount.umount()
        # It waits until what was lost on the way cannot arrive any more.
        mount.process.wait(_ENDS_IN)
        assert mount.process.returncode == 0


def said_by(process: subprocess.Popen[str]) -> str:
    """Return what a running mount has logged so far."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    return process.stderr.read() or ""


def copy(content: bytes, path: Path) -> None:
    """Copy a file as cp does."""
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), PIECE):
            file.write(content[start : start + PIECE])


def flush(paths: list[Path]) -> None:
    """Return when these files and their filesystem are in the bucket."""
    # Together first: fsync of one file after the other would wait for the slowest attempt as often as there are files.
    run("sync", "-f", str(paths[0]))
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def stalled_seconds() -> float:
    """Return for how many seconds so far some process of this machine has waited for a CPU."""
    match = re.search(r"some .*total=(\d+)", Path("/proc/pressure/cpu").read_text())
    assert match
    return int(match[1]) / 1e6


def bare_rate(server: MinioServer, source: random.Random) -> float:
    """Return how many MB/s of blocks the machine and the server take now, without faults, proxy and filesystem."""
    bodies = [source.randbytes(BLOCK) for _ in range(BARE)]
    store = S3Store(server.make_bucket(), replace(server.options(), connections=CALLERS))
    started = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        for _ in pool.map(lambda number: store.put(f"{number:08x}", bodies[number]), range(BARE)):
            pass
    seconds = time.perf_counter() - started
    store.close()
    return BARE * BLOCK / seconds / MB


def checksum(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize("journal", [0, 256 << 20], ids=["alone", "journal"])
def test_files_copied_while_requests_fail(tmp_path: Path, report: Report, journal: int) -> None:
    source = random.Random(SEED)
    sums: dict[str, str] = {}
    rates: list[float] = []
    waited: list[float] = []
    bare: list[float] = []
    with TemporaryDirectory(dir=IN_MEMORY) as objects, MinioServer(objects) as server:
        bucket = server.make_bucket()
        store = S3Store(bucket, server.options())
        create_volume(store, "", size=VOLUME, block_size=BLOCK)
        store.close()
        place = tmp_path / "xfs"
        with (
            proxied(server, faults=FAULTS, stall=STALL, seed=SEED) as url,
            attached(bucket, replace(server.options(), endpoint_url=url, timeout=TIMEOUT), tmp_path, journal) as device,
        ):
            run("mkfs.xfs", "-q", device)
            with filesystem(device, place):
                for number in range(ROUNDS):
                    contents = {f"{number}-{index}": source.randbytes(size) for index, size in enumerate(sizes())}
                    sums |= {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
                    bare.append(bare_rate(server, source))
                    started, stalled = time.perf_counter(), stalled_seconds()
                    for name, content in contents.items():
                        copy(content, place / name)
                    flush([place / name for name in contents])
                    seconds = time.perf_counter() - started
                    rates.append(sum(sizes()) / seconds / MB)
                    waited.append((stalled_seconds() - stalled) / seconds)
        # What the bucket has, without what the first mount had in memory, and without faults.
        with attached(bucket, server.options(), tmp_path) as device:
            run("xfs_repair", "-n", device)
            with filesystem(device, place, "-o", "ro"):
                found = {name: checksum(place / name) for name in sums}
    assert found == sums
    print("Somebody waited for a CPU:", ", ".join(f"{share:.0%} of round {n}" for n, share in enumerate(waited, 1)))
    how = "with a journal" if journal else "without a journal"
    for number, rate in enumerate(rates, 1):
        ratio = rate / rates[0]
        report.add(
            Ratio(
                f"round {number} of {sum(sizes()) / MB:.0f} MB, 5 % faults, {how}: {rate:.1f} MB/s",
                f"the first: {rates[0]:.1f} MB/s",
                ratio,
                ratio,
                ratio,
                0.8 if number == ROUNDS else None,
            )
        )
    last, first = rates[-1] / bare[-1], rates[0] / bare[0]
    report.add(
        Ratio(
            f"round {ROUNDS} beside bare PUTs just before, {bare[-1]:.1f} MB/s: {last:.2f}",
            f"round 1 beside those before it, {bare[0]:.1f} MB/s: {first:.2f}",
            last / first,
            last / first,
            last / first,
            0.8,
        )
    )
    print("Bare PUTs before each round:", ", ".join(f"{rate:.1f} MB/s" for rate in bare))
