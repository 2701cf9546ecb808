"""What is encoded comes back; whatever else is decoded gives a block or BadBlock, in little memory."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from s3backer.codec.block import BadBlock, BlockCodec, WrongSignature
from s3backer.codec.compression import Compression
from s3backer.codec.encryption import MAX_KEY_LENGTH, SIGNATURE_METADATA, BlockCipher, cipher_kind
from s3backer.errors import UsageError
from tests.support.encryption_twin import EncryptionTwin, hmac_sha1

ROOT = Path(__file__).resolve().parents[2]
AES = ("AES-128-CBC", "AES-192-CBC", "AES-256-CBC")
WITH_TWIN = (*AES, "DES-EDE3-CBC")
CIPHERS = (
    *WITH_TWIN,
    "SM4-CBC",
    *(f"{family}-{bits}-CBC" for family in ("ARIA", "CAMELLIA") for bits in (128, 192, 256)),
)
PASSWORD, BUCKET, PREFIX = "Paßwort", "bucket", "pre/fix/"

blocks = st.integers(0, 2**32 - 2)
sizes = st.integers(9, 17).map(lambda bits: 1 << bits)
compressions = st.one_of(
    st.none(),
    st.builds(Compression, st.just("deflate"), st.none() | st.integers(-1, 9)),
    st.builds(Compression, st.just("zstd"), st.none() | st.integers(-7, 19)),
)


@functools.cache
def cipher_of(name: str, key_length: int = 0, password: str = PASSWORD) -> BlockCipher:
    """Return a cipher; deriving its keys takes long."""
    return BlockCipher(cipher_kind(name), password, f"{BUCKET}/{PREFIX}", key_length=key_length)


@st.composite
def ciphers(draw: st.DrawFn, names: tuple[str, ...] = CIPHERS) -> BlockCipher:
    name = draw(st.sampled_from(names))
    length = draw(st.just(0) | st.integers(cipher_kind(name).key_length, MAX_KEY_LENGTH))
    return cipher_of(name, length)


codecs = st.builds(BlockCodec, compressions, st.none() | ciphers())


def content(kind: str, seed: int, size: int) -> bytes:
    """Return a block of noise, of text, of one byte, or half noise."""
    source = random.Random(seed)
    if kind == "noise":
        return source.randbytes(size)
    if kind == "text":
        return (b"%d bottles, " % seed * size)[:size]
    if kind == "byte":
        return source.randbytes(1) * size
    return source.randbytes(size // 2).ljust(size, b"\0")


kinds = st.sampled_from(["noise", "text", "byte", "half"])


@given(codecs, blocks, sizes, kinds, st.integers(0, 2**32))
def test_what_is_encoded_comes_back(codec: BlockCodec, block: int, size: int, kind: str, seed: int) -> None:
    data = content(kind, seed, size)
    encoded = codec.encode(block, data)
    assert codec.decode(block, size, bytes(encoded.body), encoded.content_encoding, encoded.metadata) == data
    # Any volume without encryption reads any compression; an encrypted one with the same cipher as well.
    other = BlockCodec(None, codec.cipher)
    assert other.decode(block, size, bytes(encoded.body), encoded.content_encoding, encoded.metadata) == data
    assert codec.encode(block, data) == encoded
    assert encoded.content_encoding == codec.content_encoding


@pytest.mark.parametrize("name", CIPHERS)
@pytest.mark.parametrize("compression", [None, Compression("deflate"), Compression("zstd", 22)])
def test_every_cipher(name: str, compression: Compression | None) -> None:
    codec = BlockCodec(compression, cipher_of(name))
    data = content("half", 1, 4096)
    encoded = codec.encode(5, data)
    assert data not in bytes(encoded.body)
    assert codec.decode(5, 4096, bytes(encoded.body), encoded.content_encoding, encoded.metadata) == data
    with pytest.raises(WrongSignature):
        codec.decode(6, 4096, bytes(encoded.body), encoded.content_encoding, encoded.metadata)


@given(
    name=st.sampled_from(WITH_TWIN),
    key_length=st.sampled_from([0, 32, 64]),
    block=blocks,
    data=st.binary(max_size=100) | st.builds(content, kinds, st.integers(0, 9), st.sampled_from([512, 4096])),
)
def test_encryption_is_that_of_the_twin(name: str, key_length: int, block: int, data: bytes) -> None:
    twin = EncryptionTwin(name, PASSWORD, BUCKET, PREFIX, key_length)
    body, signature = twin.encrypt(block, data)
    cipher = cipher_of(name, key_length)
    assert cipher.encrypt(block, data) == (body, f'"{signature}"')
    assert cipher.decrypt(block, body, f'"{signature}"') == data


@pytest.mark.parametrize("length", [1, 15, 65])
def test_key_lengths_that_cannot_be(length: int) -> None:
    with pytest.raises(UsageError, match=f"key length of {length} bytes"):
        BlockCipher(cipher_kind("AES-128-CBC"), "x", "y/", key_length=length)


def test_passwords_with_any_bytes() -> None:
    """What a password file holds need not be text."""
    raw = b"caf\xe9"
    kind = cipher_kind("AES-128-CBC")
    as_text = BlockCipher(kind, raw.decode("utf-8", "surrogateescape"), "b/")
    assert as_text.encrypt(1, b"x") == BlockCipher(kind, raw, "b/").encrypt(1, b"x")


@given(
    ciphers(),
    st.sampled_from([None, Compression("deflate"), Compression("zstd")]),
    blocks,
    st.integers(0),
    st.integers(0, 7),
)
def test_a_flipped_bit_is_seen(
    cipher: BlockCipher, compression: Compression | None, block: int, byte: int, bit: int
) -> None:
    codec = BlockCodec(compression, cipher)
    encoded = codec.encode(block, content("text", 1, 512))
    body = bytearray(encoded.body)
    body[byte % len(body)] ^= 1 << bit
    with pytest.raises(WrongSignature):
        codec.decode(block, 512, bytes(body), encoded.content_encoding, encoded.metadata)


@given(ciphers(), blocks, st.integers(0, 600))
def test_a_cut_is_seen(cipher: BlockCipher, block: int, length: int) -> None:
    codec = BlockCodec(None, cipher)
    encoded = codec.encode(block, content("text", 1, 512))
    assume(length < len(encoded.body))
    with pytest.raises(WrongSignature):
        codec.decode(block, 512, bytes(encoded.body)[:length], encoded.content_encoding, encoded.metadata)


# ── whatever a bucket may hold ───────────────────────────────────────────────────────────────────────────────────

words = st.sampled_from(
    ["deflate", "zstd", "DEFLATE", "gzip", "encrypt-", "encrypt-AES-128-CBC", "encrypt-aes128", "encrypt-ARIA-128-CBC"]
)
encodings = st.text(max_size=40) | st.lists(words, max_size=3).map(", ".join)
signatures = st.text(max_size=50) | st.text("0123456789abcdefABCDEF", min_size=40, max_size=40).map('"{}"'.format)
metadata_of_strangers = st.dictionaries(st.just(SIGNATURE_METADATA) | st.text(max_size=5), signatures, max_size=2)


def decoded(codec: BlockCodec, size: int, body: bytes, encoding: str, metadata: dict[str, str]) -> bytes | None:
    """Return what a body gives, None where it is refused; any other exception fails the test."""
    try:
        data = codec.decode(3, size, body, encoding, metadata)
    except BadBlock as error:
        assert str(error) and error.hint
        return None
    assert isinstance(data, bytes) and len(data) == size
    return data


def zstd_head(tail: bytes) -> bytes:
    return b"\x28\xb5\x2f\xfd" + tail


bodies = (
    st.binary(max_size=600)
    | st.binary(max_size=600).map(zlib.compress)
    | st.binary(max_size=600).map(zstandard.compress)
    | st.binary(max_size=60).map(zstd_head)
)


@settings(max_examples=400)
@given(st.sampled_from(["", "AES-128-CBC", "ARIA-128-CBC"]), bodies, encodings, metadata_of_strangers, encodings)
def test_anything_gives_a_block_or_is_refused(
    name: str, body: bytes, encoding: str, metadata: dict[str, str], assumed: str
) -> None:
    codec = BlockCodec(None, cipher_of(name) if name else None, assumed)
    data = decoded(codec, 512, body, encoding, metadata)
    # Nobody guesses a signature.
    assert data is None or not name


@settings(max_examples=200)
@given(st.sampled_from(["", "deflate", "zstd"]), st.sampled_from([b"\x28\xb5\x2f\xfd", b"\x78\x9c", b""]), st.data())
def test_what_is_signed_need_not_be_a_block(compression: str, head: bytes, data: st.DataObject) -> None:
    """The holder of the password may have written anything: it is a block or refused as well."""
    body, signature = cipher_of("AES-128-CBC").encrypt(3, head + data.draw(st.binary(max_size=600)))
    names = [*([compression] if compression else []), "encrypt-AES-128-CBC"]
    codec = BlockCodec(None, cipher_of("AES-128-CBC"))
    decoded(codec, 512, body, ", ".join(names), {SIGNATURE_METADATA: signature})


@given(st.sampled_from(WITH_TWIN), st.binary(max_size=64) | st.integers(0, 4).map(lambda n: bytes(16 * n)))
@example("AES-128-CBC", b"")
@example("DES-EDE3-CBC", b"")
@example("AES-128-CBC", b"123")
def test_what_is_signed_need_not_be_a_ciphertext(name: str, body: bytes) -> None:
    twin = EncryptionTwin(name, PASSWORD, BUCKET, PREFIX)
    signature = hmac_sha1(twin.key, f"{3:08x}{name}".encode() + body).hex()
    with pytest.raises(BadBlock):
        BlockCodec(None, cipher_of(name)).decode(3, 512, body, f"encrypt-{name}", {SIGNATURE_METADATA: signature})


@given(st.sampled_from(WITH_TWIN), st.integers(0, 20), st.integers(0, 16))
@example("AES-128-CBC", 16, 16)
@example("AES-128-CBC", 16, 15)
@example("AES-128-CBC", 0, 16)
@example("AES-128-CBC", 17, 16)
def test_only_the_right_padding_is_taken(name: str, value: int, count: int) -> None:
    twin = EncryptionTwin(name, PASSWORD, BUCKET, PREFIX)
    length = twin.block_length
    data = content("text", 1, 512)
    # The twin's own padding is the last block, which is cut off again, and signed so.
    tail = b"\0" * (length - min(count, length)) + bytes([value]) * min(count, length)
    body = twin.encrypt(3, data + tail)[0][:-length]
    signature = hmac_sha1(twin.key, f"{3:08x}{name}".encode() + body).hex()
    codec = BlockCodec(None, cipher_of(name))
    metadata = {SIGNATURE_METADATA: signature}
    if value == length <= count:
        assert codec.decode(3, 512, body, f"encrypt-{name}", metadata) == data
    else:
        with pytest.raises(BadBlock):
            codec.decode(3, 512, body, f"encrypt-{name}", metadata)


def test_a_padding_is_not_longer_than_a_cipher_block() -> None:
    twin = EncryptionTwin("AES-128-CBC", PASSWORD, BUCKET, PREFIX)
    body = twin.encrypt(3, bytes([17]) * 64)[0][:-16]
    signature = hmac_sha1(twin.key, b"00000003AES-128-CBC" + body).hex()
    with pytest.raises(BadBlock, match="padding"):
        BlockCodec(None, cipher_of("AES-128-CBC")).decode(
            3, 64 - 17, body, "encrypt-AES-128-CBC", {SIGNATURE_METADATA: signature}
        )


@settings(max_examples=200)
@given(st.sampled_from(["deflate", "zstd"]), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4))
@example("zstd", [])
def test_damaged_compression_gives_a_block_or_is_refused(name: str, damage: list[tuple[int, int]]) -> None:
    data = content("half", 1, 512)
    body = bytearray(Compression(name).compress(data))
    for position, value in damage:
        body[position % len(body)] = value
    found = decoded(BlockCodec(), 512, bytes(body), name, {})
    # deflate has a checksum; the original's zstd has none.
    assert found == data if not damage else name == "zstd" or found in (None, data)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────


def deflate_bomb() -> bytes:
    stream = zlib.compressobj(1)
    zeros = bytes(1 << 20)
    return b"".join(stream.compress(zeros) for _ in range(256)) + stream.flush()


def zstd_bomb() -> bytes:
    """A gigabyte, whose frame says so."""
    stream = zstandard.ZstdCompressor().compressobj(size=1 << 30)
    zeros = bytes(1 << 20)
    return b"".join(stream.compress(zeros) for _ in range(1024)) + stream.flush()


def zstd_bomb_that_is_silent() -> bytes:
    """A gigabyte of blocks of 128 KiB, four bytes each; a window of 8 MiB and no content size."""
    run = (128 << 10 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return zstd_head(b"\0" + bytes([13 << 3])) + run * 8192


def zstd_bomb_that_lies() -> bytes:
    """The same, said to be a block."""
    run = (128 << 10 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return zstd_head(bytes([2 << 6 | 1 << 5]) + (4096).to_bytes(4, "little")) + run * 8192


def zstd_bomb_of_many() -> bytes:
    """Many frames."""
    return zstandard.compress(bytes(1 << 20)) * 1024


def zstd_wide_window() -> bytes:
    """A block that wants a window of 128 MiB."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(bytes(4096)) + stream.flush()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "deflate": ("deflate", deflate_bomb),
    "zstd": ("zstd", zstd_bomb),
    "zstd, silent": ("zstd", zstd_bomb_that_is_silent),
    "zstd, lying": ("zstd", zstd_bomb_that_lies),
    "zstd, many": ("zstd", zstd_bomb_of_many),
    "zstd, wide": ("zstd", zstd_wide_window),
}
#: What decoding may take beside the body, in bytes: the library's own window, and little else.
ALLOWED = 24 << 20

