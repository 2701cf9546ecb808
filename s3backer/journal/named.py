"""The journal that a mount token names, as it is seen from this host, and how to go on if that mount has died."""

from __future__ import annotations

import os
import socket

from s3backer.journal.files import has_files
from s3backer.layouts.token import MountToken
from s3backer.stores.base import ObjectStore
from s3backer.url import volume_id


def named_path(store: ObjectStore, prefix: str, token: MountToken) -> str:
    """Return the directory of the volume's journal, of a token that names one."""
    return os.path.join(token.journal, volume_id(store.place, prefix).hex())


def is_missing(store: ObjectStore, prefix: str, token: MountToken) -> bool:
    """Return whether a token names a journal of this host that is not there. One that cannot be looked at may be."""
    if not token.journal or token.host != socket.gethostname():
        return False
    path = named_path(store, prefix, token)
    try:
        os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return not has_files(path)


def way_on(url: str, token: MountToken) -> str:
    """Return the command to be run, on the token's host, if its mount has died; it says so if that is not enough."""
    if not token.journal:
        return f"s3backer unlock {url}"
    return f"s3backer recover {url} --journal-directory {token.journal}"
