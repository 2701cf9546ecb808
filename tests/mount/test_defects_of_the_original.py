"""Defects of the original that are not inherited: the same steps under Debian's program, where it has them, and ours.

``docs/defects.md`` lists all of them, also those that other tests show.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3backer.layouts.token import new_token, write_token
from s3backer.mountpoint import find_mount
from s3backer.signals import IGNORED_SIGNALS, STOP_SIGNALS
from s3backer.stores.s3 import S3Store
from tests.support.mounts import PATIENCE, ROOT, environment, needs_mounts, umount, wait_until
from tests.support.servers import SeaweedServer
from tests.support.workbench import BLOCK, Workbench, write_unflushed

pytestmark = needs_mounts

ORIGINAL = Path("/usr/bin/s3backer")
PROGRAMS = [
    pytest.param(
        "original", marks=pytest.mark.skipif(not ORIGINAL.exists(), reason="Debian's s3backer is not installed")
    ),
    "ours",
]
DATA = bytes(range(1, 251)) * 20
FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE = 1, 0x10


def command(program: str) -> list[str]:
    """Return how a program is called."""
    return [str(ORIGINAL)] if program == "original" else [sys.executable, "-m", "s3backer"]


class Running:
    """A mount in the foreground by either program, made in the original's form of the command line."""

    def __init__(self, program: str, directory: Path, *arguments: str) -> None:
        self.mountpoint = directory / f"mnt-{program}"
        self.mountpoint.mkdir(exist_ok=True)
        self.file = self.mountpoint / "file"
        self.log = directory / f"log-{program}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command(program), "-f", *arguments, str(self.mountpoint)],
                cwd=ROOT,
                env=environment(directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def mounted(self) -> bool:
        """Whether the mount point is in the table of mounts."""
        return find_mount(str(self.mountpoint)) is not None

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self.log.read_text()

    def unmount(self) -> int:
        """Unmount; return the exit code."""
        umount(self.mountpoint)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """End it in whatever state it is."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.mountpoint)], check=False, timeout=PATIENCE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def started(program: str, directory: Path, *arguments: str) -> Iterator[Running]:
    """Mount, and wait until it is mounted or has failed."""
    run = Running(program, directory, *arguments)
    try:
        wait_until(lambda: run.mounted or run.process.poll() is not None, f"{program} mounts or fails")
        yield run
    finally:
        run.end()


@pytest.fixture
def local(tmp_path: Path) -> list[str]:
    """Return the arguments for a volume in a directory, without metadata."""
    bucket = tmp_path / "plain"
    bucket.mkdir()
    return ["--test", "--size=1m", "--blockSize=4k", "--blockCacheWriteDelay=600000", str(bucket)]


class Bucket:
    """A bucket on the S3 server."""

    def __init__(self, server: SeaweedServer) -> None:
        self.server = server
        self.name = server.make_bucket()
        self.store = S3Store(self.name, server.options())
        self.options = [
            f"--baseURL={server.endpoint}/",
            f"--accessId={server.access_key}",
            f"--accessKey={server.secret_key}",
            "--md5CacheSize=0",
            "--md5CacheTime=0",
            "--minWriteDelay=0",
            "--size=1m",
            "--blockSize=4k",
        ]

    def arguments(self, *more: str) -> list[str]:
        """Return the arguments of a mount."""
        return [*self.options, *more, self.name]

    def objects(self) -> dict[str, str]:
        """Return keys and ETags."""
        return {entry.key: entry.etag for entry in self.store.list("").entries}


@pytest.fixture
def bucket(seaweed: SeaweedServer) -> Iterator[Bucket]:
    bucket = Bucket(seaweed)
    yield bucket
    bucket.store.close()


def write(file: Path, offset: int, data: bytes) -> None:
    """Write and close."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        assert os.pwrite(descriptor, data, offset) == len(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(file: Path, offset: int, length: int) -> bytes:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


# ── 1, 3, 14: what applications see ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("program", PROGRAMS)
def test_1_fsync(program: str, local: list[str], tmp_path: Path) -> None:
    """The original's fsync returns at once, with nothing stored."""
    with started(program, tmp_path, *local) as run:
        descriptor = os.open(run.file, os.O_RDWR)
        try:
            os.pwrite(descriptor, DATA[:BLOCK], 8 * BLOCK)
            os.fsync(descriptor)
            stored = (tmp_path / "plain" / "00000008").exists()
        finally:
            os.close(descriptor)
        assert stored == (program == "ours")
        assert run.unmount() == 0
    assert (tmp_path / "plain" / "00000008").read_bytes() == DATA[:BLOCK]


@pytest.mark.parametrize("program", PROGRAMS)
def test_3_zero_range(program: str, local: list[str], tmp_path: Path) -> None:
    """The original says that a range was zeroed, and the old data is read again."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    with started(program, tmp_path, *local) as run:
        write(run.file, 0, DATA[:BLOCK])
        descriptor = os.open(run.file, os.O_RDWR)
        try:
            mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
            answer = libc.fallocate(descriptor, mode, 0, BLOCK)
            code = ctypes.get_errno()
        finally:
            os.close(descriptor)
        found = read(run.file, 0, BLOCK)
        if program == "original":
            assert (answer, found) == (0, DATA[:BLOCK])
        else:
            # Refused, so that the caller writes zeros itself; or done.
            assert (answer, found) == (0, bytes(BLOCK)) or (answer, code) == (-1, errno.EOPNOTSUPP)


@pytest.mark.parametrize("program", PROGRAMS)
def test_14_st_blocks(program: str, local: list[str], tmp_path: Path) -> None:
    """The original counts its own blocks where the system has units of 512 bytes."""
    with started(program, tmp_path, *local) as run:
        assert os.stat(run.file).st_blocks == (1 << 20) // (BLOCK if program == "original" else 512)


# ── 4: dirty data ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["removed", "another's"])
def test_4_nothing_dirty_is_dropped_when_the_token_has_gone(volume: Workbench, what: str) -> None:
    """The original throws dirty blocks of its cache file away if the bucket's token has gone, and says nothing."""
    with volume.mounted(foreground=True) as mount:
        write_unflushed(mount.file, 8 * BLOCK, DATA)
        volume.token.unlink()
        if what == "another's":
            import random

            store = volume.open_store()
            write_token(store, "", "", new_token(random.Random(1)), former=None)
            store.close()
        write(mount.file, 64 * BLOCK, DATA)
        assert volume.stored(64 * BLOCK, len(DATA)) == DATA
        write_unflushed(mount.file, 128 * BLOCK, DATA)
        mount.umount()
        mount.wait()
        assert mount.process.returncode == 0
        for block in (8, 64, 128):
            assert volume.stored(block * BLOCK, len(DATA)) == DATA
        assert mount.process.stderr is not None
        said = mount.process.stderr.read()
        # Somebody else's token is theirs, and two at once is worth an error in the log.
        assert volume.token.exists() == ("the token is left alone" in said) == (what == "another's")


# ── 5, 8, 12: encodings ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("program", PROGRAMS)
def test_5_a_wrong_password(program: str, bucket: Bucket, tmp_path: Path) -> None:
    """The original mounts with any password, and a whole block that is written then replaces a good one."""
    with started("ours", tmp_path, *bucket.arguments("--encrypt", "--password=right")) as run:
        write(run.file, 0, DATA[:BLOCK] * 4)
        assert run.unmount() == 0
    before = bucket.objects()
    with started(program, tmp_path, *bucket.arguments("--encrypt", "--password=wrong")) as run:
        if program == "original":
            write(run.file, 2 * BLOCK, b"x" * BLOCK)
            assert run.unmount() == 0
            assert bucket.objects()["00000002"] != before["00000002"]
            return
        assert run.process.wait(PATIENCE) == 1
        assert not run.mounted
        assert "the password is wrong" in run.said
    assert bucket.objects() == before
    with started("ours", tmp_path, *bucket.arguments("--encrypt", "--password=right")) as run:
        assert read(run.file, 0, 4 * BLOCK) == DATA[:BLOCK] * 4


@pytest.mark.parametrize("cipher", ["CAMELLIA-256-CBC", "AES128"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_8_ciphers_with_long_names_and_aliases(program: str, cipher: str, bucket: Bucket, tmp_path: Path) -> None:
    """The original writes blocks under some ciphers that it cannot read back."""
    arguments = bucket.arguments(f"--encrypt={cipher}", "--password=secret")
    with started(program, tmp_path, *arguments) as run:
        write(run.file, 0, DATA[:BLOCK] * 2)
        assert run.unmount() == 0
    with started(program, tmp_path, *arguments) as run:
        if program == "original":
            with pytest.raises(OSError):
                read(run.file, 0, 2 * BLOCK)
        else:
            assert read(run.file, 0, 2 * BLOCK) == DATA[:BLOCK] * 2


@pytest.mark.parametrize("cipher", ["DES-CBC", "BF-CBC"])
def test_8_ciphers_that_do_not_work_are_refused_before_the_mount(cipher: str, bucket: Bucket, tmp_path: Path) -> None:
    """The original mounts with a cipher that OpenSSL no longer has, and dies at the first write."""
    with started("ours", tmp_path, *bucket.arguments(f"--encrypt={cipher}", "--password=secret")) as run:
        assert run.process.wait(PATIENCE) == 1
        assert cipher in run.said and "Traceback" not in run.said
    assert bucket.objects() == {}


def test_12_compress_takes_a_level_beside_it(bucket: Bucket, tmp_path: Path) -> None:
    """The original refuses ``--compress --compress-level=N``."""
    with started("ours", tmp_path, *bucket.arguments("--compress", "--compress-level=9")) as run:
        write(run.file, 0, DATA[:BLOCK])
        assert run.unmount() == 0
    assert bucket.store.get("00000000").info.content_encoding == "deflate"


# ── 6: a bucket that is missing ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("program", PROGRAMS)
def test_6_a_missing_bucket_is_no_empty_disk(program: str, bucket: Bucket, tmp_path: Path) -> None:
    """The original reads zeros where there is no bucket."""
    bucket.server.remove_bucket(bucket.name)
    with started(program, tmp_path, *bucket.arguments("--readOnly")) as run:
        if program == "original":
            assert read(run.file, 0, BLOCK) == bytes(BLOCK)
            return
        assert run.process.wait(PATIENCE) == 1
        assert bucket.name in run.said and not run.mounted


def test_6_a_bucket_that_goes_away(bucket: Bucket, tmp_path: Path) -> None:
    """The original sends a PUT that is answered 404 again and again without a pause, and reads zeros."""
    with started("ours", tmp_path, *bucket.arguments("--blockCacheSize=64", "--maxRetryPause=300")) as run:

        def puts() -> int:
            counts = dict(line.split(maxsplit=1) for line in (run.mountpoint / "stats").read_text().splitlines())
            return int(counts["http_puts"])

        write(run.file, 0, DATA[:BLOCK])
        for key in bucket.objects():
            bucket.store.delete(key)
        bucket.server.remove_bucket(bucket.name)
        descriptor = os.open(run.file, os.O_RDWR)
        os.pwrite(descriptor, DATA[:BLOCK], 8 * BLOCK)
        with pytest.raises(OSError) as failed:
            os.fsync(descriptor)
        assert failed.value.errno != 0
        with pytest.raises(OSError):
            os.pread(descriptor, BLOCK, 100 * BLOCK)
        before = puts()
        time.sleep(3)
        # One block, tried again about once a second.
        assert 1 <= puts() - before <= 12
        with pytest.raises(OSError):
            os.close(descriptor)
        bucket.server.make_bucket(bucket.name)
        assert run.unmount() == 0
    assert bucket.store.get("00000008").body == DATA[:BLOCK]


# ── 11: reading beside a writer ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("program", PROGRAMS)
def test_11_reading_beside_a_writer(program: str, bucket: Bucket, tmp_path: Path) -> None:
    """The original refuses a read-only mount while somebody writes."""
    (tmp_path / "writer").mkdir()
    with started("ours", tmp_path / "writer", *bucket.arguments()) as writer:
        write(writer.file, 0, DATA[:BLOCK])
        before = bucket.objects()
        with started(program, tmp_path, *bucket.arguments("--readOnly")) as reader:
            if program == "original":
                assert reader.process.wait(PATIENCE) == 1
                return
            assert read(reader.file, 0, BLOCK) == DATA[:BLOCK]
            assert "what is read here may be older" in reader.said
            assert reader.unmount() == 0
        assert bucket.objects() == before


# ── 13: signals ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not ORIGINAL.exists(), reason="Debian's s3backer is not installed")
@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1], ids=lambda n: n.name)
def test_13_the_original_dies_of_a_signal(number: signal.Signals, local: list[str], tmp_path: Path) -> None:
    with started("original", tmp_path, *local) as run:
        run.process.send_signal(number)
        assert run.process.wait(PATIENCE) == -number
        assert run.mounted


def test_13_signals_that_mean_nothing(volume: Workbench) -> None:
    """The original dies of any signal that it does not know, and leaves a dead mount and its token."""
    with volume.mounted() as mount:
        write_unflushed(mount.file, 0, DATA)
        for number in sorted(IGNORED_SIGNALS):
            mount.signal(number)
            assert mount.file.stat().st_size == 1 << 20, number
        mount.umount()
        mount.wait()
        assert volume.stored(0, len(DATA)) == DATA
        volume.wait_for_nothing()


@pytest.mark.parametrize("number", sorted(STOP_SIGNALS), ids=lambda n: n.name)
def test_13_signals_that_end_it(volume: Workbench, number: signal.Signals) -> None:
    """The original dies of SIGQUIT and others with what was not stored yet."""
    with volume.mounted() as mount:
        write_unflushed(mount.file, 0, DATA)
        mount.signal(number)
        mount.wait()
        assert volume.stored(0, len(DATA)) == DATA
        volume.wait_for_nothing()


def test_13_no_signal_that_kills_is_forgotten() -> None:
    deadly = {signal.SIGKILL, signal.SIGSTOP}
    # They tell of a defect in the program itself, and a core is what they are for.
    faults = {getattr(signal, f"SIG{name}") for name in ("SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS", "XFSZ")}
    harmless = {getattr(signal, f"SIG{name}") for name in ("CHLD", "CONT", "URG", "WINCH", "TSTP", "TTIN", "TTOU")}
    everything = set(signal.valid_signals())
    assert everything == STOP_SIGNALS | IGNORED_SIGNALS | deadly | faults | harmless
