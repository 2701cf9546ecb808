"""Objects that the original wrote, byte for byte, and what a reader has to accept and to reject."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import zstandard

from s3backer.codec.block import BadBlock, BlockCodec, WrongSignature, parse_encoding
from s3backer.codec.compression import Compression, decompress
from s3backer.codec.encryption import SIGNATURE_METADATA, BlockCipher, find_cipher
from tests.support.encodings import DEFLATED, PLAIN, PLAIN_OBJECTS, SIZE, ZSTD, raw_deflate
from tests.support.encryption_twin import EncryptionTwin

PASSWORD, BUCKET = "pw0rd", "bkt"


@dataclass(frozen=True)
class Vector:
    """A block under the password ``pw0rd`` in the bucket ``bkt``; texts are hex. ``content`` is followed by zeros."""

    prefix: str
    cipher: str
    block: int
    content: bytes
    size: int
    key: str
    iv: str
    signature: str
    body: str = ""
    iv_key: str = ""
    #: The block compressed, where the body is not known.
    compressed: str = ""
    compression: str = "deflate"
    key_length: int = 0

    @property
    def plain(self) -> bytes:
        return self.content.ljust(self.size, b"\0")

    @property
    def content_encoding(self) -> str:
        return f"{self.compression}, encrypt-{self.cipher}"

    @property
    def block_cipher(self) -> BlockCipher:
        kind = find_cipher(self.cipher)
        assert kind is not None
        return BlockCipher(kind, PASSWORD, f"{BUCKET}/{self.prefix}", key_length=self.key_length)

    @property
    def twin(self) -> EncryptionTwin:
        return EncryptionTwin(self.cipher, PASSWORD, BUCKET, self.prefix, self.key_length)


VECTORS = {
    "A": Vector(
        "p/",
        "AES-128-CBC",
        0,
        b"HELLO",
        65536,
        key="864b7f5089465250c85eefeaf1042d44",
        iv_key="211468a15950a1874bf49067c9c5fdce",
        iv="842edea995d4f98608b1d08f88c24fe8",
        body="3e9e34c43abd8aceeb24cec0181727fd54c6f1735ed518ffaea6ca2fb771bd122a1412e74959e6adbfddb45defd57df3"
        "63709765d0f791c42add6943f05613569bd783808907eb99292a6b989d7ffc1c5d31efc6718832dc8cfcd63e3a498b4a",
        signature="4551ae24d44c3fefe6ad23b66f0b959a0379aede",
    ),
    "B": Vector(
        "n-AES-256-CBC/",
        "AES-256-CBC",
        2,
        b"data-n-AES-256-CBC",
        4096,
        key="ece8ea92c697a0d705b1a39077923d5bbb16fb64c2fb3a4bb40de47f43f2a361",
        iv_key="130b895f1566244cc3d1fd05a3e64b588ee076f31cdebe705d36dffb225e3984",
        iv="e00fb013961a9cf8a263f882507a0c03",
        body="e8c7691e345ad2dd9c31d13c0d077f72464b6ad1d7de8f1d28e70923b593511d"
        "2027751bc8fa9ad458507507ef579dad11404910c9b3531e655c7134d7070b6e",
        signature="7b9f6bf6cc155d50881a28e8778987fb5a14e3b9",
    ),
    "C": Vector(
        "n-DES-EDE3-CBC/",
        "DES-EDE3-CBC",
        2,
        b"data-n-DES-EDE3-CBC",
        4096,
        key="da62e3427f42aa9bdab36d2c63e441e9ede666c6366dfde8",
        iv="9051a5a8d7be59ea",
        compressed="789cedc1b10d00101000400b7d6503fc042690a855f68f3de4eef6ba2b4e8c9c91236bf4d60b000000f09707f9990562",
        signature="7dc494ab7c442c7b7d8040962f6c14cc3ad03469",
    ),
    "D": Vector(
        "k64/",
        "AES-128-CBC",
        2,
        b"data-k64",
        4096,
        key_length=64,
        key="874e1a7ff59907d76e5dbbb7d4a3c8c6",
        iv_key="9eb20f9837839006aa1fcb9168c0f978",
        iv="240da936e0515aeb881ebbf5dbd1ecaa",
        body="a2b985cb5a702912ac8caf0f17b828d81ea1244089d2e08ae87181c5a06d3178c3375d17403535c8fd6618a897292c97",
        signature="b0cfb42e89055c8319da1ae08f00c911d8aea726",
    ),
    "E": Vector(
        "zenc/",
        "AES-128-CBC",
        2,
        b"data-zenc",
        4096,
        compression="zstd",
        key="6a1682dd988903a19ebe69542f77078a",
        iv="ee222cc802e871fd66b7f690e4bf39dd",
        body="f739633266e15000c0a1a3e068ba1ac4bfa8d0977aa8c8c0848a35bbcd55506d",
        signature="4af4bb3c96fe586d56e841e4e0411704bca00d44",
    ),
}


def short(value: object) -> str:
    """Name a parameter in a test's name; a body would be long."""
    return value if isinstance(value, str) else str(value) if isinstance(value, bool) else type(value).__name__


