"""A mount on an S3 server that is killed with a journal, and the next one, which has another name for that server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.mounts import Mounted, needs_mounts
from tests.support.servers import SeaweedServer
from tests.support.stamping import BucketBench
from tests.support.workbench import BLOCK, NEVER

pytestmark = needs_mounts


@pytest.fixture
def bench(seaweed: SeaweedServer, tmp_path: Path) -> Iterator[BucketBench]:
    made = BucketBench(tmp_path / "bench", seaweed)
    made.volume["write_delay"] = NEVER
    try:
        made.create()
        yield made
    finally:
        made.close()


def write(mount: Mounted, block: int, data: bytes) -> None:
    with mount.file.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, block * BLOCK)
        os.fsync(file.fileno())


def read(mount: Mounted, block: int) -> bytes:
    with mount.file.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), BLOCK, block * BLOCK)


def kill(mount: Mounted) -> None:
    mount.signal(signal.SIGKILL)
    mount.umount("-l")
    mount.wait()


def journal(bench: BucketBench) -> dict[Path, bytes]:
    directory = Path(bench.volume["journal_directory"])
    return {path: path.read_bytes() for path in directory.rglob("*.journal")}


def test_another_spelling_is_the_same_volume(bench: BucketBench) -> None:
    """The next mount goes on with the journal of the one before, whichever way either was asked for."""
    address = urlsplit(bench.server.endpoint)
    written: list[bytes] = []
    for url in (bench.server.endpoint, f"HTTP://{address.netloc}/"):
        bench.url = url
        with bench.mounted() as mount:
            assert [read(mount, number) for number in range(len(written))] == written
            written.append(os.urandom(BLOCK))
            write(mount, len(written) - 1, written[-1])
            kill(mount)
    assert journal(bench)
    bench.url = f"{bench.server.endpoint}/"
    with bench.mounted() as mount:
        assert [read(mount, number) for number in range(len(written))] == written
        mount.umount()
        mount.wait()
    assert not journal(bench)


def test_another_host_name_may_be_another_server(bench: BucketBench) -> None:
    """The journal is another name's, so the token stops it, and says where that is; with the first name it goes on."""
    data = os.urandom(BLOCK)
    with bench.mounted() as mount:
        write(mount, 1, data)
        kill(mount)
    left = journal(bench)
    assert left
    first, bench.url = bench.url, f"http://localhost:{urlsplit(bench.server.endpoint).port}"
    code, said = bench.run()
    assert code == 6, said
    assert f"with a journal in {bench.volume['journal_directory']}" in said
    assert f"its journal is in {next(iter(left)).parent}" in said and "--endpoint-url" in said
    assert "is lost" not in said and "unlock" not in said
    assert journal(bench) == left
    bench.url = first
    with bench.mounted() as mount:
        assert read(mount, 1) == data
