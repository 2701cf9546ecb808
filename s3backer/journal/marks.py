"""What stands in a journal's directory (``files.py`` draws it), and what that tells who does not lock it.

Guarantees
  * Nothing is changed, and nobody is kept waiting: not by a FIFO either.
  * Who only looks may see what is about to change. What has to be certain is asked of who has locked the directory.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path

from s3backer.errors import JournalError
from s3backer.journal.format import PAGE, Header, HeaderError, unpack_header
from s3backer.journal.system import read_beginning

FILE = re.compile(r"([0-9]{8,})\.journal")
SPARE = re.compile(r"[0-9]{8,}\.spare")
#: Between the making of the first file and the end: without a file then, they were lost.
BEGUN = "begun"
ENDED, SETTLED = "ended", b"settled"
LOCK = "lock"
TOKEN, NEW_TOKEN = "token", "token.new"
BUSY = "busy"
#: The hint where something is not as it should be.
LOOK = "Look at that directory."
_TOKEN_TEXT = re.compile(rb"([0-9a-f]{8})(?: ([0-9a-f]{32}))?")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def file_name(number: int) -> str:
    """Return the name of a file in use, or ready to be used."""
    return f"{number:08d}.journal"


def spare_name(number: int) -> str:
    """Return the name of a file that is being made ready."""
    return f"{number:08d}.spare"


def numbers_among(names: Iterable[str]) -> list[int]:
    """Return the numbers of the files in use, or ready to be used, in order."""
    return sorted(int(match[1]) for match in map(FILE.fullmatch, names) if match)


def has_files(path: str | os.PathLike[str]) -> bool:
    """Return whether a mount has left something in a journal's directory. Raises JournalError."""
    try:
        return any(FILE.fullmatch(name) or name in (BEGUN, ENDED, TOKEN) for name in os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        # That of another user, as with sudo and a HOME that was kept: no mount of ours can have left it.
        return False
    except OSError as error:
        raise JournalError(f"the journal's directory {path} cannot be read: {error.strerror}", hint=LOOK) from None


def newest_header(path: str) -> Header | None:
    """Return the header of the newest file in a journal's directory; None if it cannot be read."""
    with contextlib.suppress(OSError, HeaderError, ValueError):
        newest = max(numbers_among(os.listdir(path)))
        return unpack_header(read_beginning(os.path.join(path, file_name(newest)), None, PAGE))
    return None


def noted_token(path: str) -> int | None:
    """Return the value of the token that is noted in a journal's directory; None if none can be."""
    try:
        return read_token(os.path.join(path, TOKEN), None)[0]
    except OSError:
        return None


def read_token(name: str, directory: int | None) -> tuple[int | None, bytes]:
    """Return the value that is noted, None if none is, and the session that is replayed by force with it, if one is.

    Raises OSError.
    """
    try:
        text = read_beginning(name, directory, 64)
    except FileNotFoundError:
        return None, b""
    found = _TOKEN_TEXT.fullmatch(text)
    return (int(found[1], 16), bytes.fromhex((found[2] or b"").decode())) if found else (None, b"")


def token_text(value: int, session: bytes) -> bytes:
    """Return what ``read_token`` reads. ``session`` may be empty."""
    return b"%08x" % value + (b" " + session.hex().encode() if session else b"")


def is_home(path: str, home: str) -> bool:
    """Return whether a directory is the one that a token names as its mount's, which it may not do (``home`` empty)."""
    try:
        return home_of(os.stat(os.path.join(path, LOCK), follow_symlinks=False)) == home
    except OSError:
        return False


def home_of(lock: os.stat_result) -> str:
    """Return what tells the directory of that lock file from its copies, and this start of the host from the next."""
    return f"{_boot_id()} {lock.st_dev:x} {lock.st_ino:x}"


def _boot_id() -> str:
    """Return what names this start of the host; another one each time where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return uuid.uuid4().hex
