"""The same bucket, and the same directory, under Debian's s3backer and under ours, in turns."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import s3backer
from s3backer.admin import create_volume
from s3backer.checking.run import Check, CheckOptions
from s3backer.checking.subject import find_subject
from s3backer.copying import CopyOptions, copy_volume
from s3backer.errors import JournalError, StoreUnreachable, VolumeInUse
from s3backer.opening import VolumeOptions
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.s3 import S3Store
from tests.support.faulty import FaultyStore
from tests.support.mounts import PATIENCE, needs_mounts
from tests.support.original import ORIGINAL, needs_original, program_mounted, program_refused, reach, run_program
from tests.support.servers import S3Server

SIZE, BLOCK = 4 << 20, 64 << 10

pytestmark = [
    needs_mounts,
    needs_original,
]


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
    with program_mounted(ORIGINAL, tmp_path / "mnt", *options, str(bucket)) as file:
        if not hashed:
            # Debian's version forgets the hash when it reads a directory, so it finds nothing.
            assert file.read_bytes() == first
        write_file(file, second)
    with s3backer.open(f"file://{bucket}", block_hash_prefix=hashed) as volume:
        assert volume.read(0, SIZE) == second


@pytest.mark.parametrize("hashed", [False, True], ids=["plain names", "blockHashPrefix"])
def test_a_directory_of_the_originals_is_checked(hashed: bool, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    options = ["--test", f"--size={SIZE >> 20}m", f"--blockSize={BLOCK >> 10}k"]
    content = pattern(3)
    with program_mounted(
        ORIGINAL, tmp_path / "mnt", *options, *(["--blockHashPrefix"] if hashed else []), str(bucket)
    ) as file:
        write_file(file, content)
    settings = VolumeOptions(size=SIZE, block_size=BLOCK, block_hash_prefix=hashed)
    with Check(find_subject(DirectoryStore(bucket), "", settings), CheckOptions()) as check:
        counts = check.run()
        # It keeps no metadata there, and nothing by which a block could be verified.
        assert counts.kinds == {"no-metadata": 1}
    blocks = sum(any(content[start : start + BLOCK]) for start in range(0, SIZE, BLOCK))
    assert counts.verified == {"nothing": blocks}


def test_the_statistics_have_the_originals_names_in_its_order(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.make_bucket()
    options = [f"--baseURL={s3_server.endpoint}/", f"--accessId={s3_server.access_key}"]
    options += [f"--accessKey={s3_server.secret_key}", "--listBlocks", "--size=1m", bucket]
    with program_mounted(ORIGINAL, tmp_path / "mnt", *options, "--md5CacheSize=256") as file:
        text = (file.parent / "stats").read_text()
    reach = {
        name: getattr(s3_server.options(), name) for name in ("endpoint_url", "region", "access_key", "secret_key")
    }
    with s3backer.open(f"s3://{bucket}", size=1 << 20, block_size=4096, **reach) as volume:
        ours = dict(line.split(maxsplit=1) for line in volume.stats_text().splitlines())
    theirs = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert [name for name in ours if name in theirs] == list(theirs)
    assert len(theirs) > 35
    for line in text.splitlines():
        name, value = line.split(maxsplit=1)
        assert line == f"{name:<28} {value}"
        # The same unit behind the number.
        assert ours[name].split()[1:] == value.split()[1:], name


def test_a_bucket_is_read_and_written_by_both_in_turns(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.make_bucket()
    store = S3Store(bucket, s3_server.options())
    create_volume(store, "a/b/", size=SIZE, block_size=BLOCK)
    access: dict[str, Any] = {
        name: getattr(s3_server.options(), name) for name in ("endpoint_url", "region", "access_key", "secret_key")
    }
    url = f"s3://{bucket}/a/b"
    options = [
        *reach(s3_server),
        # Debian's version knows no BUCKET/PREFIX.
        "--prefix=a/b/",
        bucket,
    ]
    first, second = pattern(3), pattern(4)
    with s3backer.open(url, **access) as volume:
        volume.write(0, first)
        volume.flush()
        # Each refuses what the other has mounted.
        assert "mounted" in program_refused(ORIGINAL, tmp_path / "mnt", *options)
        assert volume.read(0, 10) == first[:10]
    with program_mounted(ORIGINAL, tmp_path / "mnt", *options) as file:
        assert file.read_bytes() == first
        with pytest.raises(VolumeInUse, match=f"s3://{bucket}/a/b is mounted"):
            s3backer.open(url, **access)
        write_file(file, second)
    with s3backer.open(url, **access) as volume:
        assert volume.read(0, SIZE) == second
    expected = {f"a/b/{n:08x}" for n in range(SIZE // BLOCK) if any(second[n * BLOCK : (n + 1) * BLOCK])}
    assert {entry.key for entry in store.list("a/b/").entries} == expected | {"a/b/00000000"}
    store.close()


def test_an_unfinished_copy_is_refused_and_a_finished_one_is_read(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.make_bucket()
    source = tmp_path / "source"
    source.mkdir()
    create_volume(DirectoryStore(source), "", size=SIZE, block_size=BLOCK)
    content = pattern(5)
    with s3backer.open(f"file://{source}") as volume:
        volume.write(0, content)
    options = [*reach(s3_server), "--prefix=copy/"]
    store = S3Store(bucket, s3_server.options())
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
    for more, words in (
        ([], "auto-detect"),
        ([f"--size={SIZE >> 20}m", f"--blockSize={2 * BLOCK >> 10}k"], "mounted"),
    ):
        assert words in program_refused(ORIGINAL, tmp_path / "mnt", *options, *more, bucket)
    assert {entry.key for entry in store.list("copy/").entries} == before
    copy_volume(DirectoryStore(source), "", store, "copy/", options=replace(copy_options, resume=True))
    with program_mounted(ORIGINAL, tmp_path / "mnt", *options, bucket) as file:
        assert file.read_bytes() == content
    store.close()


DIES = """
import os, signal, sys
import s3backer
volume = s3backer.open(sys.argv[1], journal=int(sys.argv[3]), journal_directory=sys.argv[2], write_delay=3600.0)
volume.write(0, b"ours" * 1000)
volume.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_journal_is_not_replayed_over_what_the_original_wrote_since(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.make_bucket()
    url, journals = f"s3://{bucket}", str(tmp_path / "journals")
    create_volume(S3Store(bucket, s3_server.options()), "", size=SIZE, block_size=BLOCK)
    died = subprocess.run([sys.executable, "-c", DIES, url, journals, str(16 << 20)], check=False, timeout=PATIENCE)
    assert died.returncode == -signal.SIGKILL
    program_refused(ORIGINAL, tmp_path / "mnt", *reach(s3_server), bucket)
    code, said = run_program(ORIGINAL, tmp_path, *reach(s3_server), "--reset-mounted-flag", bucket)
    assert code == 0, said
    content = pattern(4)
    with program_mounted(ORIGINAL, tmp_path / "mnt", *reach(s3_server), bucket) as file:
        write_file(file, content)
    files = sorted((tmp_path / "journals").rglob("*.journal"))
    with pytest.raises(JournalError, match="somebody else may have written to it since"):
        s3backer.open(url, journal=16 << 20, journal_directory=journals)
    assert files and sorted((tmp_path / "journals").rglob("*.journal")) == files
    with s3backer.open(url, read_only=True) as volume:
        assert volume.read(0, SIZE) == content
