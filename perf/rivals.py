"""The programs that are measured side by side, mounted for as long as a comparison takes.

    ours        as it comes
    direct      ours with ``--direct-io``: the kernel lets several write at the same time
    journal     ours with ``--journal=1GiB``, on the same disk as everything else
    lazy        ours with ``--fsync=lazy``: fsync does nothing, as that of the original
    defaults    the original as Debian ships it
    tuned       the original with ``-o big_writes -o max_readahead=131072``

All have 128 KiB blocks and room for the same number of them, in a directory (``--test``, ``file://``) or on an S3
server. Every daemon runs in the foreground, so that its process is known.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3backer.mountpoint import find_mount
from tests.support.mounts import PATIENCE, ROOT, environment, umount, wait_until, why_no_mounts
from tests.support.servers import S3Server

MIB = 1 << 20
BLOCK = 128 << 10
ORIGINAL = "/usr/bin/s3backer"
OURS, DIRECT, JOURNAL, LAZY = "ours", "direct", "journal", "lazy"
DEFAULTS, TUNED = "defaults", "tuned"
#: Ours, and what each is told beside.
_OUR_OWN = {
    OURS: ("--journal=none",),
    DIRECT: ("--journal=none", "--direct-io"),
    JOURNAL: ("--journal=1GiB",),
    LAZY: ("--fsync=lazy",),
}
PROGRAMS = (OURS, DEFAULTS, TUNED)
_TUNING = ("-o", "big_writes", "-o", "max_readahead=131072")
_TICKS = os.sysconf("SC_CLK_TCK")
#: Seconds in which a daemon that has nothing to do uses less than two ticks, and the longest wait for that.
_QUIET, _QUIET_LIMIT = 0.4, 60.0

needs_rivals = [
    pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts() or "mounts work"),
    pytest.mark.skipif(not os.path.exists(ORIGINAL), reason="Debian's s3backer is not installed: apt install s3backer"),
]


@dataclass(frozen=True)
class Rival:
    """A mounted program."""

    name: str
    disk: Path
    pid: int

    def cpu(self) -> float:
        """Return the processor seconds that the daemon has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def peak(self) -> float:
        """Return the daemon's largest resident set so far, in MiB."""
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert match
        return int(match[1]) / 1024

    def settle(self) -> None:
        """Return when what was written is away: nobody is to pay for the one before.

        The original's fsync does nothing, so it is seen to have become quiet.
        """
        handle = os.open(self.disk, os.O_RDWR)
        os.fsync(handle)
        os.close(handle)
        end = time.monotonic() + _QUIET_LIMIT
        before = self.cpu()
        while time.monotonic() < end:
            time.sleep(_QUIET)
            now = self.cpu()
            if now - before < 2 / _TICKS:
                return
            before = now


@dataclass(frozen=True)
class Place:
    """Where a program keeps its objects: in a directory, or in a bucket of a server."""

    directory: Path
    server: S3Server | None = None
    bucket: str = ""

    def words(self, program: str) -> list[str]:
        """Return what a program is told of it."""
        if self.server is None:
            return ["--test", str(self.directory)] if program not in _OUR_OWN else [f"file://{self.directory}"]
        if program in _OUR_OWN:
            return [f"s3://{self.bucket}", f"--endpoint-url={self.server.endpoint}"]
        keys = [f"--accessId={self.server.access_key}", f"--accessKey={self.server.secret_key}"]
        return [f"--baseURL={self.server.endpoint}/", *keys, self.bucket]


def new_place(directory: Path, server: S3Server | None = None) -> Place:
    """Make an empty place."""
    directory.mkdir(parents=True)
    return Place(directory, server, server.make_bucket() if server else "")


def command_of(
    program: str, place: Place, mountpoint: Path, *, size: int, memory: int, more: Sequence[str]
) -> list[str]:
    """Return the command that mounts in the foreground. ``size``, ``memory``: bytes."""
    words = place.words(program)
    if program in _OUR_OWN:
        options = ["-f", "--quiet", f"--size={size}", f"--block-size={BLOCK}", f"--memory={memory}"]
        options += _OUR_OWN[program]
        return [sys.executable, "-m", "s3backer", "mount", *options, *words, str(mountpoint), *more]
    options = ["-f", "--quiet", f"--size={size}", f"--blockSize={BLOCK}", f"--blockCacheSize={memory // BLOCK}"]
    tuning = _TUNING if program == TUNED else ()
    return [ORIGINAL, *options, *tuning, *more, *words, str(mountpoint)]


@contextlib.contextmanager
def running(
    program: str, place: Place, directory: Path, *, size: int, memory: int, more: Sequence[str] = ()
) -> Iterator[Rival]:
    """Mount a program; unmount it on leaving and wait until its process has ended."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True, exist_ok=True)
    surroundings = environment(directory)
    if place.server is not None:
        surroundings |= place.server.environment()
    command = command_of(program, place, mountpoint, size=size, memory=memory, more=more)
    with mounted_by(program, command, directory, surroundings) as process:
        wait_until((mountpoint / "file").exists, f"{program} shows its disk")
        yield Rival(program, mountpoint / "file", process.pid)
    assert process.returncode == 0, (directory / "log").read_text(errors="replace")


@contextlib.contextmanager
def mounted_by(
    program: str, command: Sequence[str], directory: Path, surroundings: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command that mounts on ``mnt`` in the foreground; unmount on leaving and wait until it has ended."""
    mountpoint, output = directory / "mnt", directory / "log"
    with output.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=surroundings, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: find_mount(str(mountpoint)) or process.poll() is not None, f"{program} mounts")
        assert process.poll() is None, output.read_text(errors="replace")
        yield process
        umount(mountpoint)
        process.wait(10 * PATIENCE)
    finally:
        if find_mount(str(mountpoint)):
            subprocess.run(["umount", "-l", str(mountpoint)], check=False, timeout=PATIENCE)
        if process.poll() is None:
            process.kill()
        process.wait()


def fill(disk: Path | str, size: int) -> None:
    """Write random bytes over the first ``size`` bytes and read them, so that they are cached."""
    handle = os.open(disk, os.O_RDWR)
    try:
        for start in range(0, size, MIB):
            os.pwrite(handle, os.urandom(MIB), start)
        for start in range(0, size, MIB):
            os.pread(handle, MIB, start)
    finally:
        os.close(handle)
