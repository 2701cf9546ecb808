"""Which codec a volume gets: what was asked for, and what its first block says.

compress    given: that; else as the block is; else deflate where it is encrypted, nothing where it is not
encrypt     given: that, and the block must agree; else as the block is, which needs the password
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from s3backer.codec.block import BadBlock, BlockCodec, parse_encoding
from s3backer.codec.compression import Compression
from s3backer.codec.encryption import BlockCipher, CipherKind, cipher_kind
from s3backer.errors import CorruptObject, UsageError

log = logging.getLogger(__name__)

#: What ``compress`` says for "not at all".
NONE = "none"


@dataclass(frozen=True, slots=True)
class EncodingOptions:
    """How blocks are stored. None: as the volume's first block is. ``key_length`` in bytes, 0 the cipher's own."""

    compress: str | None = None
    compress_level: int | None = None
    encrypt: str | None = None
    password: str | None = field(default=None, repr=False)
    key_length: int = 0
    default_content_encoding: str = ""

    @property
    def secret(self) -> bool:
        """Whether a volume that is encrypted is meant."""
        return self.encrypt is not None or self.password is not None


#: Whatever the volume says.
AS_THE_VOLUME = EncodingOptions()


def choose_codec(options: EncodingOptions, found: str | None, *, bucket: str, prefix: str, block: str) -> BlockCodec:
    """Return the codec of a volume.

    ``found`` is the Content-Encoding of a block that is there, None if there is none; ``block`` is how messages name
    it. Raises UsageError where the options are at odds with it or with each other.
    """
    try:
        there = None if found is None else parse_encoding(found or options.default_content_encoding)
    except BadBlock as error:
        raise CorruptObject(f"{block}: {error}", hint=error.hint) from None
    kind = _cipher(options, None if there is None else there.cipher, block)
    name = options.compress
    if name is None:
        name = (there.compression if there is not None else "") or ("deflate" if kind else NONE)
    if name == NONE and options.compress_level is not None:
        raise UsageError("a compression level needs a compression", hint="Give --compress too.")
    cipher = None
    if kind is not None:
        if options.password is None:
            raise UsageError("encryption needs a password", hint="Give it with --password-file.")
        if not kind.modern:
            log.warning("%s is an old cipher; it is there for volumes that have it, use AES for new ones", kind.name)
        cipher = BlockCipher(kind, options.password, f"{bucket}/{prefix}", key_length=options.key_length)
    return BlockCodec(
        compression=None if name == NONE else Compression(name, options.compress_level),
        cipher=cipher,
        assumed=options.default_content_encoding,
    )


def _cipher(options: EncodingOptions, found: str | None, block: str) -> CipherKind | None:
    """Return the cipher to use. ``found``: that of a block that is there, empty if it is plain."""
    asked = cipher_kind(options.encrypt) if options.encrypt is not None else None
    if not found:
        if found is not None and options.secret:
            raise UsageError(
                f"{block} is not encrypted", hint="Leave out the cipher and the password, or check the URL."
            )
        return asked
    if not options.secret:
        raise UsageError(
            f"{block} is encrypted with {found}",
            hint="Give the password with --password-file, and in the original's form --encrypt too.",
        )
    there = cipher_kind(found)
    if asked is not None and asked != there:
        raise UsageError(f"{block} is encrypted with {found}, not with {asked.name}", hint=f"Give {found}.")
    return there
