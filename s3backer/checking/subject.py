"""What is checked: a volume's sizes and encoding, whether its blocks can be decrypted, and who has it mounted.

    options ─► block 0's metadata ─► the note of an unfinished copy          whoever says a size first is believed
    options ─► block 0 ─► the first other blocks                             the same for the encoding

Nothing is written, and no token is taken. A wrong password is told from damage: it fits none of the first blocks.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from s3backer.checking.findings import Finding
from s3backer.codec.block import BadBlock, BlockCodec, WrongSignature, parse_encoding
from s3backer.codec.choice import choose_codec
from s3backer.codec.encryption import CipherKind, cipher_kind
from s3backer.copy_source import place
from s3backer.errors import (
    CorruptObject,
    ObjectNotFound,
    StoreError,
    UsageError,
    VolumeInUse,
    VolumeNotFound,
    WrongPassword,
)
from s3backer.geometry import check_geometry
from s3backer.layouts.classic import (
    MAX_BLOCKS,
    ClassicLayout,
    Metadata,
    block_name,
    parse_block_name,
    parse_metadata,
    stated_block_size,
)
from s3backer.layouts.token import SHARED_TOKEN, MountToken, in_use, read_token, way_on
from s3backer.opening import VolumeOptions, volume_name
from s3backer.stores.base import ObjectInfo, ObjectStore
from s3backer.units import exact_size

#: Blocks besides the first that are looked at for the encoding and the password.
_SAMPLES = 3


@dataclass(slots=True)
class Subject:
    """A volume to be checked. ``findings``: what is to be said of it as a whole.

    ``locked``: it is encrypted with this and there is no password; ``codec`` then does not matter.
    """

    store: ObjectStore
    name: str
    layout: ClassicLayout
    token: MountToken | None
    locked: CipherKind | None
    findings: list[Finding]
    #: What objects without a Content-Encoding are encoded with.
    assumed: str
    #: What block 0 says of the volume, None where it says nothing.
    said: Metadata | None = None

    @property
    def codec(self) -> BlockCodec:
        """How its blocks are decoded."""
        return self.layout.codec

    @property
    def encoding(self) -> str:
        """The Content-Encoding of what would be written, without that of the compression where it is locked."""
        return f"encrypt-{self.locked.name}" if self.locked else self.codec.content_encoding

    def in_use(self, token: MountToken) -> VolumeInUse:
        """Return the error for a volume that somebody has mounted."""
        error = in_use(self.name, token)
        return VolumeInUse(f"{error.message}: it cannot be repaired", hint=error.hint)

    def about(self) -> dict[str, Any]:
        """Return what has to be the same for a check to go on (checking/state.py)."""
        cipher = self.codec.cipher
        kind = self.locked or (cipher.kind if cipher else None)
        return {
            "place": place(self.store, self.layout.prefix),
            "said": f"{self.said.size} bytes, {self.said.content_encoding or 'plain'}" if self.said else "nothing",
            "size": self.layout.size,
            "block_size": self.layout.block_size,
            "block_hash_prefix": self.layout.hash_prefix,
            "encoding": self.assumed,
            "cipher": kind.name if kind else "",
            # No block has this number.
            "password_check": cipher.encrypt(MAX_BLOCKS, b"")[1] if cipher else "",
        }


def find_subject(store: ObjectStore, prefix: str, options: VolumeOptions, *, served_here: str = "") -> Subject:
    """Return what is known about a volume before its blocks are read.

    ``served_here``: where the daemon of this host shows it, empty if none does. Raises VolumeNotFound, UsageError,
    WrongPassword, StoreError, or CorruptObject where the volume says sizes that no volume has.
    """
    name = volume_name(store, prefix)
    token = read_token(store, prefix)
    hashed = options.block_hash_prefix
    if token is not None and token.copy is not None and token.copy.block_hash_prefix != hashed:
        raise _other_naming(name, hashed)
    key = prefix + block_name(0, hash_prefix=hashed)
    try:
        info = store.head(key)
    except ObjectNotFound:
        info = None
    said = parse_metadata(info) if info is not None else None
    size, block_size, findings = _sizes(store, prefix, options, info, said, token)
    findings += _of_the_token(name, token, served_here)
    layout = ClassicLayout(
        store, prefix, block_size=block_size, size=size, hash_prefix=hashed, exclusive=False, knowledge=0
    )
    subject = Subject(store, name, layout, token, None, findings, options.encoding.default_content_encoding, said)
    _find_encoding(subject, info, options)
    return subject


def _other_naming(name: str, hashed: bool) -> UsageError:
    return UsageError(
        f"the keys of the blocks at {name} {'do not begin' if hashed else 'begin'} with a hash",
        hint=f"{'Leave out' if hashed else 'Give'} --block-hash-prefix.",
    )


def _sizes(
    store: ObjectStore,
    prefix: str,
    options: VolumeOptions,
    info: ObjectInfo | None,
    said: Metadata | None,
    token: MountToken | None,
) -> tuple[int, int, list[Finding]]:
    """Return size and block size in bytes, and what is wrong with what block 0 says about them."""
    hashed = options.block_hash_prefix
    key = prefix + block_name(0, hash_prefix=hashed)
    note = token.copy if token is not None else None
    stated = stated_block_size(info) if info is not None else None
    said_size = said.size if said else None
    if info is None and note is None:
        _require_blocks(store, prefix, hashed)
    size = options.size or said_size or (note.size if note else None)
    block_size = options.block_size or stated or (note.block_size if note else None)
    if size is None or block_size is None:
        what = "is missing, and the metadata with it" if info is None else "does not say how large the volume is"
        missing = " and ".join(f"--{word}" for word, have in (("size", size), ("block-size", block_size)) if not have)
        raise VolumeNotFound(f"object {key!r} in {store.name} {what}", hint=f"Give {missing}.")
    try:
        check_geometry(size, block_size)
    except UsageError as error:
        if (options.size, options.block_size) != (None, None):
            raise
        raise CorruptObject(
            f"object {key!r} in {store.name} says that the volume has a size of {exact_size(size)} in blocks of "
            f"{exact_size(block_size)}, which cannot be: {error.message}",
            hint="Give the right ones with --size and --block-size.",
        ) from None
    findings = []
    if info is None and note is None:
        findings.append(Finding("no-first-block", key, f"there is no object {key!r}", 0))
    elif info is not None and (said is None or stated is None):
        what = "its size is not stored with it" if stated else "neither size nor block size are stored with it"
        findings.append(Finding("no-metadata", key, what, 0, info.etag))
    else:
        for word, real, found in (("size", size, said_size), ("block size", block_size, stated)):
            if found is not None and found != real:
                what = f"it says a {word} of {exact_size(found)}, not {exact_size(real)}"
                findings.append(Finding("metadata", key, what, 0, info.etag if info else ""))
    return size, block_size, findings


def _require_blocks(store: ObjectStore, prefix: str, hashed: bool) -> None:
    """Raise UsageError where the blocks have keys of the other naming, VolumeNotFound where there are none."""
    name = volume_name(store, prefix)
    others, after = False, ""
    while True:
        page = store.list(prefix, start_after=after)
        for entry in page.entries:
            if parse_block_name(entry.key[len(prefix) :], hash_prefix=hashed) is not None:
                return
            others = others or parse_block_name(entry.key[len(prefix) :], hash_prefix=not hashed) is not None
        if not page.truncated:
            break
        after = page.entries[-1].key
    if others:
        raise _other_naming(name, hashed)
    raise VolumeNotFound(f"there is no volume at {name}", hint="Check the URL.")


def _of_the_token(name: str, token: MountToken | None, served_here: str) -> list[Finding]:
    """Return what the mount token says about the volume."""
    if token is None:
        return []
    if token.copy is not None:
        unfinished = in_use(name, token)
        return [Finding("unfinished-copy", "", f"{unfinished.message}. {unfinished.hint}")]
    if served_here:
        return [Finding("mounted", "", f"{name} is mounted here on {served_here}")]
    what = in_use(name, token).message
    if token.value != SHARED_TOKEN and token.host == socket.gethostname():
        what += (
            f"; that is this host, and nothing of ours serves it here. If that mount has died: {way_on(name, token)}"
        )
    return [Finding("mounted", "", what)]


def _find_encoding(subject: Subject, info: ObjectInfo | None, options: VolumeOptions) -> None:
    """Find out how the blocks are encoded, and try the password on some of them."""
    layout, asked = subject.layout, options.encoding
    samples = [0] if info is not None else []
    samples += _first_blocks(subject)
    found = _first_encoding(subject, info, samples)
    if found is None and subject.token is not None and subject.token.copy is not None:
        found = subject.token.copy.encoding
    cipher = asked.encrypt or ("" if found is None else parse_encoding(found).cipher)
    if cipher and asked.password is None:
        subject.locked = cipher_kind(cipher)
        return
    if asked.encrypt is not None:
        # Said by somebody who knows: what the first blocks say may be what is wrong.
        found = None
    layout.codec = choose_codec(
        asked,
        found,
        bucket=subject.store.bucket,
        prefix=layout.prefix,
        block=f"the first block at {subject.name}",
    )
    if layout.codec.cipher is not None:
        _try_password(subject, samples)


def _first_blocks(subject: Subject) -> list[int]:
    """Return a few blocks behind the first of the listing's first page."""
    layout = subject.layout
    found: list[int] = []
    for entry in subject.store.list(layout.prefix).entries:
        block = parse_block_name(entry.key[len(layout.prefix) :], hash_prefix=layout.hash_prefix)
        if block and block < layout.block_count:
            found.append(block)
    return found[:_SAMPLES]


def _first_encoding(subject: Subject, info: ObjectInfo | None, samples: list[int]) -> str | None:
    """Return the first Content-Encoding that is one of ours, None if there is none."""
    for block in samples:
        try:
            facts = info if info is not None and block == 0 else subject.store.head(subject.layout.key(block))
            text = facts.content_encoding or subject.assumed
            parse_encoding(text)
        except (StoreError, BadBlock):
            continue
        return text
    return None


def _try_password(subject: Subject, samples: list[int]) -> None:
    """Raise WrongPassword if it fits none of the blocks that can be read."""
    tried = 0
    for block in samples:
        try:
            subject.layout.decode(block, subject.layout.fetch(block))
            return
        except CorruptObject as error:
            tried += isinstance(error.__context__, WrongSignature)
        except StoreError:
            continue
    if tried:
        raise WrongPassword(
            f"the password fits none of the first {tried} blocks of {subject.name}",
            hint="Check it, the cipher's key length, and the names of bucket and prefix, which belong to the key. "
            "Without a password, everything else is checked.",
        )
