r"""The mount token: the object by which a writer says that the volume is in use.

    key        PREFIX + "s3backer-mounted"
    body       HOSTNAME "\n" YYYYMMDDTHHMMSSZ "\n" TOKEN "\n" [NOTE "\n"]      (UTC)
    metadata   s3backer-mount-token: 8 lower-case hex digits, 1 … 7ffffffe
               7fffffff is the original's shared mode; missing or zero counts as 1
               s3backer-journal: where on that host what it flushed may be, %-encoded; only if it has a journal, and
                   not once that has failed and the bucket has all of it
               s3backer-lease: seconds within which a mount that lives puts it anew, those for which its requests may
                   take effect after that, and those for which requests of the mount before it may, from when it was
                   put; only if it does
               s3backer-covered: "1" if every request under way that changes a block is of one of which the journal
                   has what is not in the bucket, so that whoever has the journal need not wait for it to read
               s3backer-home: what tells the mount's directory from every other one, and one start of its host from
                   the next (JournalDirectory.home); only if it has one

Whoever finds no token may write, and knows nothing of requests whose answers were lost. So before it is removed these
have to have expired: ``settle``.

The original reads and writes the same object, so each refuses a volume that the other has mounted.

The third line is ours (nobody reads the original's body back): ETags follow the content, and two tokens put in the
same second by the same host must not have the same one. The fourth is a random number, another one each time that it
is put; by it a holder knows its own token, whoever else may have its value. While a copy is unfinished its note is
there instead (layouts/copy_note.py): nothing opens such a volume, not even by force. Unlike the original we create it
with ``If-None-Match: *``: of two mounts at once exactly one wins. A token without a lease, as the original's, never
ends by itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import quote, unquote

from s3backer.errors import AccessDenied, ObjectNotFound, PreconditionFailed, StoreError, VolumeInUse
from s3backer.hints import recover_command, unlock_command
from s3backer.layouts.copy_note import CopyNote
from s3backer.lease import Watch
from s3backer.stores.base import ObjectStore

TOKEN_NAME = "s3backer-mounted"
TOKEN_METADATA = "s3backer-mount-token"
JOURNAL_METADATA = "s3backer-journal"
LEASE_METADATA = "s3backer-lease"
HOME_METADATA = "s3backer-home"
COVERED_METADATA = "s3backer-covered"
SHARED_TOKEN = 0x7FFFFFFF
#: Attempts to remove a token of ours that stays as it is.
_REMOVALS = 10
#: Seconds that a lease may last.
_SHORTEST, _LONGEST = 1.0, 3600.0
#: Bytes of which no token has so many.
_LARGEST = 1 << 20
#: Most bytes, as a URL has them, of the directory of a journal: S3 takes 2 KiB of metadata in all.
LONGEST_PLACE = 1024
#: Seconds between two reports of a wait.
_LOOK = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountToken:
    """What the token object says. ``etag`` is that of the object read. ``copy``: it locks an unfinished copy.

    ``journal``: the directory of the mount's journal on its host, "" if it has none. ``lease``: seconds after which
    its holder has renewed it, 0: it does not; ``arriving``: those in which its last requests may still take effect;
    ``owed``: those in which requests of the mount before it may, from when it was put.
    ``home``, ``covered``: see above; ``nonce``: the random number, "" if it has none.
    """

    value: int
    host: str
    time: str
    etag: str
    copy: CopyNote | None = None
    journal: str = ""
    lease: float = 0.0
    arriving: float = 0.0
    owed: float = 0.0
    home: str = ""
    nonce: str = ""
    covered: bool = False

    def anew(self, random_source: random.Random, **changes: Any) -> Self:
        """Return the token as its holder puts it next: with another nonce, and with ``changes``."""
        return replace(self, nonce=f"{random_source.getrandbits(128):032x}", **changes)

    def is_put_of(self, other: MountToken) -> bool:
        """Return whether both come from the same putting."""
        return (self.value, self.nonce) == (other.value, other.nonce)

    def describe(self) -> str:
        """Return who mounted and when, for messages."""
        where = f"by {self.host}" if self.host else "by an unknown host"
        return f"{where} at {self.time or 'an unknown time'} (token {self.value:08x})"


def read_token(store: ObjectStore, prefix: str) -> MountToken | None:
    """Return the token in the bucket, or None where the volume is not mounted."""
    try:
        found = store.get(prefix + TOKEN_NAME, at_most=_LARGEST)
    except ObjectNotFound:
        return None
    try:
        value = int(found.info.metadata.get(TOKEN_METADATA, ""), 16) & 0xFFFFFFFF
    except ValueError:
        value = 0
    host, began, *_ = [*found.body[:4096].decode("utf-8", "replace").split("\n"), ""]
    fourth = b"".join(found.body.split(b"\n", 4)[3:4])
    lease, arriving, owed = _parse_lease(found.info.metadata.get(LEASE_METADATA, ""))
    note = CopyNote.parse(fourth)
    return MountToken(
        value or 1,
        _printable(host),
        _printable(began),
        found.info.etag,
        note,
        _printable(unquote(found.info.metadata.get(JOURNAL_METADATA, "")), LONGEST_PLACE),
        lease,
        arriving,
        owed,
        _printable(found.info.metadata.get(HOME_METADATA, "")),
        "" if note else _printable(fourth.decode("utf-8", "replace")),
        found.info.metadata.get(COVERED_METADATA) == "1",
    )


def _parse_lease(text: str) -> tuple[float, float, float]:
    """Return the seconds of a lease, those after it, and those owed; of what cannot be read, the longest."""
    if not text:
        return 0.0, 0.0, 0.0
    try:
        term, arriving, owed = map(float, text.split())
    except ValueError:
        return _LONGEST, _LONGEST, _LONGEST
    if not all(map(math.isfinite, (term, arriving, owed))):
        return _LONGEST, _LONGEST, _LONGEST
    return min(max(term, _SHORTEST), _LONGEST), min(max(arriving, 0.0), _LONGEST), min(max(owed, 0.0), _LONGEST)


def can_tell(place: str) -> bool:
    """Return whether a token can say that a journal is in this directory, for programs and for people."""
    return place.isprintable() and len(quote(place)) <= LONGEST_PLACE


def new_token(
    random_source: random.Random, *, value: int = 0, copy: CopyNote | None = None, **facts: Any
) -> MountToken:
    """Return a token of this host and of now that was not put yet; of a random value, if none is given.

    ``facts``: those of MountToken.
    """
    value = value or random_source.randrange(1, SHARED_TOKEN)
    token = MountToken(value, socket.gethostname(), datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"), "", copy, **facts)
    return token if copy else token.anew(random_source)


def put_token(store: ObjectStore, prefix: str, token: MountToken, *, former: MountToken | None) -> MountToken:
    """Put a token in place of ``former``, or of none, and return it with its ETag.

    Raises PreconditionFailed if something else is there, StoreError; then perhaps it was put all the same.
    """
    metadata = {TOKEN_METADATA: f"{token.value:08x}"}
    if token.journal:
        metadata[JOURNAL_METADATA] = quote(token.journal, safe="/")
    if token.lease:
        metadata[LEASE_METADATA] = f"{token.lease:g} {token.arriving:g} {token.owed:g}"
    if token.home:
        metadata[HOME_METADATA] = token.home
    if token.covered:
        metadata[COVERED_METADATA] = "1"
    fourth = token.copy.text() if token.copy else token.nonce
    etag = store.put(
        prefix + TOKEN_NAME,
        f"{token.host}\n{token.time}\n{token.value:08x}\n{fourth}\n".encode(),
        content_type="text/plain",
        metadata=metadata,
        if_match=former.etag if former else None,
        if_none_match=former is None,
    )
    return replace(token, etag=etag)


def claim_token(
    store: ObjectStore, prefix: str, url: str, token: MountToken, *, former: MountToken | None
) -> MountToken:
    """Do what ``put_token`` does; VolumeInUse if somebody else put one in between.

    Whatever is raised, no token is removed: who comes next finds this one or the former one.
    """
    try:
        return put_token(store, prefix, token, former=former)
    except PreconditionFailed:
        raise in_use(url, read_token(store, prefix)) from None


def write_token(
    store: ObjectStore, prefix: str, url: str, token: MountToken, *, former: MountToken | None
) -> MountToken:
    """Begin to hold a volume: do what ``claim_token`` does, and leave nothing where none was if it fails."""
    try:
        return claim_token(store, prefix, url, token, former=former)
    except StoreError:
        # It may have taken effect although its answer was lost. In place of another one it has to stay: that may have
        # been the mark of an unfinished copy, or of a mount whose requests may still be under way.
        if former is None:
            with contextlib.suppress(StoreError):
                remove_token(store, prefix, token)
        raise


def remove_token(store: ObjectStore, prefix: str, mine: MountToken) -> MountToken | None:
    """Remove the token if it is the one that was put then; return another one that stands there instead."""
    found = read_token(store, prefix)
    if found is not None and not found.is_put_of(mine):
        return found
    if found is not None:
        try:
            store.delete(prefix + TOKEN_NAME, if_match=found.etag)
        except PreconditionFailed:
            return read_token(store, prefix)
    return None


def remove_ours(
    store: ObjectStore, prefix: str, url: str, mine: MountToken, is_ours: Callable[[MountToken], bool]
) -> MountToken | None:
    """Do what ``remove_token`` does, also with those of ours that stand there instead; the last one put may be lost.

    Raises AccessDenied where it stays although it is ours.
    """
    other = remove_token(store, prefix, mine)
    for _ in range(_REMOVALS):
        if other is None or not is_ours(other):
            return other
        other = remove_token(store, prefix, other)
    raise AccessDenied(
        f"the mount token of {url} is ours and cannot be removed: its condition is refused",
        hint=f"All data is stored. Run: {unlock_command(url)}",
    )


def settle(store: ObjectStore, url: str, waits: Callable[[float], None] | None = None) -> None:
    """Wait until no write whose answer was lost may take effect any more; without such writes that is at once.

    ``waits`` is called now and then with the seconds that are left.
    """
    left = store.settles_in()
    if left > 0:
        log.warning("%s waits %.0f s for requests whose answers were lost", url, left)
    count_down(store.settles_in, waits)


def count_down(left: Callable[[], float], looks: Callable[[float], None] | None) -> None:
    """Wait until no seconds are ``left``; ``looks`` is called now and then with how many are, and may raise."""
    while (seconds := left()) > 0:
        if looks:
            looks(seconds)
        time.sleep(min(seconds, _LOOK))


def way_on(url: str, token: MountToken, *, elsewhere: bool = False, like: str = "") -> str:
    """Return the command to be run, on the token's host, if its mount has died; it says so if that is not enough.

    ``elsewhere``: that mount, which had a journal, had another endpoint. ``like``: see ``recover_command``.
    """
    if not token.journal:
        return unlock_command(url)
    return recover_command(url, token.journal, elsewhere=elsewhere, like=like)


def in_use(url: str, token: MountToken | None, *, died: str = "") -> VolumeInUse:
    """Return the error for a volume that carries somebody's token. ``died``: see ``if_died`` in journal/named.py."""
    if token is None:
        return VolumeInUse(f"{url} was mounted by somebody else just now", hint="Try again.")
    if token.copy is not None:
        return VolumeInUse(
            f"{url} is an unfinished copy of {token.copy.source}, begun {token.describe()}",
            hint="Once that run has ended, finish it with the same 's3backer copy' and --resume, or give it up with "
            "'s3backer erase --force'.",
        )
    if token.value == SHARED_TOKEN:
        return VolumeInUse(
            f"{url} is mounted in the original's shared disk mode ({token.describe()})",
            hint=f"Unmount it everywhere, then: {unlock_command(url)}",
        )
    if token.journal:
        died = died or f"run there: {way_on(url, token)}. What it flushed may be in that journal only."
        return VolumeInUse(
            f"{url} is mounted {token.describe()}, with a journal in {token.journal} there",
            hint=f"Unmount it there first. If that mount has died, {died}",
        )
    return VolumeInUse(
        f"{url} is mounted {token.describe()}",
        hint=f"Unmount it there first. If that mount has died: {unlock_command(url)}. Two writers at once destroy the "
        "data.",
    )


def watch_token(
    store: ObjectStore, prefix: str, url: str, token: MountToken, looks: Callable[[float], None] | None = None
) -> MountToken | None:
    """Return the token when its lease has ended, None if it has gone. Raises VolumeInUse if its mount is alive.

    Takes as long as the lease. ``looks`` is called with the seconds that are left, every second or so, and may raise.
    """
    log.warning("%s was mounted %s; looking for %.0f s whether that mount is alive", url, token.describe(), token.lease)
    watch = Watch(token.etag, token.lease, time.monotonic())
    while (left := watch.left(time.monotonic())) > 0:
        if looks:
            looks(left)
        time.sleep(min(left, token.lease / 20, 1.0))
        found = read_token(store, prefix)
        if found is None:
            return None
        if watch.saw(found.etag):
            raise VolumeInUse(
                f"{url} is mounted {found.describe()}, and that mount is alive: it has just renewed its token",
                hint="Unmount it there.",
            )
    return token


def _printable(text: str, most: int = 255) -> str:
    return "".join(c for c in text if c.isprintable())[:most]
