"""Ciphers of the system's OpenSSL that the cryptography package does not have, or not for long any more.

CBC without padding through ctypes, which releases the GIL, and the addresses of functions for compiled code. Source:
OpenSSL's EVP_EncryptInit(3).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools

from s3backer.errors import UsageError


@functools.cache
def _library() -> ctypes.CDLL | None:
    for name in (ctypes.util.find_library("crypto"), "libcrypto.so.3", "libcrypto.so.1.1"):
        if not name:
            continue
        try:
            library = ctypes.CDLL(name)
            library.EVP_get_cipherbyname.argtypes = [ctypes.c_char_p]
            library.EVP_get_cipherbyname.restype = ctypes.c_void_p
            library.EVP_CIPHER_CTX_new.argtypes = []
            library.EVP_CIPHER_CTX_new.restype = ctypes.c_void_p
            library.EVP_CIPHER_CTX_free.argtypes = [ctypes.c_void_p]
            library.EVP_CIPHER_CTX_free.restype = None
            library.EVP_CIPHER_CTX_set_padding.argtypes = [ctypes.c_void_p, ctypes.c_int]
            library.EVP_CipherInit_ex.argtypes = [
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_char_p,
                ctypes.c_char_p,
                ctypes.c_int,
            ]
            library.EVP_CipherUpdate.argtypes = [
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.POINTER(ctypes.c_int),
                ctypes.c_char_p,
                ctypes.c_int,
            ]
        except (OSError, AttributeError):
            continue
        return library
    return None


def functions(*names: str) -> tuple[int, ...]:
    """Return the addresses of functions, for compiled code. UsageError where one is missing."""
    library = _library()
    try:
        return tuple(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names)
    except AttributeError:
        raise UsageError(
            "this needs the system's libcrypto of version 1.1 or 3, which was not found",
            hint="Install it: apt install libssl3.",
        ) from None


def aes_256_gcm() -> int:
    """Return libcrypto's description of the cipher. UsageError where it does not have it."""
    (address,) = functions("EVP_aes_256_gcm")
    return int(ctypes.CFUNCTYPE(ctypes.c_void_p)(address)() or 0)


def check(name: str) -> None:
    """Raise UsageError where this machine's libcrypto does not have the cipher."""
    library = _library()
    if library is None:
        raise UsageError(
            f"{name} needs the system's libcrypto, which was not found", hint="Install it: apt install libssl3."
        )
    if not library.EVP_get_cipherbyname(name.encode()):
        raise UsageError(f"this machine's libcrypto has no {name}", hint="Use a libcrypto that has it.")


def cbc(name: str, key: bytes, iv: bytes, data: bytes, *, encrypt: bool) -> bytes:
    """Encrypt or decrypt whole cipher blocks in CBC mode; ``check`` must have accepted the name."""
    library = _library()
    assert library is not None
    context = library.EVP_CIPHER_CTX_new()
    if not context:
        raise MemoryError
    try:
        result = ctypes.create_string_buffer(len(data) + 32)
        length = ctypes.c_int()
        cipher = library.EVP_get_cipherbyname(name.encode())
        if (
            not library.EVP_CipherInit_ex(context, cipher, None, key, iv, int(encrypt))
            or not library.EVP_CIPHER_CTX_set_padding(context, 0)
            or not library.EVP_CipherUpdate(context, result, ctypes.byref(length), data, len(data))
            or length.value != len(data)
        ):
            raise UsageError(f"libcrypto refuses to use {name}", hint="It may be disabled on this machine.")
        return result.raw[: length.value]
    finally:
        library.EVP_CIPHER_CTX_free(context)
