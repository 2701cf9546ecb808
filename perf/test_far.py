"""A bucket far away: 350 ms for each read, 200 ms for each write. 64 MiB in order, beside the original.

128 KiB blocks, incompressible data, pieces of 128 KiB; the write ends when the program has exited, so that the last
object is in the bucket. The original with its other defaults, and tuned: ``-o big_writes -o max_readahead=131072``.

Then a filesystem: mkfs.ext4 on a loop device on the disk, a tree of 400 files copied, unmounted, the program's end.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from contextlib import suppress
from copy import copy
from pathlib import Path

import pytest

from perf.rivals import DEFAULTS, JOURNAL, Place, Rival, running
from perf.rivals import OURS as NATIVE
from perf.side_by_side import Ratio, Report, compare
from s3backer.admin import create_volume
from s3backer.opening import VolumeOptions
from s3backer.stores.s3 import S3Store
from s3backer.volume import Volume
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.mounts import filesystem, loop_device
from tests.support.original import ORIGINAL, OURS, program_mounted
from tests.support.proxied import proxied
from tests.support.servers import MinioServer
from tests.support.tools import run

SIZE = 64 << 20
BLOCK = 128 << 10
ROUNDS = 5
VOLUME, FILES = 256 << 20, 400
FAR = {"get": "0.35", "head": "0.35", "put": "0.2"}
TUNED = ("-o", "big_writes", "-o", "max_readahead=131072")

pytestmark = [
    pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT),
    pytest.mark.skipif(
        not Path(ORIGINAL[0]).exists(), reason="Debian's s3backer is not installed: apt install s3backer"
    ),
]


def peak(mountpoint: Path) -> float:
    """Return the largest resident set so far, in MiB, of the program that was told to mount there."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if (entry / "cmdline").read_bytes().endswith(b"\0%s\0" % bytes(mountpoint)):
                    return Rival("", mountpoint / "file", int(entry.name)).peak()
    raise AssertionError(f"nobody mounts {mountpoint}")


def once(program: str, server: MinioServer, url: str, directory: Path) -> tuple[float, float, float, float]:
    """Return the seconds of writing and of reading, and the peaks of memory in MiB."""
    command = OURS if program == "ours" else ORIGINAL
    words = [f"--baseURL={url}/", f"--accessId={server.access_key}", f"--accessKey={server.secret_key}"]
    words += [f"--blockSize={BLOCK}", f"--size={SIZE}", *(TUNED if program == "tuned" else ()), server.make_bucket()]
    content = os.urandom(SIZE)
    directory.mkdir()
    with program_mounted(command, directory / "mnt", *words) as disk:
        started = time.perf_counter()
        with disk.open("r+b", buffering=0) as file:
            for offset in range(0, SIZE, BLOCK):
                file.write(content[offset : offset + BLOCK])
        # While it can still be asked.
        of_writing = peak(directory / "mnt")
    written = time.perf_counter() - started
    with program_mounted(command, directory / "mnt", *words) as disk:
        started = time.perf_counter()
        with disk.open("rb", buffering=0) as file:
            pieces = []
            while piece := file.read(BLOCK):
                pieces.append(piece)
        read = time.perf_counter() - started
        of_reading = peak(directory / "mnt")
    assert b"".join(pieces) == content
    return written, read, of_writing, of_reading


@pytest.mark.parametrize("rival", ["defaults", "tuned"])
def test_sequential_far_away(rival: str, tmp_path: Path, report: Report) -> None:
    times: dict[str, list[tuple[float, float, float, float]]] = {"ours": [], rival: []}
    with MinioServer() as server, proxied(server, latency=FAR) as url:
        for number in range(ROUNDS):
            for program in sorted(times, reverse=bool(number % 2)):
                times[program].append(once(program, server, url, tmp_path / f"{program}{number}"))
    for index, what in enumerate(("write", "read")):
        seconds = {name: [one[index] for one in found] for name, found in times.items()}
        mine, theirs = (statistics.median(seconds[name]) for name in ("ours", rival))
        ours, other = f"{what} 64 MiB far away: {mine:.2f} s", f"the original, {rival}: {theirs:.2f} s"
        report.add(compare({ours: seconds["ours"], other: seconds[rival]}, ours, [other], 5.0))
    for index, what in enumerate(("written", "read"), 2):
        mine, theirs = (statistics.median(one[index] for one in times[name]) for name in ("ours", rival))
        shares = [a[index] / b[index] for a, b in zip(times["ours"], times[rival], strict=True)]
        report.add(
            Ratio(
                f"peak memory, 64 MiB {what} far away: {mine:.0f} MiB",
                f"the original, {rival}: {theirs:.0f} MiB",
                mine / theirs,
                min(shares),
                max(shares),
                1.0,
                "of it",
            )
        )


