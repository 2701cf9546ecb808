"""What a command of the command line said, for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """Return the error's sentence, having seen that it is one line and that one line of advice follows it."""
        first, *rest = self.err.splitlines()
        assert first.startswith("s3backer: "), self.err
        assert "Traceback" not in self.err
        assert len(rest) == 1 and rest[0].startswith("  ") and rest[0].strip(), self.err
        return first.removeprefix("s3backer: ")

    def hint(self) -> str:
        """Return the line of advice."""
        return self.err.splitlines()[1].strip()


Run = Callable[..., Answer]

_STOPPED = """
import os, signal, socket, sys
listener = socket.socket(socket.AF_UNIX)
# The whole path may be longer than the name of a socket.
os.chdir(os.path.dirname(sys.argv[1]))
listener.bind(os.path.basename(sys.argv[1]))
listener.listen()
os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextlib.contextmanager
def stopped_daemon(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that listens at a socket as a daemon does, and is stopped."""
    with subprocess.Popen([sys.executable, "-c", _STOPPED, str(path)], stdin=subprocess.DEVNULL) as process:
        try:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            yield process
        finally:
            process.kill()


def tree(directory: Path) -> dict[str, bytes | None]:
    """Return everything below a directory: the content of files, None for directories."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }
