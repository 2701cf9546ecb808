"""The limits of the process of a mount."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.mounts import ROOT


@pytest.mark.parametrize(
    ("soft", "hard", "answer"),
    [
        (40, 40, "100 threads need 448 open files, and no more than 40 are allowed"),
        (40, 4096, "448"),
        (1024, 4096, "1024"),
    ],
)
def test_open_files_are_raised_as_far_as_needed_or_refused(soft: int, hard: int, answer: str) -> None:
    script = (
        "import resource\n"
        "from s3backer.errors import UsageError\n"
        "from s3backer.process import raise_open_files\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "try:\n"
        "    raise_open_files(100)\n"
        "    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == answer
