"""The commands that errors tell to run, as they can be put on a command line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence


def command_line(*words: str) -> str:
    """Return a command with quotes where a shell needs them."""
    return shlex.join(words)


def recover_command(url: str, place: str, *words: str) -> str:
    """Return how to recover the journal of a volume; ``place``: the directory in which those of all volumes are."""
    return command_line("s3backer", "recover", url, "--journal-directory", place, *words)


def move_back_command(source: str, target: str) -> str:
    """Return how to move a directory to its place; what stands there is renamed."""
    keeping = ["--backup=numbered"] if os.path.lexists(target) else []
    return command_line("mv", "-T", *keeping, source, target)


def unlock_command(url: str, *words: str) -> str:
    """Return how to remove the mount token of a volume."""
    return command_line("s3backer", "unlock", *words, url)


def check_command(url: str, *words: str) -> str:
    """Return how to check a volume."""
    return command_line("s3backer", "check", url, *words)


def unmount_command(what: str) -> str:
    """Return how to unmount a volume with its URL or its mount point."""
    return command_line("s3backer", "unmount", what)


def fusermount_command(path: str) -> str:
    """Return how to remove a mount that no daemon serves."""
    return command_line("fusermount", "-u", path)


def detach_command(devices: Sequence[str]) -> str:
    """Return how to detach loop devices from their files."""
    return command_line("losetup", "-d", *devices)