CHILD = """
import resource, sys
from s3backer.codec.block import BadBlock, BlockCodec
from s3backer.codec.compression import Compression
codec, name, body = BlockCodec(), sys.argv[1], sys.stdin.buffer.read()
for small in (Compression("zstd"), Compression("deflate")):
    codec.decode(0, 4096, small.compress(bytes(4096)), small.name, {})
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, 2 * (pages * resource.getpagesize() + int(sys.argv[2]),))
try:
    codec.decode(0, 4096, body, name, {})
except BadBlock as error:
    print(error)
"""


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_little_memory(kind: str) -> None:
    """In a process of its own, which may not take more."""
    name, make = BOMBS[kind]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, name, str(ALLOWED)], input=make(), cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.strip(), "it was accepted"
    assert b"llocation" not in done.stdout, "only the limit kept it from taking more"


def test_threads_do_not_meet() -> None:
    """Compressors and decompressors have state of their own."""
    together = threading.Barrier(8)
    codecs = [BlockCodec(Compression("zstd", 1), cipher) for cipher in (None, cipher_of("AES-256-CBC"))]

    def work(seed: int) -> None:
        data = content("half", seed, 128 << 10)
        for codec in codecs:
            together.wait(60)
            for _ in range(20):
                encoded = codec.encode(seed, data)
                body = bytes(encoded.body)
                assert codec.decode(seed, len(data), body, encoded.content_encoding, encoded.metadata) == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
