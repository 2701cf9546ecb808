"""Where a mount has its journal, whether it has one and how large, where nothing was said of that."""

from __future__ import annotations

import os
from pathlib import Path

from s3backer.errors import UsageError
from s3backer.logs import state_directory
from s3backer.mountpoint import read_mounts
from s3backer.units import format_size

#: Bytes of such a journal, and those that have to be free where it is.
_SIZE, _LEAST_FREE = 256 << 20, 1 << 30
#: Filesystems that are gone with a restart, or a container.
_PASSING = ("tmpfs", "ramfs", "overlay")


def journals_directory() -> Path:
    """Return where the journals of all volumes are on this host, unless they are elsewhere."""
    return state_directory() / "journals"


def default_size(path: str | os.PathLike[str]) -> int:
    """Return the bytes of a journal in a directory, made or not, where nobody has said how many.

    Raises UsageError, which says why, where there is little room, or what is written is gone with a restart or with a
    container.
    """
    place = os.path.realpath(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    try:
        facts, device = os.statvfs(place), os.stat(place).st_dev
    except OSError as error:
        raise UsageError(f"{place} cannot be looked at: {error.strerror}") from None
    if not os.path.isdir(place):
        raise UsageError(f"{place} is not a directory")
    name = f"{os.major(device)}:{os.minor(device)}"
    mounted = next((mount for mount in reversed(read_mounts()) if mount.device == name), None)
    if mounted is not None and mounted.kind in _PASSING:
        raise UsageError(f"{place} is on {mounted.kind}, which does not last")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{place} cannot be written to")
    if (room := facts.f_bavail * facts.f_frsize) < _LEAST_FREE:
        raise UsageError(f"the disk of {place} has only {format_size(room)} free, less than {format_size(_LEAST_FREE)}")
    return _SIZE
