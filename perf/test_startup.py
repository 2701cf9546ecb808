"""How long the command needs before it does anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from perf.side_by_side import ROUNDS, Report, compare, interleave


def test_version_beside_an_empty_program(report: Report) -> None:
    """At most five times ``python -c pass`` of the same environment; written as a ratio of speeds, at least 0.2."""
    command = str(Path(sys.executable).with_name("s3backer"))
    times = interleave(
        {
            "s3backer --version": lambda: subprocess.run([command, "--version"], check=True, capture_output=True),
            "python -c pass": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True, capture_output=True),
        },
        rounds=3 * ROUNDS,
    )
    report.add(compare(times, "s3backer --version", ["python -c pass"], 0.2))
