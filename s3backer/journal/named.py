"""The journal that a mount token names, as it is seen from this host, and how to go on if that mount has died.

A journal's directory is called after the volume, and the volume after its place: the endpoint, or the directory, as it
was called. Where that has another name now (http://localhost for http://127.0.0.1, another path of the same directory)
the journal is there, under the name of before. So it is where somebody has renamed the directory itself. The token's
value, which its directory has noted, tells that it is this volume's. What others than this user and root have put there
is not looked at: no mount of theirs could have been this one, and what it says goes to commands that are run.
"""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass

from s3backer.errors import UsageError
from s3backer.hints import move_back_command, unlock_command
from s3backer.journal.format import Header
from s3backer.journal.marks import has_files, is_home, newest_header, noted_token
from s3backer.journal.nonces import is_noted
from s3backer.layouts.token import MountToken, way_on
from s3backer.stores.base import ObjectStore
from s3backer.url import VolumeURL, volume_id


@dataclass(frozen=True, slots=True)
class OtherName:
    """A journal's directory, ``path``, and the ``url`` that the volume had in the mount that wrote it.

    ``place``: where it has to be for this volume, "" if it is another one's by its name of then. ``elsewhere``: it had
    another endpoint then.
    """

    path: str
    url: str
    place: str = ""
    elsewhere: bool = False

    def hint(self, url: str, token: MountToken) -> str:
        """Return how to reach it; ``url``: what the volume is called now."""
        if self.place:
            # A mount that was refused has left a directory there, with no journal in it.
            return f"Move it back: {move_back_command(self.path, self.place)}. Then run: {way_on(url, token)}"
        if self.url == url:
            # Of S3's names the endpoint is no part.
            return f"Recover it with the --endpoint-url of that mount: {way_on(url, token, elsewhere=True)}"
        return (
            "Recover it by that name (a directory that was moved has to be moved back for that, or bound there with "
            f"mount --bind): {way_on(self.url, token, elsewhere=self.elsewhere, like=url)}"
        )

    def described(self, url: str) -> str:
        """Return where it is and why it is not found."""
        if self.place:
            return f"in {self.path}: it was renamed, and belongs in {self.place}"
        name = "with another --endpoint-url" if self.url == url else f"as {self.url}"
        return f"in {self.path}: it was mounted {name}"


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


def under_another_name(store: ObjectStore, prefix: str, token: MountToken) -> OtherName | None:
    """Return the journal of a token's mount that is beside where ``is_missing`` looked; None if it is not there."""
    try:
        names = sorted(os.listdir(token.journal))
    except OSError:
        return None
    paths = [os.path.join(token.journal, name) for name in names]
    # A copy of it has the same value noted, and may be older.
    for path in sorted(paths, key=lambda path: not is_home(path, token.home)):
        if _is_trusted(path) and (is_home(path, token.home) or noted_token(path) == token.value):
            header = newest_header(path)
            if header is not None:
                url = _printable(header.url)
                if header.volume == volume_id(store.place, prefix):
                    # A link to it would not be followed in its place either.
                    return OtherName(os.path.realpath(path), url, named_path(store, prefix, token))
                return OtherName(path, url, elsewhere=not _is_in_service(store, header))
    return None


def _is_in_service(store: ObjectStore, header: Header) -> bool:
    """Whether a journal's volume was in the same S3 service as the store, or in none."""
    if not header.url.startswith("s3:"):
        return True
    try:
        was = VolumeURL.parse(header.url)
    except UsageError:
        return False
    service = store.place.rpartition(" ")[0]
    return volume_id(f"{service} {was.bucket}", was.prefix) == header.volume


def _is_trusted(path: str) -> bool:
    """Whether it is a directory of this user's or of root's, or a link of theirs to one."""
    try:
        found = os.stat(path)
        owners = {os.lstat(path).st_uid, found.st_uid}
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and owners <= {os.geteuid(), 0}


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def has_not_begun(store: ObjectStore, prefix: str, token: MountToken) -> bool:
    """Return whether a token is that of a mount of this host that has ended while it took the volume by force."""
    path = named_path(store, prefix, token)
    # Not by its home: that is another one when the host has been started anew.
    return is_noted(path, token.nonce) and noted_token(path) is None and is_missing(store, prefix, token)


def if_died(store: ObjectStore, prefix: str, url: str, token: MountToken) -> str:
    """Return what to do if the mount of a token that names a journal has died, as a clause."""
    if not is_missing(store, prefix, token):
        return f"mount it there again, or run there: {way_on(url, token)}. What it flushed may be in that journal only."
    other = under_another_name(store, prefix, token)
    if other is not None:
        return f"its journal is {other.described(url)}. {other.hint(url, token)}"
    if has_not_begun(store, prefix, token):
        return (
            "it took the volume by force and wrote nothing yet. What the mount before it flushed may be in that one's "
            f"journal only; give that up with --force, or with: {unlock_command(url, '--force')}"
        )
    return (
        "what it flushed and had not stored is lost with that journal, which is not there; if it cannot be brought "
        f"back: {unlock_command(url, '--force')}"
    )
