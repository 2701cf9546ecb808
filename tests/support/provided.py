"""What tests need and no package gives: made once, and kept in the user's cache directory for the next checkout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path


class CannotProvide(Exception):
    """It cannot be had; the message says why."""


def kept_path(name: str) -> Path:
    """Return where the thing of this name is, or would be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "s3backer-tests" / name


def run_alone(provide: Callable[[], Path]) -> int:
    """Provide it and print where it is, or why it cannot be had; return the exit code."""
    try:
        print(provide())
    except CannotProvide as error:
        print(error, file=sys.stderr)
        return 1
    return 0
