"""Keys of an encrypted volume's journal: one a file, so that a file that is used again never has the same.

key    HKDF-SHA256(the volume's key, the file's salt, "s3backer journal")[:32]     AES-256-GCM
check  the 16 bytes behind it, in the header: a wrong key is recognised before anything is decrypted
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from s3backer.codec import libcrypto
from s3backer.errors import WrongPassword
from s3backer.journal.format import TAG_BYTES, Header, Record
from s3backer.stores.base import Buffer

KEY_BYTES = 32
_CHECK_BYTES = 16
_PURPOSE = b"s3backer journal"


@dataclass(frozen=True, slots=True)
class FileKey:
    """What is derived for one file."""

    key: bytes
    check: bytes

    @classmethod
    def derive(cls, volume_key: bytes, salt: bytes) -> FileKey:
        """Derive it. Source: RFC 5869."""
        extracted = hmac.digest(salt, volume_key, hashlib.sha256)
        first = hmac.digest(extracted, _PURPOSE + b"\1", hashlib.sha256)
        second = hmac.digest(extracted, first + _PURPOSE + b"\2", hashlib.sha256)
        return cls(first, second[:_CHECK_BYTES])


def key_of(header: Header, volume_key: bytes | None) -> bytes:
    """Return a file's key, b"" where nothing is encrypted; WrongPassword where it was written with another key."""
    if not header.encrypted:
        return b""
    derived = FileKey.derive(volume_key or b"", header.salt)
    if volume_key is None or not hmac.compare_digest(derived.check, header.key_check):
        raise WrongPassword(
            f"the journal of {header.url} is encrypted with another password",
            hint="Mount it with the password with which it was mounted last.",
        )
    return derived.key


def crypto() -> tuple[int, ...]:
    """Return what Journal.encrypt_with wants. UsageError without a libcrypto that has it."""
    names = ("EncryptInit_ex", "EncryptUpdate", "EncryptFinal_ex", "DecryptInit_ex", "DecryptUpdate", "DecryptFinal_ex")
    return (
        *libcrypto.functions("EVP_CIPHER_CTX_new", "EVP_CIPHER_CTX_free", *(f"EVP_{name}" for name in names)),
        *libcrypto.functions("EVP_CIPHER_CTX_ctrl"),
        libcrypto.aes_256_gcm(),
    )


def decrypt(key: bytes, record: Record, head: Buffer, payload: bytes) -> bytes:
    """Return the data of a record; ``head``: its first 56 bytes. ValueError unless it is what was encrypted there."""
    # Imported here, so that the commands' start-up stays quick.
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    assert len(payload) == record.length + TAG_BYTES
    try:
        return AESGCM(key).decrypt(record.number.to_bytes(12, "big"), payload, bytes(head))
    except InvalidTag:
        raise ValueError("its tag is wrong") from None
