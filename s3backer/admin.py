"""What is done to a volume as a whole, while it is not mounted here.

Each function leaves the bucket unchanged when it raises, except that an erase that was interrupted can be repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from s3backer.codec.choice import AS_THE_VOLUME, EncodingOptions, choose_codec
from s3backer.errors import JournalError, PreconditionFailed, UsageError, VolumeExists, VolumeInUse, VolumeNotFound
from s3backer.geometry import check_geometry, least_memory, smallest_budget
from s3backer.hints import recover_command, unlock_command
from s3backer.holder import give_up, quiet_in, take, wait_until_quiet
from s3backer.journal.files import JournalDirectory
from s3backer.journal.marks import has_files
from s3backer.journal.named import has_not_begun, is_missing, under_another_name
from s3backer.layouts.classic import ClassicLayout, parse_block_name, read_metadata
from s3backer.layouts.listing import Claim, is_in, walk
from s3backer.layouts.stored_note import remove_notes
from s3backer.layouts.token import (
    TOKEN_NAME,
    MountToken,
    in_use,
    read_token,
    remove_token,
    settle,
    watch_token,
    way_on,
)
from s3backer.left_journal import LeftJournal, place_of_journal
from s3backer.opening import VolumeOptions, volume_name
from s3backer.recovery import expires_in
from s3backer.stores.base import ListEntry, ListPage, ObjectStore
from s3backer.volume import Volume

_ERASE_THREADS = 16
_COUNT_THREADS = 8
#: Blocks deleted by one request, where the store can.
_ERASE_BATCH = 1000


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What a bucket says about a volume. Sizes in bytes; ``objects`` and ``stored`` None unless counted."""

    size: int
    block_size: int
    content_encoding: str
    token: MountToken | None
    objects: int | None
    stored: int | None


def create_volume(
    store: ObjectStore,
    prefix: str,
    *,
    size: int,
    block_size: int,
    block_hash_prefix: bool = False,
    encoding: EncodingOptions = AS_THE_VOLUME,
) -> int:
    """Create an empty volume and return the least memory, in bytes, that it can be mounted with.

    Raises VolumeExists where any block or token of one is there already.
    """
    check_geometry(size, block_size)
    url = volume_name(store, prefix)
    exists = VolumeExists(
        f"there is a volume at {url} already",
        hint="Use another prefix, or 's3backer erase' to destroy what is there.",
    )
    if next(volume_objects(store, prefix), None) is not None:
        raise exists
    codec = choose_codec(encoding, None, bucket=store.bucket, prefix=prefix, block=f"block 0 of {url}")
    layout = ClassicLayout(store, prefix, block_size=block_size, size=size, codec=codec, hash_prefix=block_hash_prefix)
    try:
        layout.create()
    except PreconditionFailed:
        raise exists from None
    return least_memory(block_size, codec.copies)


def inspect_volume(
    store: ObjectStore, prefix: str, *, block_hash_prefix: bool = False, count: bool = False
) -> VolumeFacts:
    """Return the volume's facts; with ``count`` list it and count objects and bytes. Raises VolumeNotFound."""
    metadata = read_metadata(store, prefix, hash_prefix=block_hash_prefix)
    token = read_token(store, prefix)
    if metadata is None:
        if token is not None and token.copy is not None:
            unfinished = in_use(volume_name(store, prefix), token)
            raise VolumeNotFound(unfinished.message, hint=unfinished.hint)
        raise VolumeNotFound(
            f"there is no volume at {volume_name(store, prefix)}",
            hint="Check the URL, or create one with 's3backer create'.",
        )
    objects = stored = None
    if count:
        objects, stored = count_objects(store, prefix)
    return VolumeFacts(metadata.size, metadata.block_size, metadata.content_encoding, token, objects, stored)


def count_objects(store: ObjectStore, prefix: str) -> tuple[int, int]:
    """Return the number of the blocks' objects, under either naming, and their bytes."""
    lock = threading.Lock()
    objects = stored = 0

    def fetch(after: str, claim: Claim) -> ListPage:
        nonlocal objects, stored
        page = store.list(prefix, start_after=after)
        places = claim(page)
        with lock:
            for entry in page.entries:
                name = entry.key[len(prefix) :]
                if is_in(name, places) and _block_of(name) is not None:
                    objects, stored = objects + 1, stored + entry.size
        return page

    walk(prefix, fetch, threads=_COUNT_THREADS)
    return objects, stored