everyone = pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)


@everyone
def test_keys_and_initialization_vectors(vector: Vector) -> None:
    twin = vector.twin
    assert twin.key.hex().startswith(vector.key)
    assert twin.iv_key.hex().startswith(vector.iv_key)
    assert twin.iv(vector.block).hex() == vector.iv
    assert vector.block_cipher.initialization_vector(vector.block).hex() == vector.iv


def test_the_initialization_vector_belongs_to_the_block() -> None:
    cipher = VECTORS["A"].block_cipher
    assert cipher.initialization_vector(3).hex() == "86a6d79d74bbf96bd1d785ec258eb1fd"
    assert VECTORS["A"].twin.iv(3).hex() == "86a6d79d74bbf96bd1d785ec258eb1fd"


@everyone
def test_what_the_original_wrote_is_read_and_written(vector: Vector) -> None:
    cipher = vector.block_cipher
    if vector.body:
        compressed = cipher.decrypt(vector.block, bytes.fromhex(vector.body), f'"{vector.signature}"')
    else:
        compressed = bytes.fromhex(vector.compressed)
    body, signature = cipher.encrypt(vector.block, compressed)
    assert signature == f'"{vector.signature}"'
    assert body.hex() == (vector.body or vector.twin.encrypt(vector.block, compressed)[0].hex())
    metadata = {SIGNATURE_METADATA: signature}
    codec = BlockCodec(cipher=cipher)
    assert codec.decode(vector.block, vector.size, body, vector.content_encoding, metadata) == vector.plain
    # What compresses may make other bytes in another version; with these, ours is the whole object.
    codec = BlockCodec(Compression(vector.compression), cipher)
    encoded = codec.encode(vector.block, vector.plain)
    assert encoded.content_encoding == vector.content_encoding
    assert (
        decompress(
            vector.compression,
            cipher.decrypt(vector.block, bytes(encoded.body), encoded.metadata[SIGNATURE_METADATA]),
            vector.size,
        )
        == vector.plain
    )
    if Compression(vector.compression).compress(vector.plain) == compressed:
        assert (encoded.body, encoded.metadata) == (body, metadata)


# ── what a reader accepts ────────────────────────────────────────────────────────────────────────────────────────

BLOCK = 7


def codec_for(cipher: str = "", assumed: str = "", *, key_length: int = 0, password: str = PASSWORD) -> BlockCodec:
    kind = find_cipher(cipher) if cipher else None
    return BlockCodec(
        cipher=BlockCipher(kind, password, f"{BUCKET}/p/", key_length=key_length) if kind else None, assumed=assumed
    )


def encrypted(data: bytes, cipher: str = "AES-128-CBC") -> tuple[bytes, Mapping[str, str]]:
    """Return an object's body and metadata, as the twin makes them."""
    body, signature = EncryptionTwin(cipher, PASSWORD, BUCKET, "p/").encrypt(BLOCK, data)
    return body, {SIGNATURE_METADATA: f'"{signature}"'}


@pytest.mark.parametrize(("encoding", "body", "accepted"), PLAIN_OBJECTS, ids=short)
def test_plain_volumes(encoding: str, body: bytes, accepted: bool) -> None:
    if accepted:
        assert codec_for().decode(BLOCK, SIZE, body, encoding, {}) == PLAIN
    else:
        with pytest.raises(BadBlock) as caught:
            codec_for().decode(BLOCK, SIZE, body, encoding, {})
        assert str(caught.value) and caught.value.hint


