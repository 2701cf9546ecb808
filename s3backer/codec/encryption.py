"""The original's encryption of one block: CBC with an IV from the block's number, then HMAC-SHA1.

    salt        BUCKET "/" PREFIX
    key         PBKDF2-HMAC-SHA1(password, salt, 5000 rounds)         KL bytes; the cipher takes its first CKL
    ivkey       PBKDF2-HMAC-SHA1(key, key, 5000 rounds)               KL bytes
    digits      the block's number, 8 lower-case hex digits
    IV          CBC(ivkey[:CKL], iv=ivkey[:IVL], digits and NULs, IVL bytes), without padding
    body        CBC(key[:CKL], IV, data with PKCS#7 padding)
    signature   HMAC-SHA1(key, digits + cipher's name + body), in hex between double quotes, as metadata

CKL and IVL are the cipher's key and block length, KL is CKL unless ``key_length`` says more. The IV does not depend on
the content: the same data in the same block gives the same object. An object that is missing cannot be
authenticated, and an old version of a block carries a valid signature.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import re
from dataclasses import dataclass

from s3backer.codec import libcrypto
from s3backer.errors import UsageError
from s3backer.stores.base import Buffer

SIGNATURE_METADATA = "s3backer-hmac"
DEFAULT_CIPHER = "AES-128-CBC"
MAX_KEY_LENGTH = 64
_ROUNDS = 5000


@dataclass(frozen=True, slots=True)
class CipherKind:
    """A cipher by OpenSSL's name; lengths in bytes."""

    name: str
    key_length: int
    iv_length: int

    @property
    def modern(self) -> bool:
        """Whether it is one to use for something new."""
        return self.name.startswith("AES-")


_KINDS = {
    kind.name: kind
    for kind in (
        *(
            CipherKind(f"{family}-{bits}-CBC", bits // 8, 16)
            for family in ("AES", "CAMELLIA", "ARIA")
            for bits in (128, 192, 256)
        ),
        CipherKind("SM4-CBC", 16, 16),
        CipherKind("DES-EDE3-CBC", 24, 8),
    )
}
#: OpenSSL's other names for them, which the original accepts, writes into the header, and cannot read back.
_ALIASES = {
    "DES3": "DES-EDE3-CBC",
    "SM4": "SM4-CBC",
    **{f"{family}{bits}": f"{family}-{bits}-CBC" for family in ("AES", "CAMELLIA", "ARIA") for bits in (128, 192, 256)},
}


def find_cipher(name: str) -> CipherKind | None:
    """Return the cipher of that name or alias, in any case; None if it is not one of ours."""
    upper = name.upper()
    return _KINDS.get(_ALIASES.get(upper, upper))


def cipher_kind(name: str) -> CipherKind:
    """Return the cipher of that name; UsageError, with the reason, if it cannot be used here."""
    kind = find_cipher(name)
    if kind is None:
        near = difflib.get_close_matches(name.upper(), [*_KINDS, *_ALIASES], 1)
        if re.fullmatch(r"(?i).*-(ctr|cfb[0-9]*|ofb|ecb|gcm|ccm|xts|ocb)", name):
            raise UsageError(f"the cipher {name!r} is not in CBC mode", hint="Use AES-256-CBC or AES-128-CBC.")
        raise UsageError(
            f"there is no cipher {name!r}",
            hint=f"Did you mean {near[0]}?" if near else f"Known are {', '.join(sorted(_KINDS))}.",
        )
    if not kind.modern:
        libcrypto.check(kind.name)
    return kind


class BlockCipher:
    """Encrypts and signs the blocks of one volume. Thread-safe."""

    def __init__(self, kind: CipherKind, password: str | bytes, salt: str, *, key_length: int = 0) -> None:
        length = key_length or kind.key_length
        if not kind.key_length <= length <= MAX_KEY_LENGTH:
            raise UsageError(
                f"a key length of {key_length} bytes does not go with {kind.name}",
                hint=f"Leave it out, or give {kind.key_length} to {MAX_KEY_LENGTH}.",
            )
        secret = password.encode("utf-8", "surrogateescape") if isinstance(password, str) else password
        self.kind = kind
        self.key_length = length
        self._key = hashlib.pbkdf2_hmac("sha1", secret, salt.encode(), _ROUNDS, length)
        self._iv_key = hashlib.pbkdf2_hmac("sha1", self._key, self._key, _ROUNDS, length)

    @property
    def secret(self) -> bytes:
        """What other keys of the volume are derived from."""
        return self._key

    def encrypt(self, block: int, data: bytes) -> tuple[bytes, str]:
        """Return the body and the text of its signature for the object's metadata."""
        padding = self.kind.iv_length - len(data) % self.kind.iv_length
        body = self._cbc(self._key, self.initialization_vector(block), data + bytes([padding]) * padding, encrypt=True)
        return body, f'"{self._signature(block, body)}"'

    def decrypt(self, block: int, body: bytes, signature: str) -> bytes:
        """Return the data; ValueError if the signature or what it protects is wrong."""
        found = re.fullmatch(r'\s*"?([0-9a-fA-F]{40})"?\s*', signature)
        if found is None:
            raise ValueError("its signature is not one")
        if not hmac.compare_digest(found[1].lower(), self._signature(block, body)):
            raise ValueError("its signature is wrong")
        length = self.kind.iv_length
        if not body or len(body) % length:
            raise ValueError("its length is not that of a ciphertext")
        data = self._cbc(self._key, self.initialization_vector(block), body, encrypt=False)
        padding = data[-1]
        if not 1 <= padding <= length or data[-padding:] != bytes([padding]) * padding:
            raise ValueError("its padding is wrong")
        return data[:-padding]

    def initialization_vector(self, block: int) -> bytes:
        """Return the IV of a block."""
        length = self.kind.iv_length
        digits = _digits(block).ljust(16, b"\0")[:length]
        return self._cbc(self._iv_key, self._iv_key[:length], digits, encrypt=True)

    def _cbc(self, key: bytes, iv: bytes, data: bytes, *, encrypt: bool) -> bytes:
        key = key[: self.kind.key_length]
        if not self.kind.modern:
            return libcrypto.cbc(self.kind.name, key, iv, data, encrypt=encrypt)
        # Imported here, so that the commands' start-up stays quick.
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        cipher = Cipher(algorithms.AES(key), modes.CBC(iv))
        return (cipher.encryptor() if encrypt else cipher.decryptor()).update(data)

    def _signature(self, block: int, body: Buffer) -> str:
        return hmac.digest(self._key, b"".join((_digits(block), self.kind.name.encode(), body)), "sha1").hex()


def _digits(block: int) -> bytes:
    return b"%08x" % block
