"""What is wrong with one block's object, and by what it was seen to be right.

Guarantees
  * An object that cannot be a block of the volume is read again before that is said.
  * An object that went away while it was to be read is no finding, unless the listing still has it.
  * Whatever one object holds, and whatever the store answers for it, is that object's finding and no exception, except
    that the bucket itself is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from s3backer import _fast
from s3backer.checking.findings import Finding
from s3backer.checking.subject import Subject
from s3backer.codec.block import (
    BadBlock,
    BadCompression,
    BadEncoding,
    BadLength,
    NoSignature,
    WrongSignature,
    parse_encoding,
)
from s3backer.codec.encryption import SIGNATURE_METADATA, find_cipher
from s3backer.errors import BucketNotFound, CorruptObject, ObjectNotFound, StoreError
from s3backer.stores.base import StoredObject

_KINDS = {
    BadEncoding: "encoding",
    BadLength: "length",
    BadCompression: "compression",
    NoSignature: "signature",
    WrongSignature: "signature",
}


@dataclass(frozen=True, slots=True)
class Examined:
    """What was seen of one object. ``stored`` in bytes; ``verified`` is empty unless it is a sound block.

    ``gone``: it is not there any more.
    """

    stored: int = 0
    verified: str = ""
    encoding: str = ""
    finding: Finding | None = None
    gone: bool = False


class Examiner:
    """Examines the objects of one volume. Thread-safe."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._layout = subject.layout

    def examine(self, block: int) -> Examined:
        """Read a block's object, verify it, and tell."""
        result = self._examine_once(block)
        # What cannot be read was tried again by the store.
        if result.finding is not None and result.finding.problem and result.finding.kind != "unreadable":
            return self._examine_once(block)
        return result

    def _examine_once(self, block: int) -> Examined:
        key = self._layout.key(block)
        try:
            found = self._layout.fetch(block)
        except BucketNotFound:
            raise
        except ObjectNotFound:
            return self._missing(block, key)
        except CorruptObject as error:
            return Examined(finding=Finding(self._corrupt_kind(key), key, error.message, block))
        except StoreError as error:
            return Examined(finding=Finding("unreadable", key, error.message, block))
        stored = len(found.body)
        try:
            verified, zeros = self._judge(block, found)
        except BadBlock as error:
            kind = next(name for sort, name in _KINDS.items() if isinstance(error, sort))
            return Examined(stored, finding=Finding(kind, key, str(error), block, found.info.etag))
        encoding = _canonical(found.info.content_encoding or self._subject.assumed)
        if not zeros or block == 0:
            return Examined(stored, verified, encoding)
        what = f"it is an object of {stored} bytes for a block of zeros"
        return Examined(stored, verified, encoding, Finding("zeros", key, what, block, found.info.etag))

    def _missing(self, block: int, key: str) -> Examined:
        page = self._subject.store.list(key, limit=1)
        if any(entry.key == key for entry in page.entries):
            what = "the listing has it, and reading it says that there is none"
            return Examined(finding=Finding("vanished", key, what, block))
        return Examined(gone=True)

    def _corrupt_kind(self, key: str) -> str:
        """Return why the store gave no body: too many bytes, or not those that were put."""
        try:
            return "length" if self._subject.store.head(key).size > self._layout.most_stored else "altered"
        except StoreError:
            return "altered"

    def _judge(self, block: int, found: StoredObject) -> tuple[str, bool]:
        """Return by what a block was verified, and whether it is zeros; BadBlock if it is none."""
        info, subject = found.info, self._subject
        shown = "nothing" if not found.verified else "md5" if found.verified == "md5" else "checksum"
        if subject.locked is not None:
            self._judge_locked(found)
            return shown, False
        data = subject.codec.decode(block, self._layout.block_size, found.body, info.content_encoding, info.metadata)
        if subject.codec.cipher is not None:
            shown = "hmac"
        elif shown == "nothing" and parse_encoding(info.content_encoding or subject.assumed).compression == "deflate":
            shown = "adler32"
        return shown, _fast.is_zero(data)

    def _judge_locked(self, found: StoredObject) -> None:
        """Judge an encrypted block without its password, as far as that goes."""
        info, kind = found.info, self._subject.locked
        assert kind is not None
        encoding = parse_encoding(info.content_encoding or self._subject.assumed)
        if not encoding.cipher:
            raise BadEncoding("it is not encrypted, though this volume is")
        if find_cipher(encoding.cipher) != kind:
            raise BadEncoding(f"it is encrypted with {encoding.cipher}, not with {kind.name}")
        signature = info.metadata.get(SIGNATURE_METADATA)
        if not signature:
            raise NoSignature("it has no signature")
        if not re.fullmatch(r'\s*"?[0-9a-fA-F]{40}"?\s*', signature):
            raise WrongSignature("its signature is not one")
        if not found.body or len(found.body) % kind.iv_length:
            raise BadLength(f"its {len(found.body)} bytes are not the length of a ciphertext")


def _canonical(content_encoding: str) -> str:
    """Return a Content-Encoding that is one of ours as we write it."""
    encoding = parse_encoding(content_encoding)
    kind = find_cipher(encoding.cipher)
    return ", ".join(filter(None, (encoding.compression, f"encrypt-{kind.name}" if kind else "")))