AES_DEFLATED, AES_SIGNED = encrypted(DEFLATED)


def flipped(data: bytes, position: int = 5) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("encoding", "body", "metadata", "volume", "accepted"),
    [
        ("deflate, encrypt-AES-128-CBC", AES_DEFLATED, AES_SIGNED, "AES-128-CBC", True),
        ("DEFLATE,ENCRYPT-aes-128-cbc", AES_DEFLATED, AES_SIGNED, "AES-128-CBC", True),
        ("deflate\tEncrypt-Aes-128-Cbc ,", AES_DEFLATED, AES_SIGNED, "AES-128-CBC", True),
        # Aliases, which the original writes and cannot read.
        ("deflate, encrypt-AES128", AES_DEFLATED, AES_SIGNED, "AES-128-CBC", True),
        ("deflate, encrypt-AES-128-CBC", AES_DEFLATED, AES_SIGNED, "aes128", True),
        ("deflate, encrypt-DES3", *encrypted(DEFLATED, "DES-EDE3-CBC"), "DES-EDE3-CBC", True),
        ("deflate, encrypt-DES-EDE3-CBC", *encrypted(DEFLATED, "DES-EDE3-CBC"), "DES3", True),
        # Nothing but encrypted, or compressed in the other way.
        ("encrypt-AES-128-CBC", *encrypted(PLAIN), "AES-128-CBC", True),
        ("zstd, encrypt-AES-128-CBC", *encrypted(ZSTD), "AES-128-CBC", True),
        ("encrypt-AES-128-CBC", AES_DEFLATED, AES_SIGNED, "AES-128-CBC", False),
        ("encrypt-AES-128-CBC", *encrypted(PLAIN[:-1]), "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", *encrypted(raw_deflate()), "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", *encrypted(DEFLATED + b"\0"), "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", *encrypted(zlib.compress(PLAIN * 2)), "AES-128-CBC", False),
        ("deflate, deflate, encrypt-AES-128-CBC", *encrypted(zlib.compress(DEFLATED)), "AES-128-CBC", False),
        ("encrypt-AES-128-CBC, deflate", AES_DEFLATED, AES_SIGNED, "AES-128-CBC", False),
        ("encrypt-AES-128-CBC, encrypt-AES-128-CBC", AES_DEFLATED, AES_SIGNED, "AES-128-CBC", False),
        ("deflate, encrypt-AES-256-CBC", *encrypted(DEFLATED, "AES-256-CBC"), "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CTR", AES_DEFLATED, AES_SIGNED, "AES-128-CBC", False),
        ("deflate, encrypt-", AES_DEFLATED, AES_SIGNED, "AES-128-CBC", False),
        # Not encrypted, and the other way round.
        ("", PLAIN, {}, "AES-128-CBC", False),
        ("", PLAIN, AES_SIGNED, "AES-128-CBC", False),
        ("deflate", DEFLATED, {}, "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", AES_DEFLATED, AES_SIGNED, "", False),
        # Signatures.
        ("deflate, encrypt-AES-128-CBC", AES_DEFLATED, {}, "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", AES_DEFLATED, {SIGNATURE_METADATA: ""}, "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", AES_DEFLATED, {SIGNATURE_METADATA: '""'}, "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", AES_DEFLATED, {SIGNATURE_METADATA: f'"{"0" * 40}"'}, "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", flipped(AES_DEFLATED), AES_SIGNED, "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", AES_DEFLATED[:-16], AES_SIGNED, "AES-128-CBC", False),
        ("deflate, encrypt-AES-128-CBC", b"", AES_SIGNED, "AES-128-CBC", False),
    ],
    ids=short,
)
def test_encrypted_volumes(
    encoding: str, body: bytes, metadata: Mapping[str, str], volume: str, accepted: bool
) -> None:
    codec = codec_for(volume)
    if accepted:
        assert codec.decode(BLOCK, SIZE, body, encoding, metadata) == PLAIN
    else:
        with pytest.raises(BadBlock) as caught:
            codec.decode(BLOCK, SIZE, body, encoding, metadata)
        assert str(caught.value) and caught.value.hint


