"""What a mount does with the journal of one that has died, before it opens the volume."""

from __future__ import annotations

import contextlib
import logging
import os

from s3backer.errors import JournalError, StoreError, UsageError, VolumeInUse
from s3backer.hints import recover_command
from s3backer.journal.files import JournalDirectory
from s3backer.journal.marks import has_files, newest_header
from s3backer.journal.replay import Recovered
from s3backer.layouts.token import in_use, read_token
from s3backer.left_journal import disowning_token, note_of, place_of_journal
from s3backer.opening import VolumeOptions, volume_name
from s3backer.recovery import Inheritance, Recoverer
from s3backer.replaying import Progress
from s3backer.stores.base import ObjectStore

log = logging.getLogger(__name__)


def take_journal(
    store: ObjectStore, prefix: str, options: VolumeOptions, progress: Progress
) -> tuple[JournalDirectory | None, Inheritance | None]:
    """Return the locked directory for the next mount, and what that takes over of one that has died.

    What cannot be taken over is recovered before. ``progress`` is called at least every second or so, and may raise,
    which ends it. No directory where ``options`` want none, or there can be none and no journal is wanted. Raises
    JournalError, VolumeInUse and what opening a volume raises; the journal is kept then.
    """
    try:
        path = place_of_journal(store, prefix, options)
    except UsageError:
        if options.journaled:
            raise
        # Who has no place for journals has none.
        return None, None
    url = volume_name(store, prefix)
    if options.read_only:
        if has_files(path):
            _warn_of_newer(store, prefix, path)
        return None, None
    wanted = options.journaled or options.journal_directory is not None
    left = has_files(path)
    if not wanted and not left:
        return None, None
    try:
        directory = open_journal(store, prefix, path)
    except VolumeInUse as locked:
        token = None
        # Where the store is away the lock says enough.
        with contextlib.suppress(StoreError):
            token = read_token(store, prefix)
        raise VolumeInUse(in_use(url, token).message if token else locked.message, hint=locked.hint) from None
    except JournalError as error:
        if options.journaled and not left:
            error.hint += " Or mount it with --journal none."
        if options.journaled or left:
            raise
        log.info("%s; after a crash the next mount will have to watch whether this one is alive", error.message)
        return None, None
    try:
        recoverer = Recoverer(store, prefix, options, directory)
        if not recoverer.left.stored and recoverer.left.found.pending:
            log.warning("%s was not unmounted", url)
        died = not recoverer.left.stored and _died_without_journal(store, prefix, directory, recoverer.left.found)
        recovery = recoverer.adopt(progress) if options.journaled else recoverer.replay(progress)
        if isinstance(recovery, Inheritance):
            return directory, recovery
        if recovery.blocks:
            log.warning("%s: %s", url, recovery)
        elif died:
            log.warning("%s was not unmounted, by a mount without a journal: what it had not stored is lost", url)
        if wanted:
            return directory, None
    except BaseException:
        directory.close()
        raise
    directory.close()
    return None, None


def open_journal(store: ObjectStore, prefix: str, path: str) -> JournalDirectory:
    """Return the directory of a volume's journal, locked.

    Raises what JournalDirectory raises; JournalError says so where nothing in the directory is needed any more.
    """
    try:
        return JournalDirectory(path)
    except JournalError as error:
        # While the store is away nobody knows.
        with contextlib.suppress(StoreError):
            note = note_of(store, prefix, path)
            if note is not None and note.is_there():
                error.hint = "All of it is in the bucket, as a note there says: mount with another --journal-directory."
        raise


def _warn_of_newer(store: ObjectStore, prefix: str, path: str) -> None:
    """Say what the journal in a directory means to a mount that leaves it there."""
    url, header = volume_name(store, prefix), newest_header(path)
    note = note_of(store, prefix, path)
    if header is not None and note is not None and (note.is_there() or disowning_token(store, prefix, [header])):
        log.warning("all that the journal %s holds is in the bucket of %s, or something newer", path, url)
        return
    way = recover_command(url, os.path.dirname(path))
    log.warning("the journal %s may hold newer data of %s, which this brings there: %s", path, url, way)


def _died_without_journal(store: ObjectStore, prefix: str, directory: JournalDirectory, found: Recovered) -> bool:
    """Whether the mount noted in a directory has died and had no journal, so that something may be lost."""
    if directory.token is None or found.sessions:
        return False
    token = read_token(store, prefix)
    return token is not None and token.value == directory.token and not token.journal