def tree(directory: Path) -> Path:
    """Make 400 files of 14 MB in all."""
    source = random.Random(1)
    for number in range(FILES):
        path = directory / f"d{number % 20}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.randbytes(int(source.lognormvariate(10, 1))))
    return directory


def filesystem_once(program: str, place: Place, directory: Path, files: Path) -> float:
    """Return the seconds until a new filesystem with the files is in the bucket."""
    with running(program, place, directory, size=VOLUME, memory=256 << 20) as rival:
        started = time.perf_counter()
        with loop_device(rival.disk) as device:
            run("mkfs.ext4", "-q", device)
            with filesystem(device, directory / "fs") as root:
                shutil.copytree(files, root / "tree")
    return time.perf_counter() - started


def test_a_filesystem_far_away(tmp_path: Path, report: Report) -> None:
    files = tree(tmp_path / "tree")
    seconds: dict[str, list[float]] = {NATIVE: [], JOURNAL: [], DEFAULTS: []}
    with MinioServer() as server, proxied(server, latency=FAR) as url:
        far = copy(server)
        far.endpoint = url
        for number in range(ROUNDS):
            for program in sorted(seconds, reverse=bool(number % 2)):
                directory = tmp_path / f"{program}{number}"
                place = Place(directory, far, server.make_bucket())
                seconds[program].append(filesystem_once(program, place, directory, files))
    for program, target in ((NATIVE, 5.0), (JOURNAL, None)):
        mine, theirs = (statistics.median(seconds[name]) for name in (program, DEFAULTS))
        what = f"mkfs and {FILES} files far away, {program}: {mine:.1f} s"
        other = f"the original, defaults: {theirs:.1f} s"
        report.add(compare({what: seconds[program], other: seconds[DEFAULTS]}, what, [other], target))


CONNECTIONS = 64
LONG = 384 << 20


def read_in_order(disk: Path, seconds: float) -> float:
    """Read a file from its start and return bytes a second, after a while in which the level is found."""
    with disk.open("rb", buffering=0) as file:
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds / 3:
            assert file.read(BLOCK)
        started, position = time.perf_counter(), file.tell()
        while time.perf_counter() - begun < seconds and file.read(BLOCK):
            pass
        return (file.tell() - position) / (time.perf_counter() - started)


def test_a_sequential_reader_gets_what_the_connections_can_carry(tmp_path: Path, report: Report) -> None:
    with MinioServer() as server:
        plain = S3Store(server.make_bucket(), server.options())
        create_volume(plain, "", size=LONG, block_size=BLOCK)
        with Volume.open(plain, "", VolumeOptions(memory=64 << 20)) as volume:
            for offset in range(0, LONG, 1 << 20):
                volume.write(offset, os.urandom(1 << 20))
        with proxied(server, latency=FAR) as url:
            reach = [f"--baseURL={url}/", f"--accessId={server.access_key}", f"--accessKey={server.secret_key}"]
            rates = []
            for number in range(ROUNDS):
                (tmp_path / str(number)).mkdir()
                words = [*reach, f"--blockCacheThreads={CONNECTIONS}", plain.bucket]
                with program_mounted(OURS, tmp_path / str(number) / "mnt", *words) as disk:
                    rates.append(read_in_order(disk, 12.0))
    carried = CONNECTIONS * BLOCK / float(FAR["get"])
    shares = [rate / carried for rate in rates]
    report.add(
        Ratio(
            f"one reader in order, 350 ms a GET: {statistics.median(rates) / 1e6:.1f} MB/s",
            f"{CONNECTIONS} connections can carry {carried / 1e6:.1f} MB/s",
            statistics.median(shares),
            min(shares),
            max(shares),
            0.8,
            "of it",
        )
    )
