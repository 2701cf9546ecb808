"""What a journal holds that somebody has left, and whether all of that is in the bucket.

Where a note there says so (layouts/stored_note.py: the journal had failed, and its files could not be removed), what
stands in the files is of no interest any more: they may be damaged. The same goes where the note is gone and the token
is this journal's and says of none: it has said of one since it was first put, until all was stored.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from functools import cached_property

from s3backer.errors import JournalDamaged, JournalError, StoreError
from s3backer.hints import recover_command
from s3backer.journal.default import journals_directory
from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import PAGE, Header, HeaderError, unpack_header
from s3backer.journal.marks import newest_header
from s3backer.journal.replay import Recovered, scan
from s3backer.journal.salvage import salvage
from s3backer.layouts.stored_note import StoredNote
from s3backer.layouts.token import MountToken, read_token
from s3backer.opening import VolumeOptions, volume_name
from s3backer.stores.base import ObjectStore
from s3backer.url import volume_id


def place_of_journal(store: ObjectStore, prefix: str, options: VolumeOptions) -> str:
    """Return the directory of a volume's journal on this host."""
    return os.path.join(
        os.path.realpath(options.journal_directory or journals_directory()), volume_id(store.place, prefix).hex()
    )


def note_of(store: ObjectStore, prefix: str, path: str) -> StoredNote | None:
    """Return the note of the journal in a directory, put or not; None where no file of it says which that is.

    Nothing but the newest header is read: the records may be damaged.
    """
    header = newest_header(path)
    if header is None or header.volume != volume_id(store.place, prefix):
        return None
    return StoredNote(store, prefix, header.session, path)


def disowning_token(store: ObjectStore, prefix: str, headers: Iterable[Header]) -> MountToken | None:
    """Return the token in the bucket if it is that of a mount of a journal with these headers, and says of none.

    A mount with a journal names it in its token from the first one that it puts, and one that goes on with a journal
    does before it writes to that. One without has no files. Only ours are believed, which have a nonce.
    """
    values = {header.token for header in headers}
    token = read_token(store, prefix) if values else None
    if token is None or token.value not in values or not token.nonce or token.journal:
        return None
    return token


def _header_of(directory: JournalDirectory, number: int) -> Header:
    """Return the header of a file, whatever is behind it. Raises JournalError, HeaderError, OSError."""
    fd = directory.open(number)
    try:
        return unpack_header(os.pread(fd, PAGE, 0))
    finally:
        os.close(fd)


class LeftJournal:
    """The journal in a directory, and the volume that it belongs to. Both stay their owners'."""

    def __init__(self, store: ObjectStore, prefix: str, directory: JournalDirectory) -> None:
        self._store, self._prefix, self._directory = store, prefix, directory
        #: The volume, as messages call it.
        self.url = volume_name(store, prefix)
        #: One that was seen, of a journal that is damaged.
        self._other_note: StoredNote | None = None

    @cached_property
    def found(self) -> Recovered:
        """What is in the journal. Raises JournalError where it is not what was written, or not this volume's."""
        if self._directory.lost:
            raise JournalDamaged(
                f"the journal of {self.url} in {self._directory.path} has no files any more, and was not ended: what "
                "its mount had flushed and not stored yet was in them",
                hint=f"Put them back if you can. This gives them up; look at the volume then: {self.way('--discard')}",
            )
        try:
            return scan(self._directory, volume_id(self._store.place, self._prefix))
        except JournalDamaged as error:
            ways = f"What is right of it is written to a file by: {self.way('--to', 'FILE')}. "
            ways += "With --discard in place of --to FILE it is given up."
            noted = self._noted_session()
            if noted is None:
                error.hint += f" {ways}"
                raise
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(noted.created))
            raise JournalDamaged(
                f"{error.message}. A note in the bucket says that all that was written to it up to the mount that "
                f"began at {when} is there, or something newer",
                hint=f"If no mount has gone on with it after that one, nothing is lost. {ways}",
            ) from None

    def _noted_session(self) -> Header | None:
        """Return the newest header that can be read of a session whose note is in the bucket, None without one.

        The newest files, which cannot be read, may be of a later one. Where the store is away nothing is known.
        """
        with contextlib.suppress(StoreError):
            for header in reversed({header.session: header for header in self._headers}.values()):
                note = StoredNote(self._store, self._prefix, header.session, self._directory.path)
                if note.is_there():
                    self._other_note = note
                    return header
        return None

    def way(self, *words: str) -> str:
        """Return the command that recovers it, with these words."""
        return recover_command(self.url, self._directory.place, *words)

    @cached_property
    def stored(self) -> bool:
        """Whether the bucket says that all of the journal is there: its files could not be removed then.

        What stands in the files says nothing of that: they may be damaged, and others have had the volume since.
        """
        return bool(self.witness)

    @cached_property
    def witness(self) -> str:
        """What says that all of it is stored, in words; "" if nothing does."""
        if self._note is not None and self._note.is_there():
            return "a note there"
        token = disowning_token(self._store, self._prefix, self._headers)
        # That of a copy of this one says nothing of what was written here.
        return "the mount token" if token is not None and not self._directory.is_older(token.home, token.nonce) else ""

    @cached_property
    def _headers(self) -> list[Header]:
        """The headers that can be read and are this volume's, the oldest file's first."""
        volume = volume_id(self._store.place, self._prefix)
        found = []
        for number in self._directory.numbers():
            with contextlib.suppress(JournalError, HeaderError, OSError):
                header = _header_of(self._directory, number)
                if header.volume == volume:
                    found.append(header)
        return found

    @cached_property
    def _note(self) -> StoredNote | None:
        return note_of(self._store, self._prefix, self._directory.path)

    @property
    def empty(self) -> bool:
        """Whether there is no file of a journal."""
        return not (self.found.files or self.found.unused) and self._directory.token is None

    def is_of_replay(self, token: MountToken) -> bool:
        """Whether a token of this directory's is that of a forced replay which had not begun when it ended."""
        with contextlib.suppress(JournalError):
            try:
                found = self.found
            except JournalDamaged:
                # Of any other mount the token is noted before it is put.
                noted = {header.token for header in self._headers} | {self._directory.token}
                return token.value not in noted
            return (
                bool(found.pending)
                and token.value not in {session.token for session in found.sessions}
                and not self._directory.has_begun(token.value, found.header.session)
            )
        return False

    def replay_ended(self) -> str:
        """Return what there is to say of such a replay."""
        return (
            f"the journal in {self._directory.path} was to be replayed by force, and that has ended before it wrote "
            f"anything to {self.url}"
        )

    def right_of_it(self) -> tuple[Recovered, JournalDamaged | None]:
        """Return what is in it; of one that is damaged what is right of that, and what is wrong with it."""
        try:
            return self.found, None
        except JournalDamaged as error:
            return salvage(self._directory, volume_id(self._store.place, self._prefix)), error

    def remove_notes(self) -> None:
        """Remove what says in the bucket that all of it is there: it is gone now. Raises StoreError."""
        if self.stored and self._note is not None:
            # It may not be there, where the token says it.
            self._note.remove()
        if self._other_note is not None:
            self._other_note.remove()
