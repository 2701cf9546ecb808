"""One block of a classic volume as an object: compressed, then encrypted and signed, or plain.

    Content-Encoding    nothing | NAME | NAME, encrypt-CIPHER | encrypt-CIPHER        NAME deflate or zstd

Each object says how it is encoded, so that a volume may hold plain and compressed blocks side by side, whatever is
written today. Encryption is not mixed: where it is on, a block that is not encrypted is refused, because anybody could
have put it there; and the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from s3backer.codec.compression import ALGORITHMS, Compression, WrongLength, decompress
from s3backer.codec.encryption import SIGNATURE_METADATA, BlockCipher, find_cipher
from s3backer.stores.base import Buffer

_ENCRYPT = "encrypt-"


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is stored: the body, its Content-Encoding and its metadata."""

    body: Buffer
    content_encoding: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoding:
    """A Content-Encoding understood: names as they are written in the header, empty for none."""

    compression: str = ""
    cipher: str = ""


class BadBlock(ValueError):
    """A body that is not a block of this volume; the text says why, ``hint`` what to try."""

    def __init__(self, reason: str, *, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class BadEncoding(BadBlock):
    """It is stored in a way that is none of ours, or not one that this volume has."""


class BadLength(BadBlock):
    """It is sound, and longer or shorter than a block."""


class BadCompression(BadBlock):
    """It cannot be decompressed."""


class NoSignature(BadBlock):
    """There is no signature where one belongs."""


class WrongSignature(BadBlock):
    """The signature does not fit: another password, or the object was altered."""


def parse_encoding(text: str) -> Encoding:
    """Return what a Content-Encoding means. Raises BadBlock if it is none of ours."""
    names = [name for name in re.split(r"[,\s]+", text) if name]
    compression = cipher = ""
    rest = list(names)
    if rest and rest[-1].lower().startswith(_ENCRYPT):
        cipher = rest.pop()[len(_ENCRYPT) :]
    if rest and rest[-1].lower() in ALGORITHMS:
        compression = rest.pop().lower()
    if rest or (names and names[-1].lower() == _ENCRYPT):
        raise BadEncoding(
            f"it is stored with Content-Encoding {text!r}, which is not one of s3backer's",
            hint="It was put there by another program, or altered by a proxy on the way.",
        )
    return Encoding(compression, cipher)


@dataclass(frozen=True, slots=True)
class BlockCodec:
    """How one volume's blocks are stored. ``assumed``: the Content-Encoding of objects that have none."""

    compression: Compression | None = None
    cipher: BlockCipher | None = None
    assumed: str = ""

    @property
    def content_encoding(self) -> str:
        """The Content-Encoding of what is written."""
        names = [self.compression.name] if self.compression else []
        return ", ".join(names + ([f"{_ENCRYPT}{self.cipher.kind.name}"] if self.cipher else []))

    @property
    def secret(self) -> bytes | None:
        """What other keys of an encrypted volume are derived from."""
        return self.cipher.secret if self.cipher else None

    @property
    def copies(self) -> int:
        """How many copies of a block exist at most while it is under way."""
        return 2 + (self.compression is not None) + (self.cipher is not None)

    def encode(self, block: int, data: bytes) -> Encoded:
        """Return a block's stored form."""
        if self.compression is None and self.cipher is None:
            return Encoded(data)
        body = self.compression.compress(data) if self.compression else data
        if self.cipher is None:
            return Encoded(body, self.content_encoding)
        body, signature = self.cipher.encrypt(block, body)
        return Encoded(body, self.content_encoding, {SIGNATURE_METADATA: signature})

    def decode(self, block: int, size: int, body: bytes, content_encoding: str, metadata: Mapping[str, str]) -> bytes:
        """Return the block's ``size`` bytes; BadBlock if the object cannot be what was written."""
        encoding = parse_encoding(content_encoding or self.assumed)
        data = self._decrypted(block, body, encoding.cipher, metadata)
        if encoding.compression:
            try:
                return decompress(encoding.compression, data, size)
            except ValueError as error:
                raise (BadLength if isinstance(error, WrongLength) else BadCompression)(
                    f"it cannot be decompressed with {encoding.compression}: {error}",
                    hint="It is damaged, was cut short, or belongs to a volume of another block size.",
                ) from None
        if len(data) != size:
            raise BadLength(
                f"it has {len(data)} bytes, a block of this volume has {size}",
                hint="It was cut short, or written with another block size or encoding.",
            )
        return data

    def _decrypted(self, block: int, body: bytes, cipher: str, metadata: Mapping[str, str]) -> bytes:
        mine = self.cipher
        if not cipher and mine is None:
            return body
        if mine is None:
            raise BadEncoding(f"it is encrypted with {cipher}", hint=f"Give --encrypt={cipher} and the password.")
        if not cipher:
            raise BadEncoding(
                "it is not encrypted, though this volume is",
                hint="Somebody else put it there, or it was written before the volume was encrypted.",
            )
        if find_cipher(cipher) != mine.kind:
            raise BadEncoding(
                f"it is encrypted with {cipher}, not with {mine.kind.name}", hint=f"Give --encrypt={cipher}."
            )
        signature = metadata.get(SIGNATURE_METADATA)
        if not signature:
            raise NoSignature(
                "it has no signature", hint="Its metadata was lost, for example by a copy made with another program."
            )
        try:
            return mine.decrypt(block, body, signature)
        except ValueError as error:
            raise WrongSignature(
                str(error), hint="Is the password right? If other blocks can be read, this one was altered."
            ) from None


#: Blocks stored as they are.
PLAIN = BlockCodec()
