"""Running fio and reading what it says.

One call is one short run with direct I/O on one file or device; what it does is given in fio's own words.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_fio = pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed: apt install fio")

#: Seconds of one run, beside a moment that is not counted.
SECONDS = 2.0
_RAMP = 0.3
_PATIENCE = 300.0


@dataclass(frozen=True)
class Done:
    """What one job of a run did: requests and bytes a second, requests in all, median latency in µs."""

    per_second: float
    bytes_per_second: float
    requests: int
    median: float


@dataclass(frozen=True)
class Job:
    """One job; ``words`` are fio's options without the dashes. ``size``: bytes of the file that it works on."""

    pattern: str
    block: int
    size: int
    offset: int = 0
    words: Sequence[str] = ()

    def options(self, path: Path | str) -> list[str]:
        """Return the job's part of fio's command line."""
        options = [f"--filename={path}", f"--rw={self.pattern}", f"--bs={self.block}"]
        options += [f"--size={self.size}", f"--offset={self.offset}"]
        return options + [f"--{word}" for word in self.words]


def run_fio(path: Path | str, *jobs: Job, seconds: float = SECONDS) -> list[Done]:
    """Run the jobs at the same time and return what each did."""
    command = ["fio", "--output-format=json", "--direct=1", "--time_based", f"--runtime={seconds}", "--group_reporting"]
    # Requests without much entropy would be cheaper for whoever looks at the content.
    command += [f"--ramp_time={_RAMP}", "--randrepeat=0", "--norandommap", "--refill_buffers"]
    for number, job in enumerate(jobs):
        command += [f"--name=job{number}", "--new_group", *job.options(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"fio failed:\n{done.stderr}{done.stdout}")
    # Notes come before the JSON.
    said = json.loads(done.stdout[done.stdout.index("{") :])
    return [read_job(job) for job in said["jobs"]]


def read_job(job: dict[str, object]) -> Done:
    """Return what one job of fio's JSON says of reads or writes, whichever there were."""
    sides = [job[name] for name in ("read", "write")]
    side = max(sides, key=lambda one: one["total_ios"])  # type: ignore[index]
    assert isinstance(side, dict)
    median = side["clat_ns"].get("percentile", {}).get("50.000000", side["clat_ns"]["mean"])
    return Done(side["iops"], side["bw_bytes"], side["total_ios"], median / 1000)