@pytest.mark.parametrize(
    ("block", "codec"),
    [
        (BLOCK + 1, codec_for("AES-128-CBC")),
        (BLOCK, codec_for("AES-128-CBC", password="other")),
        (BLOCK, codec_for("AES-128-CBC", key_length=64)),
    ],
    ids=["another block", "another password", "another key length"],
)
def test_a_signature_belongs_to_block_password_and_key_length(block: int, codec: BlockCodec) -> None:
    with pytest.raises(WrongSignature):
        codec.decode(block, SIZE, AES_DEFLATED, "deflate, encrypt-AES-128-CBC", AES_SIGNED)


def test_the_signature_covers_the_ciphers_name() -> None:
    """Not what the header calls it: an AES-128 signature cannot be passed off as ARIA's."""
    body, signed = encrypted(DEFLATED)
    with pytest.raises(WrongSignature):
        codec_for("ARIA-128-CBC").decode(BLOCK, SIZE, body, "deflate, encrypt-ARIA-128-CBC", signed)


@pytest.mark.parametrize("text", ["{}", '"{}"', ' "{}" '])
@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_signatures_with_and_without_quotes(text: str, change) -> None:
    signature = change(AES_SIGNED[SIGNATURE_METADATA].strip('"'))
    metadata = {SIGNATURE_METADATA: text.format(signature)}
    codec = codec_for("AES-128-CBC")
    assert codec.decode(BLOCK, SIZE, AES_DEFLATED, "deflate, encrypt-AES-128-CBC", metadata) == PLAIN


@pytest.mark.parametrize(
    ("encoding", "assumed", "body", "metadata", "accepted"),
    [
        ("", "deflate", DEFLATED, {}, True),
        ("", "DEFLATE", DEFLATED, {}, True),
        ("", "deflate", PLAIN, {}, False),
        ("zstd", "deflate", ZSTD, {}, True),
        ("", "deflate,encrypt-AES-128-CBC", AES_DEFLATED, AES_SIGNED, True),
        ("", "deflate", AES_DEFLATED, AES_SIGNED, False),
        ("", "gzip", PLAIN, {}, False),
    ],
    ids=short,
)
def test_what_is_assumed_of_objects_that_do_not_say_how_they_are_stored(
    encoding: str, assumed: str, body: bytes, metadata: Mapping[str, str], accepted: bool
) -> None:
    codec = codec_for("AES-128-CBC" if metadata else "", assumed)
    if accepted:
        assert codec.decode(BLOCK, SIZE, body, encoding, metadata) == PLAIN
    else:
        with pytest.raises(BadBlock):
            codec.decode(BLOCK, SIZE, body, encoding, metadata)


def test_a_content_encoding_is_read_from_its_end() -> None:
    found = parse_encoding("zstd,encrypt-Camellia-128-cbc")
    assert (found.compression, found.cipher) == ("zstd", "Camellia-128-cbc")
    assert parse_encoding("") == parse_encoding(" , ")


@pytest.mark.parametrize(
    ("volume", "encoding", "body", "reason"),
    [
        ("AES-128-CBC", "", PLAIN, "not encrypted, though this volume is"),
        ("", "deflate, encrypt-AES-128-CBC", AES_DEFLATED, "encrypted with AES-128-CBC"),
        ("AES-128-CBC", "deflate, encrypt-AES-256-CBC", AES_DEFLATED, "with AES-256-CBC, not with AES-128-CBC"),
        ("AES-128-CBC", "deflate, encrypt-AES-128-CBC", AES_DEFLATED, "no signature"),
        ("", "gzip", PLAIN, "'gzip', which is not one of s3backer's"),
        ("", "", PLAIN[:-1], "4095 bytes, a block of this volume has 4096"),
        ("", "deflate", DEFLATED[:-1], "decompressed with deflate: it is cut short"),
        ("", "zstd", zstandard.compress(PLAIN * 2), "decompressed with zstd: it is longer than 4096 bytes"),
    ],
    ids=short,
)
def test_what_is_wrong_is_said(volume: str, encoding: str, body: bytes, reason: str) -> None:
    with pytest.raises(BadBlock, match=reason):
        codec_for(volume).decode(BLOCK, SIZE, body, encoding, {})