def erase_volume(
    store: ObjectStore, prefix: str, *, force: bool = False, progress: Callable[[int], None] | None = None
) -> int:
    """Delete every block and then the token; return the number of blocks.

    Nobody can mount it meanwhile. Raises VolumeInUse where it is mounted, unless ``force``: a mount that may be alive
    first loses the volume, which takes as long as a take-over. ``progress`` is called with the blocks deleted so far.
    Block 0 goes last, so that an interrupted erase is still seen as a volume.
    """
    url = volume_name(store, prefix)
    token = read_token(store, prefix)
    if token is not None and not force:
        raise in_use(url, token)
    if token is not None and token.copy is not None:
        # What marks an unfinished copy stays to the end.
        erased = _erase_blocks(store, prefix, progress)
        other = remove_token(store, prefix, token)
        if other is not None:
            raise in_use(url, other)
        return erased
    if token is None:
        rest: list[str] = []
        if next(volume_objects(store, prefix, last_keys=rest), None) is None and not rest:
            # Nothing is written where nothing is.
            return 0
    holder = take(store, prefix, url, token, force=True)
    try:
        erased = _erase_blocks(store, prefix, progress)
    except BaseException:
        if token is None:
            settle(store, url)
            give_up(holder, None)
        else:
            holder.stop()
        raise
    other = holder.give_back(patient=False)
    if other is not None:
        raise in_use(url, other)
    return erased


def _erase_blocks(store: ObjectStore, prefix: str, progress: Callable[[int], None] | None) -> int:
    erased = 0
    last: list[str] = []
    with ThreadPoolExecutor(_ERASE_THREADS, thread_name_prefix="s3backer-erase") as pool:
        keys = (entry.key for entry, block in volume_objects(store, prefix, last_keys=last) if block is not None)
        while some := list(islice(keys, _ERASE_BATCH * _ERASE_THREADS)):
            batches = [some[start : start + _ERASE_BATCH] for start in range(0, len(some), _ERASE_BATCH)]
            for batch, _ in zip(batches, pool.map(store.delete_many, batches), strict=True):
                erased += len(batch)
                if progress:
                    progress(erased)
    # While block 0 is there nobody makes a volume here, which late deletions would eat.
    settle(store, volume_name(store, prefix))
    store.delete_many(last)
    erased += len(last)
    remove_notes(store, prefix)
    # Who makes a volume here next must not meet those deletions.
    settle(store, volume_name(store, prefix))
    if progress:
        progress(erased)
    return erased


def unlock_volume(
    store: ObjectStore, prefix: str, *, force: bool = False, journal_directory: str | None = None
) -> MountToken | None:
    """Remove the mount token; return what it said, None if there was none.

    ``force``: also that of a mount that had a journal. Raises VolumeInUse otherwise, for a mount that is alive, and for
    an unfinished copy: without its mark it could be taken for a volume. Waits until requests of the mount cannot take
    effect any more. ``journal_directory``: see VolumeOptions.
    """
    token, url = read_token(store, prefix), volume_name(store, prefix)
    if token is not None and token.copy is not None:
        raise in_use(url, token)
    if token is not None and token.journal and not force:
        raise _has_journal(store, prefix, token, journal_directory)
    if token is not None:
        with contextlib.ExitStack() as stack:
            directory = _home_of(store, prefix, token, journal_directory)
            if directory is not None:
                wait_until_quiet(store, url, expires_in(store, stack.enter_context(directory), [], token))
            elif token.lease and watch_token(store, prefix, url, token) is not None:
                wait_until_quiet(store, url, quiet_in(store, token, ended=True))
            # As it was seen last: a mount that came back meanwhile has renewed it.
            if (other := remove_token(store, prefix, token)) is not None:
                raise in_use(url, other)
            if directory is not None:
                directory.forget_token()
        settle(store, url)
    elif read_metadata(store, prefix) is None and next(volume_objects(store, prefix), None) is None:
        raise VolumeNotFound(f"there is no volume at {url}", hint="Check the URL.")
    return token


