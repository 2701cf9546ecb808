"""The original program and ours, mounted from the same words, for tests that let both work on one volume."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from s3backer.mountpoint import find_mount
from tests.support.mounts import PATIENCE, ROOT, environment, umount, wait_until
from tests.support.servers import S3Server

ORIGINAL: Sequence[str | Path] = [Path("/usr/bin/s3backer")]
OURS: Sequence[str | Path] = [sys.executable, "-m", "s3backer"]

needs_original = pytest.mark.skipif(
    not Path(ORIGINAL[0]).exists() and not os.environ.get("CI"),
    reason="Debian's s3backer is not installed: apt install s3backer",
)


def reach(server: S3Server) -> list[str]:
    """Return the words with which either program reaches this server."""
    return [f"--baseURL={server.endpoint}/", f"--accessId={server.access_key}", f"--accessKey={server.secret_key}"]


@contextlib.contextmanager
def program_mounted(program: Sequence[str | Path], mountpoint: Path, *words: str) -> Iterator[Path]:
    """Mount in the foreground and yield the disk; on leaving, unmount and see the program end well."""
    mountpoint.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            *program,
            "-f",
            "--quiet",
            "--md5CacheSize=0",
            "--md5CacheTime=0",
            "--minWriteDelay=0",
            *words,
            str(mountpoint),
        ],
        cwd=ROOT,
        env=environment(mountpoint.parent),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: find_mount(str(mountpoint)) or process.poll() is not None, f"{program[0]} mounts")
        assert process.poll() is None, process.communicate()[1]
        yield mountpoint / "file"
        umount(mountpoint)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    finally:
        if find_mount(str(mountpoint)):
            subprocess.run(["umount", "-l", str(mountpoint)], check=False, timeout=PATIENCE)
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def program_refused(program: Sequence[str | Path], mountpoint: Path, *words: str) -> str:
    """Try to mount, see it refused with the exit code 1, and return what was said."""
    mountpoint.mkdir(exist_ok=True)
    code, said = run_program(program, mountpoint.parent, *words, str(mountpoint))
    if find_mount(str(mountpoint)):
        # It has mounted in the background.
        umount(mountpoint)
    assert code == 1, (code, said)
    return said


def run_program(program: Sequence[str | Path], directory: Path, *words: str) -> tuple[int, str]:
    """Run a program to its end; return its exit code and what it said. What it keeps stays in the directory."""
    done = subprocess.run(
        [*program, *words],
        cwd=ROOT,
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr
