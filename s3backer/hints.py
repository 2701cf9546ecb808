"""The commands that errors tell to run, as they can be put on a command line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence


def recover_command(url: str, place: str, *words: str) -> str:
    """Return how to recover the journal of a volume; ``place``: the directory in which those of all volumes are."""
    return shlex.join(["s3backer", "recover", url, "--journal-directory", place, *words])


def move_back_command(source: str, target: str) -> str:
    """Return how to move a directory to its place; what stands there is renamed."""
    keeping = ["--backup=numbered"] if os.path.lexists(target) else []
    return shlex.join(["mv", "-T", *keeping, source, target])


def unlock_command(url: str, *words: str) -> str:
    """Return how to remove the mount token of a volume."""
    return shlex.join(["s3backer", "unlock", *words, url])


def free_command(devices: Sequence[str], dead_mount: str = "") -> str:
    """Return how to detach loop devices, if there are any, and to remove a mount without a daemon, if one is named."""
    commands = [["losetup", "-d", *devices]] if devices else []
    if dead_mount:
        commands.append(["fusermount", "-u", dead_mount])
    return " && ".join(map(shlex.join, commands))
