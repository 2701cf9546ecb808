"""The limits of the process of a mount."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from s3backer import signals
from s3backer.process import has_memory_limit
from tests.support.mounts import ROOT, wait_until


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


@pytest.mark.parametrize(
    ("own", "files", "limited"),
    [
        ("4:memory:/a/b\n0::/\n", {"memory/a/b/memory.stat": "cache 0\nhierarchical_memory_limit 100663296\n"}, True),
        ("4:memory:/a\n", {"memory/a/memory.stat": "hierarchical_memory_limit 9223372036854771712\n"}, False),
        # In a container whose path is the host's.
        ("4:cpu,memory:/docker/1\n", {"memory/memory.stat": "hierarchical_memory_limit 4096\n"}, True),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "100663296\n"}, True),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "max\n"}, False),
        ("0::/\n", {"memory.max": "100663296\n"}, True),
        ("0::/\n", {}, False),
        ("", {}, False),
    ],
)
def test_a_limit_of_memory_is_found(tmp_path: Path, own: str, files: dict[str, str], limited: bool) -> None:
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    assert has_memory_limit(str(tmp_path / "groups"), str(tmp_path / "own")) == limited
    assert not has_memory_limit(str(tmp_path / "groups"), str(tmp_path / "absent"))


def test_a_signal_for_which_there_was_no_thread_is_heard_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_RETRY", 0.05)
    failures, heard = [RuntimeError("can't start new thread"), MemoryError()], threading.Event()

    def handler(number: int) -> None:
        if failures:
            raise failures.pop()
        heard.set()

    waiting = signals.Signals(handler)
    with waiting:
        ident = waiting._thread.ident
        assert ident is not None
        # To that thread: others of the process that runs this have them not blocked.
        signal.pthread_kill(ident, signal.SIGTERM)
        wait_until(heard.is_set, "the signal is heard")
