"""The same bucket, and the same directory, under Debian's s3backer and under ours, in turns."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import s3backer
from s3backer.admin import create_volume
from s3backer.copying import CopyOptions, copy_volume
from s3backer.errors import StoreUnreachable, VolumeInUse
from s3backer.mountpoint import find_mount
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.s3 import S3Store
from tests.support.faulty import FaultyStore
from tests.support.mounts import needs_mounts, wait_until
from tests.support.servers import SeaweedServer

ORIGINAL = Path("/usr/bin/s3backer")
SIZE, BLOCK = 4 << 20, 64 << 10

pytestmark = [
    needs_mounts,
    pytest.mark.skipif(
        not ORIGINAL.exists() and not os.environ.get("CI"),
        reason="Debian's s3backer is not installed: apt install s3backer",
    ),
]


@contextlib.contextmanager
def original(mountpoint: Path, *arguments: str) -> Iterator[Path]:
    """Mount with the original in the foreground; on leaving, unmount and see it end well."""
    mountpoint.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            ORIGINAL,
            "-f",
            "--quiet",
            "--md5CacheSize=0",
            "--md5CacheTime=0",
            "--minWriteDelay=0",
            *arguments,
            str(mountpoint),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: find_mount(str(mountpoint)) or process.poll() is not None, "the original mounts")
        assert process.poll() is None, process.communicate()[1]
        yield mountpoint / "file"
        subprocess.run(["umount", str(mountpoint)], check=True)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    finally:
        if find_mount(str(mountpoint)):
            subprocess.run(["umount", "-l", str(mountpoint)], check=False)
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def pattern(seed: int) -> bytes:
    """Sparse content: random blocks, blocks of zeros, half blocks."""
    source = random.Random(seed)
    content = bytearray(SIZE)
    for block in range(SIZE // BLOCK):
        # The original deletes a block 0 of zeros, and the metadata with it.
        kind = source.randrange(3) if block else 1
        if kind:
            content[block * BLOCK : block * BLOCK + BLOCK // kind] = source.randbytes(BLOCK // kind)
    return bytes(content)


def write_file(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        for start in range(0, SIZE, BLOCK):
            os.pwrite(descriptor, content[start : start + BLOCK], start)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("hashed", [False, True], ids=["plain names", "blockHashPrefix"])
def test_a_directory_is_read_and_written_by_both_in_turns(hashed: bool, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    create_volume(DirectoryStore(bucket), "", size=SIZE, block_size=BLOCK, block_hash_prefix=hashed)
    options = [
        "--test",
        f"--size={SIZE >> 20}m",
        f"--blockSize={BLOCK >> 10}k",
        *(["--blockHashPrefix"] if hashed else []),
    ]
    first, second = pattern(1), pattern(2)
    with s3backer.open(f"file://{bucket}", block_hash_prefix=hashed) as volume:
        volume.write(0, first)
    with original(tmp_path / "mnt", *options, str(bucket)) as file:
        if not hashed:
            # Debian's version forgets the hash when it reads a directory, so it finds nothing.
            assert file.read_bytes() == first
        write_file(file, second)
    with s3backer.open(f"file://{bucket}", block_hash_prefix=hashed) as volume:
        assert volume.read(0, SIZE) == second


def test_a_bucket_is_read_and_written_by_both_in_turns(seaweed: SeaweedServer, tmp_path: Path) -> None:
    bucket = seaweed.make_bucket()
    store = S3Store(bucket, seaweed.options())
    create_volume(store, "a/b/", size=SIZE, block_size=BLOCK)
    reach: dict[str, Any] = {
        name: getattr(seaweed.options(), name) for name in ("endpoint_url", "region", "access_key", "secret_key")
    }
    url = f"s3://{bucket}/a/b"
    options = [
        f"--baseURL={seaweed.endpoint}/",
        f"--accessId={seaweed.access_key}",
        f"--accessKey={seaweed.secret_key}",
        # Debian's version knows no BUCKET/PREFIX.
        "--prefix=a/b/",
        bucket,
    ]
    first, second = pattern(3), pattern(4)
    with s3backer.open(url, **reach) as volume:
        volume.write(0, first)
        volume.flush()
        # Each refuses what the other has mounted.
        (tmp_path / "mnt").mkdir()
        refused = subprocess.run(
            [ORIGINAL, *options, str(tmp_path / "mnt")], capture_output=True, text=True, timeout=60, check=False
        )
        assert refused.returncode == 1 and "mounted" in refused.stderr
        assert volume.read(0, 10) == first[:10]
    with original(tmp_path / "mnt", *options) as file:
        assert file.read_bytes() == first
        with pytest.raises(VolumeInUse, match=f"s3://{bucket}/a/b is mounted"):
            s3backer.open(url, **reach)
        write_file(file, second)
    with s3backer.open(url, **reach) as volume:
        assert volume.read(0, SIZE) == second
    expected = {f"a/b/{n:08x}" for n in range(SIZE // BLOCK) if any(second[n * BLOCK : (n + 1) * BLOCK])}
    assert {entry.key for entry in store.list("a/b/").entries} == expected | {"a/b/00000000"}
    store.close()


def test_an_unfinished_copy_is_refused_and_a_finished_one_is_read(seaweed: SeaweedServer, tmp_path: Path) -> None:
    bucket = seaweed.make_bucket()
    source = tmp_path / "source"
    source.mkdir()
    create_volume(DirectoryStore(source), "", size=SIZE, block_size=BLOCK)
    content = pattern(5)
    with s3backer.open(f"file://{source}") as volume:
        volume.write(0, content)
    options = [
        f"--baseURL={seaweed.endpoint}/",
        f"--accessId={seaweed.access_key}",
        f"--accessKey={seaweed.secret_key}",
        "--prefix=copy/",
    ]
    store = S3Store(bucket, seaweed.options())
    copy_options = CopyOptions(block_size=2 * BLOCK)
    with pytest.raises(StoreUnreachable):
        copy_volume(
            DirectoryStore(source),
            "",
            FaultyStore(store, fail_at=20),
            "copy/",
            options=replace(copy_options, threads=1),
        )
    before = {entry.key for entry in store.list("copy/").entries}
    assert len(before) > 2
    (tmp_path / "mnt").mkdir()
    for more, words in (
        ([], "auto-detect"),
        ([f"--size={SIZE >> 20}m", f"--blockSize={2 * BLOCK >> 10}k"], "mounted"),
    ):
        refused = subprocess.run(
            [ORIGINAL, *options, *more, bucket, str(tmp_path / "mnt")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert refused.returncode == 1 and words in refused.stderr, refused.stderr
    assert {entry.key for entry in store.list("copy/").entries} == before
    copy_volume(DirectoryStore(source), "", store, "copy/", options=replace(copy_options, resume=True))
    with original(tmp_path / "mnt", *options, bucket) as file:
        assert file.read_bytes() == content
    store.close()
