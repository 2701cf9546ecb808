"""The commands that errors tell to run, as they can be put on a command line."""

from __future__ import annotations

import shlex


def recover_command(url: str, place: str, *words: str) -> str:
    """Return how to recover the journal of a volume; ``place``: the directory in which those of all volumes are."""
    return shlex.join(["s3backer", "recover", url, "--journal-directory", place, *words])


def unlock_command(url: str, *words: str) -> str:
    """Return how to remove the mount token of a volume."""
    return shlex.join(["s3backer", "unlock", *words, url])
