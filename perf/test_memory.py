"""Peak memory of a daemon that serves a real S3 server, beside its budget."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.side_by_side import Ratio, Report
from tests.support.servers import SeaweedServer

MIB = 1 << 20
CHUNK = 4 * MIB
#: What the process may need beside its budget.
ALLOWANCE = 64


@pytest.fixture(scope="module")
def server() -> Iterator[SeaweedServer]:
    with SeaweedServer() as running:
        yield running


def peak_mib(pid: int) -> float:
    """Return the largest resident set so far."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) / 1024


@pytest.mark.parametrize(("budget", "block_size"), [(64, "128KiB"), (256, "128KiB"), (64, "4KiB"), (256, "8MiB")])
def test_peak_of_a_daemon(budget: int, block_size: str, server: SeaweedServer, report: Report, tmp_path: Path) -> None:
    """Twice the budget is written and read back, then written again at odd offsets."""
    environment = {**os.environ, **server.environment()}
    command = str(Path(sys.executable).with_name("s3backer"))
    url, mountpoint = f"s3://{server.make_bucket()}/disk", tmp_path / "mnt"
    mountpoint.mkdir()
    amount = 2 * budget * MIB

    def run(*arguments: str) -> None:
        subprocess.run([command, *arguments], env=environment, check=True, stdin=subprocess.DEVNULL, timeout=600)

    run("create", url, "--size", "1GiB", "--block-size", block_size)
    daemon = subprocess.Popen(
        [command, "mount", url, str(mountpoint), "--foreground", "--quiet", "--memory", f"{budget}MiB"], env=environment
    )
    try:
        while not (mountpoint / "file").exists():
            assert daemon.poll() is None
        with (mountpoint / "file").open("r+b", buffering=0) as file:
            data = secrets.token_bytes(CHUNK)
            for start in range(0, amount, CHUNK):
                os.pwrite(file.fileno(), data, start)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for start in range(0, amount, CHUNK):
                os.pread(file.fileno(), CHUNK, start)
            for start in range(0, amount, 2 * CHUNK):
                os.pwrite(file.fileno(), data[: CHUNK // 2], start + 12345)
            os.fsync(file.fileno())
        peak = peak_mib(daemon.pid)
    finally:
        subprocess.run(["umount", str(mountpoint)], check=False)
        daemon.terminate()
        daemon.wait(300)
    report.add(
        Ratio(
            f"peak memory, budget {budget} MiB, blocks of {block_size}",
            f"budget of {budget} MiB",
            peak - budget,
            peak - budget,
            peak - budget,
            ALLOWANCE,
            unit="MiB above it",
        )
    )
