"""A plain twin of the original's encryption, for tests: written from the format's description, sharing no code.

HMAC and PBKDF2 come from hashlib, block ciphers (one block at a time) from the cryptography package; the chaining and
the padding are spelled out.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def hmac_sha1(key: bytes, message: bytes) -> bytes:
    """HMAC of RFC 2104, for keys of at most 64 bytes."""
    key = key.ljust(64, b"\0")
    inner = hashlib.sha1(bytes(byte ^ 0x36 for byte in key) + message).digest()
    return hashlib.sha1(bytes(byte ^ 0x5C for byte in key) + inner).digest()


@functools.cache
def derived(password: bytes, salt: bytes, length: int) -> bytes:
    """PBKDF2 with the original's number of rounds."""
    return hashlib.pbkdf2_hmac("sha1", password, salt, 5000, length)


@dataclass(frozen=True)
class EncryptionTwin:
    """One volume's encryption; ``cipher`` is AES-n-CBC or DES-EDE3-CBC. ``key_length`` 0 is the cipher's own."""

    cipher: str
    password: str
    bucket: str
    prefix: str
    key_length: int = 0

    @property
    def cipher_key_length(self) -> int:
        return 24 if self.cipher.startswith("DES") else int(self.cipher.split("-")[1]) // 8

    @property
    def block_length(self) -> int:
        return 8 if self.cipher.startswith("DES") else 16

    @property
    def key(self) -> bytes:
        salt = f"{self.bucket}/{self.prefix}".encode()
        return derived(self.password.encode(), salt, self.key_length or self.cipher_key_length)

    @property
    def iv_key(self) -> bytes:
        return derived(self.key, self.key, len(self.key))

    def iv(self, block: int) -> bytes:
        first = self.iv_key[: self.block_length]
        text = f"{block:08x}".encode() + bytes(8)
        return self._one(self.iv_key, bytes(a ^ b for a, b in zip(first, text, strict=False)))

    def encrypt(self, block: int, data: bytes) -> tuple[bytes, str]:
        """Return the body, and the signature without quotes."""
        length = self.block_length
        missing = length - len(data) % length
        data += bytes([missing] * missing)
        body, last = b"", self.iv(block)
        for start in range(0, len(data), length):
            mixed = int.from_bytes(data[start : start + length]) ^ int.from_bytes(last)
            last = self._one(self.key, mixed.to_bytes(length))
            body += last
        return body, hmac_sha1(self.key, f"{block:08x}{self.cipher}".encode() + body).hex()

    def _one(self, key: bytes, data: bytes) -> bytes:
        algorithm = TripleDES if self.cipher.startswith("DES") else algorithms.AES
        # Of one block, CBC with an IV of zeros is the cipher itself.
        zeros = bytes(self.block_length)
        return Cipher(algorithm(key[: self.cipher_key_length]), modes.CBC(zeros)).encryptor().update(data)
