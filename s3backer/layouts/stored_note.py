r"""The note in the bucket that all of a journal is stored, for a journal whose files cannot be removed.

    key    PREFIX + "s3backer-stored-" + SESSION                     32 hex digits: see journal/format.py
    body   HOSTNAME "\n" YYYYMMDDTHHMMSSZ "\n" DIRECTORY "\n"        when its mount began (UTC); for people only

Guarantees
  * Where it is, the bucket has all that this session, and those before it in the same journal, have written, or
    something newer. So it may arrive late: it stays true. The next mount that goes on with the journal is another
    session, of which it says nothing.
  * It is no part of the volume: whoever lists blocks passes over it, as over every foreign object, and so does the
    original. It does not keep anybody from mounting, and a mount without a journal never asks for it.

Where it is gone before the journal is, the mount token tells the same, as long as that is there (left_journal.py).

It is removed after the journal, by who gives that up, and by ``erase``. What a crash between the two leaves, or a
journal that nobody ever sees again, is one small object.
"""

from __future__ import annotations

import contextlib
import socket
from datetime import UTC, datetime

from s3backer.errors import ObjectNotFound, PreconditionFailed
from s3backer.stores.base import ObjectStore

PREFIX = "s3backer-stored-"


class StoredNote:
    """That of one journal's session, 16 bytes, in one volume. ``directory``: where the journal is."""

    def __init__(self, store: ObjectStore, prefix: str, session: bytes, directory: str) -> None:
        self._store = store
        self._key = f"{prefix}{PREFIX}{session.hex()}"
        when = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self._body = f"{socket.gethostname()}\n{when}\n{directory}\n".encode("utf-8", "surrogateescape")

    def put(self) -> None:
        """Say that all of it is stored. Raises StoreError, and then perhaps it says so all the same; VolumeInUse."""
        # It is there after a request whose answer was lost. Without a condition the next one would wait for that.
        with contextlib.suppress(PreconditionFailed):
            self._store.put(self._key, self._body, content_type="text/plain", if_none_match=True)

    def is_there(self) -> bool:
        """Return whether it was put. Raises StoreError."""
        try:
            self._store.head(self._key)
        except ObjectNotFound:
            return False
        return True

    def remove(self) -> None:
        """Remove it, if it is there. Raises StoreError."""
        self._store.delete(self._key)


def remove_notes(store: ObjectStore, prefix: str) -> None:
    """Remove those of all journals of a volume. Raises StoreError."""
    while True:
        page = store.list(prefix + PREFIX)
        store.delete_many([entry.key for entry in page.entries])
        if not page.truncated:
            return
