"""A bucket far away: 350 ms for each read, 200 ms for each write. 64 MiB in order, beside the original.

128 KiB blocks, incompressible data, pieces of 128 KiB; the write ends when the program has exited, so that the last
object is in the bucket. The original with its other defaults, and tuned: ``-o big_writes -o max_readahead=131072``.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest

from perf.side_by_side import Report, compare
from tests.support.minio_program import find_minio
from tests.support.original import ORIGINAL, OURS, program_mounted
from tests.support.proxied import proxied
from tests.support.servers import MinioServer

SIZE = 64 << 20
BLOCK = 128 << 10
ROUNDS = 5
FAR = {"get": "0.35", "head": "0.35", "put": "0.2"}
TUNED = ("-o", "big_writes", "-o", "max_readahead=131072")

pytestmark = [
    pytest.mark.skipif(find_minio() is None, reason="MinIO was not built: run 'tools/bootstrap test'"),
    pytest.mark.skipif(
        not Path(ORIGINAL[0]).exists(), reason="Debian's s3backer is not installed: apt install s3backer"
    ),
]


def once(program: str, server: MinioServer, url: str, directory: Path) -> tuple[float, float]:
    """Return the seconds of writing and of reading."""
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
    written = time.perf_counter() - started
    with program_mounted(command, directory / "mnt", *words) as disk:
        started = time.perf_counter()
        with disk.open("rb", buffering=0) as file:
            pieces = []
            while piece := file.read(BLOCK):
                pieces.append(piece)
        read = time.perf_counter() - started
    assert b"".join(pieces) == content
    return written, read


@pytest.mark.parametrize("rival", ["defaults", "tuned"])
def test_sequential_far_away(rival: str, tmp_path: Path, report: Report) -> None:
    times: dict[str, list[tuple[float, float]]] = {"ours": [], rival: []}
    with MinioServer() as server, proxied(server, latency=FAR) as url:
        for number in range(ROUNDS):
            for program in sorted(times, reverse=bool(number % 2)):
                times[program].append(once(program, server, url, tmp_path / f"{program}{number}"))
    for index, what in enumerate(("write", "read")):
        seconds = {name: [one[index] for one in found] for name, found in times.items()}
        mine, theirs = (statistics.median(seconds[name]) for name in ("ours", rival))
        ours, other = f"{what} 64 MiB far away: {mine:.2f} s", f"the original, {rival}: {theirs:.2f} s"
        report.add(compare({ours: seconds["ours"], other: seconds[rival]}, ours, [other], 5.0))