def _has_journal(store: ObjectStore, prefix: str, token: MountToken, journal_directory: str | None) -> VolumeInUse:
    """Return why a token that names a journal is not removed. Raises VolumeInUse if its mount is seen to be alive."""
    url = volume_name(store, prefix)
    mount = f"the mount of {url} by {token.host or 'an unknown host'}"
    directory = _home_of(store, prefix, token, journal_directory)
    if directory is not None:
        with directory:
            left = LeftJournal(store, prefix, directory)
            waiting = left.is_of_replay(token)
        if waiting:
            # Of the mount that wrote the journal the bucket's token says nothing any more, nor of one after it.
            return VolumeInUse(
                left.replay_ended(),
                hint=f"Begin it anew: {recover_command(url, token.journal, '--force')}. Or only unlock it; this "
                "journal is kept, but what another mount has flushed since may be in that one's only: "
                f"{unlock_command(url, '--force')}",
            )
    if is_missing(store, prefix, token):
        other = under_another_name(store, prefix, token)
        if other is not None:
            return VolumeInUse(
                f"{mount} may be alive, and has a journal {other.described(url)}",
                hint=f"Unmount it if it is. If it has died, nothing is lost. {other.hint(url, token)}",
            )
        if has_not_begun(store, prefix, token):
            return VolumeInUse(
                f"{mount} took the volume by force and wrote nothing yet: what the mount before it flushed may be in "
                "that one's journal only",
                hint=f"Unmount it if it is alive. If it has died, give that up with: {unlock_command(url, '--force')}",
            )
        return VolumeInUse(
            f"{mount} may be alive, and has a journal in {token.journal}, which is not there",
            hint="Unmount it if it is. If it has died, what it flushed and had not stored is lost, unless that "
            f"directory can be brought back. Give it up with: {unlock_command(url, '--force')}",
        )
    way = f"run: {way_on(url, token)}. That unlocks it, too."
    lost = "Give --force where that host or its disk is lost."
    if directory is None:
        return VolumeInUse(
            f"{mount} may be alive, and has a journal in {token.journal} there: what it flushed may be in that only",
            hint=f"Unmount it there. If it has died, on that host {way} {lost}",
        )
    return VolumeInUse(
        f"{mount} had a journal, in {token.journal} there: what it flushed may be in that only",
        hint=f"On that host {way} {lost}",
    )


def _home_of(
    store: ObjectStore, prefix: str, token: MountToken, journal_directory: str | None
) -> JournalDirectory | None:
    """Return the locked directory of the token's mount, which then has died; None if that is not known.

    Raises VolumeInUse if that has locked it.
    """
    journal_directory = journal_directory or token.journal or None
    with contextlib.suppress(UsageError, JournalError):
        path = place_of_journal(store, prefix, VolumeOptions(journal_directory=journal_directory))
        if has_files(path):
            with contextlib.ExitStack() as stack:
                directory = stack.enter_context(JournalDirectory(path))
                if directory.is_home_of(token.home, token.nonce):
                    stack.pop_all()
                    return directory
    return None


def resize_volume(
    store: ObjectStore, prefix: str, size: int, *, discard: bool = False, options: VolumeOptions | None = None
) -> int:
    """Resize a volume that is not mounted; return its old size in bytes."""
    options = dataclasses.replace(options or VolumeOptions(), list_blocks=discard)
    said = read_metadata(store, prefix, hash_prefix=options.block_hash_prefix)
    if said is not None:
        # Nobody has chosen a memory for this, and next to nothing of it is used.
        options = dataclasses.replace(options, memory=max(options.memory, smallest_budget(said.block_size)))
    with Volume.open(store, prefix, options) as volume:
        old = volume.size
        volume.resize(size, discard=discard)
    return old


def volume_objects(
    store: ObjectStore, prefix: str, *, last_keys: list[str] | None = None
) -> Iterator[tuple[ListEntry, int | None]]:
    """List the volume's objects with their block numbers (None: the token), under either naming.

    With ``last_keys`` the keys of block 0 are put there instead of being handed out.
    """
    after = ""
    while True:
        page = store.list(prefix, start_after=after)
        for entry in page.entries:
            name = entry.key[len(prefix) :]
            block = _block_of(name)
            if block == 0 and last_keys is not None:
                last_keys.append(entry.key)
            elif block is not None or name == TOKEN_NAME:
                yield entry, block
        if not page.truncated:
            return
        after = page.entries[-1].key


def _block_of(name: str) -> int | None:
    block = parse_block_name(name)
    return parse_block_name(name, hash_prefix=True) if block is None else block
