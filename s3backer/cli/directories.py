"""Directories that a new volume goes into: made where they are missing, removed again where nothing came of it."""

from __future__ import annotations

import contextlib
import os
import shutil

from s3backer.errors import AccessDenied, StoreError
from s3backer.stores.directory import PRIVATE


def make_directory(path: str) -> list[str]:
    """Make a directory and what is missing above it; return what was made, innermost first."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    made: list[str] = []
    try:
        for directory in reversed(missing):
            os.mkdir(directory, 0o700)
            made.insert(0, directory)
            _sync(os.path.dirname(directory))
    except OSError as error:
        remove_made(made)
        kind = AccessDenied if isinstance(error, PermissionError) else StoreError
        raise kind(
            f"directory {missing[0]} cannot be made: {error.strerror}", hint="Make it yourself, or use another."
        ) from None
    return made


def remove_made(made: list[str]) -> None:
    """Remove directories that were made here, unless somebody has put something there meanwhile."""
    if made:
        # What the store keeps for itself, which it may have begun.
        shutil.rmtree(os.path.join(made[0], PRIVATE), ignore_errors=True)
    with contextlib.suppress(OSError):
        for directory in made:
            os.rmdir(directory)


def _sync(directory: str) -> None:
    """Make a new entry of a directory survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
