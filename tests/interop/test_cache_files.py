"""Debian's s3backer is killed with dirty blocks in its cache file; nothing of what it had acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import s3backer
from s3backer.admin import create_volume
from s3backer.cache_file import CacheFile
from s3backer.errors import VolumeInUse
from s3backer.layouts.token import read_token
from s3backer.mountpoint import find_mount
from s3backer.stores.s3 import S3Store
from tests.interop.test_original import BLOCK, SIZE, pattern, pytestmark, write_file
from tests.support.mounts import ROOT, wait_until
from tests.support.original import ORIGINAL, program_mounted
from tests.support.servers import S3Server

__all__ = ["pytestmark"]

#: Blocks that are written. With nine tenths of its cache dirty, which is no larger than the volume, the original stores
#: at once.
BLOCKS = SIZE // BLOCK // 2


class Crash:
    """A volume, and the cache file with which a mount of it was killed."""

    def __init__(self, s3_server: S3Server, directory: Path) -> None:
        self.bucket = s3_server.make_bucket()
        self.url = f"s3://{self.bucket}/a/b"
        self.store = S3Store(self.bucket, s3_server.options())
        self.cache = directory / "cache"
        self.mountpoint = directory / "mnt"
        self.options = [
            f"--baseURL={s3_server.endpoint}/",
            f"--accessId={s3_server.access_key}",
            f"--accessKey={s3_server.secret_key}",
            "--prefix=a/b/",
            self.bucket,
        ]
        self.caching = [f"--blockCacheFile={self.cache}", "--blockCacheWriteDelay=3600000", "--blockCacheSize=1000"]
        self.reach: dict[str, Any] = {
            name: getattr(s3_server.options(), name) for name in ("endpoint_url", "region", "access_key", "secret_key")
        }
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AWS_ACCESS_KEY_ID": s3_server.access_key,
            "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
            "AWS_ENDPOINT_URL": s3_server.endpoint,
            "AWS_REGION": "us-east-1",
        }

    def write_and_kill(self, content: bytes) -> None:
        """Write the first BLOCKS blocks under the original, and kill it while it holds what was written."""
        self.mountpoint.mkdir()
        process = subprocess.Popen(
            [*ORIGINAL, "-f", "--quiet", *self.caching, *self.options, str(self.mountpoint)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: find_mount(str(self.mountpoint)) or process.poll() is not None, "the original mounts")
            descriptor = os.open(self.mountpoint / "file", os.O_RDWR)
            try:
                for start in range(0, BLOCKS * BLOCK, BLOCK):
                    os.pwrite(descriptor, content[start : start + BLOCK], start)
                os.fsync(descriptor)
                # Alive it must not be imported: both would write. Closing the file makes it store everything.
                with pytest.raises(VolumeInUse, match=f"in use by process {process.pid}"):
                    CacheFile(str(self.cache))
                process.kill()
                process.wait()
            finally:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        finally:
            process.kill()
            process.wait()
            if find_mount(str(self.mountpoint)):
                subprocess.run(["umount", "-l", str(self.mountpoint)], check=True)

    def run_import(self, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "s3backer", "import-cache", str(self.cache), self.url, *more],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env=self.environment,
            check=False,
        )

    def content(self) -> bytes:
        with s3backer.open(self.url, read_only=True, **self.reach) as volume:
            return volume.read(0, SIZE)


@pytest.fixture
def crash(s3_server: S3Server, tmp_path: Path) -> Iterator[Crash]:
    made = Crash(s3_server, tmp_path)
    create_volume(made.store, "a/b/", size=SIZE, block_size=BLOCK)
    yield made
    made.store.close()


def test_after_a_crash_of_the_original_nothing_is_lost(crash: Crash) -> None:
    first = pattern(5)
    second = pattern(6)[: BLOCKS * BLOCK] + first[BLOCKS * BLOCK :]
    with s3backer.open(crash.url, **crash.reach) as volume:
        volume.write(0, first)
    crash.write_and_kill(second)
    assert crash.content() == first, "nothing may have been stored yet, or the test shows nothing"
    left = read_token(crash.store, "a/b/")
    with CacheFile(str(crash.cache)) as file:
        assert left is not None and file.header.token == left.value
        assert len(file.dirty_blocks) == BLOCKS
    told = crash.run_import("--dry-run")
    assert told.returncode == 0 and f"{BLOCKS} dirty blocks" in told.stdout
    assert crash.content() == first
    done = crash.run_import()
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert f"imported {BLOCKS} dirty blocks" in done.stdout
    assert read_token(crash.store, "a/b/") is None
    assert crash.content() == second
    again = crash.run_import()
    assert again.returncode == 0 and "already" in again.stdout
    # The original, without the cache file and with it, which it empties of what it calls dirty.
    with program_mounted(ORIGINAL, crash.mountpoint, *crash.options) as shown:
        assert shown.read_bytes() == second
    with program_mounted(
        ORIGINAL, crash.mountpoint, *crash.caching, "--blockCacheRecoverDirtyBlocks", *crash.options
    ) as shown:
        assert shown.read_bytes() == second
    with CacheFile(str(crash.cache)) as file:
        assert (file.dirty_blocks, file.header.token) == ([], 0)


def test_after_somebody_else_has_written_only_force_imports(crash: Crash) -> None:
    first, second = pattern(7), pattern(8)
    crash.write_and_kill(first)
    with s3backer.open(crash.url, force=True, **crash.reach) as volume:
        volume.write(0, second)
    refused = crash.run_import()
    assert refused.returncode == 6 and "differ" in refused.stderr and "Traceback" not in refused.stderr
    assert crash.content() == second
    with s3backer.open(crash.url, **crash.reach) as volume:
        mounted = crash.run_import()
        assert mounted.returncode == 6 and "is mounted by" in mounted.stderr
        assert volume.read(0, SIZE) == second
    assert crash.run_import("--force").returncode == 0
    assert crash.content() == first[: BLOCKS * BLOCK] + second[BLOCKS * BLOCK :]


def test_a_cleanly_unmounted_cache_file_has_nothing_to_import(crash: Crash) -> None:
    content = pattern(9)
    with program_mounted(ORIGINAL, crash.mountpoint, *crash.caching, *crash.options) as shown:
        write_file(shown, content)
        started = time.monotonic()
    done = crash.run_import()
    assert done.returncode == 0 and "no dirty blocks" in done.stdout, (done.stderr, time.monotonic() - started)
    assert crash.content() == content
