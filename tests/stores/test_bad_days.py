"""What a user meets on a bad day: one clear message, nothing lost, and it goes on when the cause is gone."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from s3backer.admin import create_volume
from s3backer.errors import AccessDenied, BucketNotFound, S3backerError
from s3backer.opening import VolumeOptions
from s3backer.stores.s3 import S3Store
from s3backer.volume import Volume
from tests.support.mounts import ROOT, environment, needs_mounts, umount
from tests.support.nasty import NastyServer, reply
from tests.support.servers import MinioServer, S3Server
from tools.fault_proxy import Fault, FaultProxy

BLOCK = 64 << 10
SIZE = 64 * BLOCK
OPTIONS = VolumeOptions(memory=4 << 20, threads=4, write_delay=0.1)
PAGE = reply(200, "<html>Please log in</html>", Content_Type="text/html")


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    address = urlsplit(s3_server.endpoint)
    with FaultProxy((address.hostname or "", address.port or 0)) as proxy:
        yield proxy


def opened(server: S3Server, bucket: str, endpoint: str = "") -> Volume:
    options = replace(server.options(), endpoint_url=endpoint or server.endpoint, patience=0.5)
    return Volume.open(S3Store(bucket, options), "", OPTIONS)


def made(server: S3Server) -> str:
    bucket = server.make_bucket()
    create_volume(S3Store(bucket, server.options()), "", size=SIZE, block_size=BLOCK)
    return bucket


def test_credentials_that_end_without_new_ones_lose_nothing(s3_server: S3Server, proxy: FaultProxy) -> None:
    bucket = made(s3_server)
    with opened(s3_server, bucket) as volume:
        volume.write(5 * BLOCK, b"c" * BLOCK)
    with opened(s3_server, bucket, proxy.url) as volume:
        volume.write(0, b"a" * BLOCK)
        volume.flush()
        proxy.choose(lambda seen: Fault("expired-token"))
        try:
            volume.write(BLOCK, b"b" * BLOCK)
            for _ in range(2):
                with pytest.raises(AccessDenied, match="not valid any more") as caught:
                    volume.flush()
            assert "aws sso login" in caught.value.hint
            with pytest.raises(AccessDenied):
                volume.read(5 * BLOCK, BLOCK)
            assert "not valid any more (ExpiredToken)" in str(volume.facts()["write_back_error"])
            assert volume.unsaved == 1
        finally:
            proxy.choose(None)
        volume.flush()
        assert volume.facts()["write_back_error"] is None
        assert volume.read(5 * BLOCK, BLOCK) == b"c" * BLOCK
    with opened(s3_server, bucket) as volume:
        assert volume.read(0, 2 * BLOCK) == b"a" * BLOCK + b"b" * BLOCK


def test_a_bucket_that_is_deleted_under_a_mount(minio: MinioServer) -> None:
    bucket = made(minio)
    plain = S3Store(bucket, minio.options())
    with opened(minio, bucket) as volume:
        plain.delete_many([entry.key for entry in plain.list("").entries])
        minio.remove_bucket(bucket)
        volume.write(BLOCK, b"b" * BLOCK)
        with pytest.raises(BucketNotFound, match=f"there is no bucket {bucket!r}"):
            volume.flush()
        with pytest.raises(S3backerError):
            volume.read(0, BLOCK)
        assert "there is no bucket" in str(volume.facts()["write_back_error"])
        minio.make_bucket(bucket)
        volume.flush()
    assert plain.get("00000001").body == b"b" * BLOCK


#: What a command does in a process of its own, but for its patience: that is tested elsewhere.
AT_ONCE = """
import sys
from s3backer.cli import common, main
common._PATIENCE = 0.1
sys.exit(main(sys.argv[1:]))
"""


def run(*words: str, **variables: str) -> tuple[int, str]:
    """Run a command and return its exit code and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", **variables},
    )
    return done.returncode, done.stderr


COMMANDS = [("info",), ("resize", "16MiB"), ("create", "--size", "8MiB"), ("erase", "--yes"), ("unlock",)]


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_a_certificate_that_is_not_trusted(command: tuple[str, ...], certificate: tuple[ssl.SSLContext, Path]) -> None:
    with NastyServer(PAGE, tls=certificate[0]) as server:
        word, *more = command
        code, said = run(word, "s3://bucket/disk", *more, "--endpoint-url", server.url)
    assert code == 3
    message, hint = said.splitlines()
    assert "its certificate is not trusted" in message and "--ca-bundle" in hint


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_a_web_page_in_place_of_s3(command: tuple[str, ...]) -> None:
    with NastyServer(PAGE) as server:
        word, *more = command
        code, said = run(word, "s3://bucket/disk", *more, "--endpoint-url", server.url)
    assert code == 3
    message, hint = said.splitlines()
    assert "unusable answer" in message and "S3 service" in hint


@needs_mounts
def test_the_upload_limit_is_that_of_the_whole_daemon(minio: MinioServer, tmp_path: Path) -> None:
    bucket, mountpoint = made(minio), tmp_path / "mnt"
    mountpoint.mkdir()
    variables = {**minio.environment(), **environment(tmp_path)}
    url = f"s3://{bucket}/"
    code, said = run("mount", url, str(mountpoint), "--upload-limit", "512KiB", "--journal=none", **variables)
    assert code == 0, said
    try:
        with (mountpoint / "file").open("r+b") as file:
            started = time.monotonic()
            file.write(os.urandom(2 << 20))
            file.flush()
            os.fsync(file.fileno())
            took = time.monotonic() - started
        # The last bytes need not be waited for.
        assert 3.5 <= took < 30
        assert run("unmount", str(mountpoint), **variables) == (0, "")
    finally:
        if os.path.ismount(mountpoint):
            umount(mountpoint)
