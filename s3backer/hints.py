"""The commands that errors tell to run, as they can be put on a command line.

A URL does not say in which S3 service its bucket is. Where options said that, those commands have them too: run as
they stand they would go to another service else, to a bucket of the same name perhaps. What the environment said of it
says it again. So ``open_store`` leaves word of the options of each store; messages know it by its volume's URL only.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

_ENDPOINT = "--endpoint-url"
#: The options that named the stores of this process, by the URLs of their volumes: flags and values, "" without one.
_stores: dict[str, dict[str, str]] = {}


def note_store(url: str, options: Mapping[str, str]) -> None:
    """Hear how the store of a volume was named beside its URL; see ``StoreOptions.named``.

    Where stores of one URL are named differently (a bucket is copied to another service under its name), commands have
    words in capitals in place of what differs: nobody can tell which is meant, and it must not be guessed.
    """
    if not url.startswith("s3:"):
        return
    former = _stores.get(url, options)
    same = {flag: value for flag, value in options.items() if former.get(flag) == value}
    # A flag without a value has nothing that could be left to be said.
    differ = sorted(flag for flag, value in {**options, **former}.items() if value and flag not in same)
    _stores[url] = same | {flag: _blank(flag) for flag in differ}


def _blank(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_").upper()


def _of(url: str, *, elsewhere: bool = False) -> list[str]:
    """Return the options that name a volume's store; ``elsewhere``: with another endpoint, that is not known."""
    options = {**_stores.get(url, {}), **({_ENDPOINT: _blank(_ENDPOINT)} if elsewhere else {})}
    return [word for flag, value in options.items() for word in ([flag, value] if value else [flag])]


def command_line(*words: str) -> str:
    """Return a command with quotes where a shell needs them."""
    return shlex.join(words)


def recover_command(url: str, place: str, *words: str, elsewhere: bool = False, like: str = "") -> str:
    """Return how to recover the journal of a volume; ``place``: the directory in which those of all volumes are.

    ``elsewhere``: the volume had another endpoint when the journal was written. ``like``: the URL of another volume,
    whose store is named as that of this one, where nothing else was said of it.
    """
    store = _of(like if like and url not in _stores else url, elsewhere=elsewhere) if url.startswith("s3:") else []
    return command_line("s3backer", "recover", url, *store, "--journal-directory", place, *words)


def move_back_command(source: str, target: str) -> str:
    """Return how to move a directory to its place; what stands there is renamed."""
    keeping = ["--backup=numbered"] if os.path.lexists(target) else []
    return command_line("mv", "-T", *keeping, source, target)


def unlock_command(url: str, *words: str) -> str:
    """Return how to remove the mount token of a volume."""
    return command_line("s3backer", "unlock", *words, *_of(url), url)


def check_command(url: str, *words: str) -> str:
    """Return how to check a volume."""
    return command_line("s3backer", "check", url, *_of(url), *words)


def unmount_command(what: str) -> str:
    """Return how to unmount a volume with its URL or its mount point."""
    return command_line("s3backer", "unmount", *_of(what), what)


def import_command(file: str, url: str) -> str:
    """Return how to bring what the original's cache file holds to a volume."""
    return command_line("s3backer", "import-cache", file, url, *_of(url))


def fusermount_command(path: str) -> str:
    """Return how to remove a mount that no daemon serves."""
    return command_line("fusermount", "-u", path)


def detach_command(devices: Sequence[str]) -> str:
    """Return how to detach loop devices from their files."""
    return command_line("losetup", "-d", *devices)
