"""Volumes with every kind of damage, and what a check of them has to find.

Each damage is a function that does something to a ``World`` and writes down what that comes to, so that the world is
the oracle: (kind, key) of each finding, and by what each sound block is verified.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from s3backer.checking.subject import Subject, find_subject
from s3backer.codec.block import BlockCodec
from s3backer.codec.choice import EncodingOptions, choose_codec
from s3backer.codec.encryption import SIGNATURE_METADATA
from s3backer.layouts.classic import (
    BLOCK_CONTENT_TYPE,
    META_SIZE,
    ClassicLayout,
    block_hash,
    block_name,
)
from s3backer.layouts.copy_note import CopyNote
from s3backer.layouts.token import new_token, write_token
from s3backer.opening import VolumeOptions
from tests.support.kept import KeepingStore

BLOCK_SIZE = 1024
PREFIX = "disk/"
PLAIN = EncodingOptions()
ENCRYPTED = EncodingOptions(compress="none", encrypt="AES-128-CBC", password="one")
ENCODINGS = (
    PLAIN,
    EncodingOptions(compress="deflate"),
    EncodingOptions(compress="zstd"),
    ENCRYPTED,
    EncodingOptions(compress="deflate", encrypt="AES-256-CBC", password="two", key_length=40),
)
Found = tuple[str, str]


@dataclass
class World:
    """A volume, and what a check of it has to find: (kind, key) of each finding, and how blocks are verified."""

    encoding: EncodingOptions
    hashed: bool
    blocks: int
    store: KeepingStore
    layout: ClassicLayout
    expected: Counter[Found] = field(default_factory=Counter)
    verified: Counter[str] = field(default_factory=Counter)
    #: Blocks that stand in ``verified``, or that no check can read.
    settled: set[int] = field(default_factory=set)
    #: What has to be said to check it.
    said: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls, encoding: EncodingOptions = PLAIN, *, hashed: bool = False, blocks: int = 24, kept: str = "", seed: int = 1
    ) -> World:
        store = KeepingStore(default=kept)
        codec = choose_codec(encoding, None, bucket=store.bucket, prefix=PREFIX, block="block 0")
        layout = ClassicLayout(
            store, PREFIX, block_size=BLOCK_SIZE, size=blocks * BLOCK_SIZE, codec=codec, hash_prefix=hashed
        )
        source = random.Random(seed)
        for block in range(blocks):
            if block == 0 or source.randrange(4):
                # Neither zeros nor noise: compressed it is shorter, and each byte of that counts.
                layout.write(block, b"%5d" % block + source.randbytes(BLOCK_SIZE - 205) + b"tail" * 50)
        return cls(encoding, hashed, blocks, store, layout)

    @property
    def codec(self) -> BlockCodec:
        return self.layout.codec

    @property
    def secret(self) -> bool:
        return self.codec.cipher is not None

    def present(self) -> list[int]:
        """Return the blocks behind the first that have an object, in order."""
        return [block for block in range(1, self.blocks) if self.layout.key(block) in self.store._objects]

    def find(self, kind: str, key: str) -> None:
        self.expected[kind, key] += 1

    def settle(self, block: int, verified: str = "") -> None:
        self.settled.add(block)
        if verified:
            self.verified[verified] += 1

    def means(self, kept: str) -> str:
        """Return by what a block that is stored as the volume says is verified."""
        if self.secret:
            return "hmac"
        deflated = self.codec.compression is not None and self.codec.compression.name == "deflate"
        return {"md5": "md5", "": "adler32" if deflated else "nothing"}.get(kept, "checksum")

    def options(self) -> VolumeOptions:
        encoding = EncodingOptions(password=self.encoding.password, key_length=self.encoding.key_length)
        return VolumeOptions(block_hash_prefix=self.hashed, encoding=encoding, **self.said)

    def subject(self) -> Subject:
        return find_subject(self.store, PREFIX, self.options())

    def wanted(self) -> tuple[Counter[Found], Counter[str]]:
        """Return the findings and the means of verification that a check must come to."""
        verified = Counter(self.verified)
        for block in range(self.blocks):
            key = self.layout.key(block)
            if block not in self.settled and key in self.store._objects:
                verified[self.means(self.store.kept.get(key, self.store.default))] += 1
        return self.expected, verified


# ── what can be done to a block ──────────────────────────────────────────────────────────────────────────────────


def put_encoded(world: World, block: int, data: bytes, codec: BlockCodec | None = None, **facts: Any) -> None:
    encoded = (codec or world.codec).encode(block, data)
    settings = {"content_encoding": encoded.content_encoding, "metadata": encoded.metadata, **facts}
    world.store.put(world.layout.key(block), encoded.body, content_type=BLOCK_CONTENT_TYPE, **settings)


def data_of(world: World, block: int) -> bytes:
    found = world.layout.read(block)
    assert found is not None
    return found


def flipped_under_a_checksum(world: World, block: int, seed: int) -> None:
    key = world.layout.key(block)
    world.store.kept[key] = "crc64nvme" if seed % 2 else "md5"
    world.store.flip(key, seed % len(world.store._objects[key].body))
    world.find("altered", key)
    world.settle(block)


def flipped_with_nothing_kept(world: World, block: int, seed: int) -> None:
    """What then finds it is the encoding itself; a plain block is a block whatever it holds."""
    key = world.layout.key(block)
    world.store.kept[key] = ""
    compression = world.codec.compression.name if world.codec.compression else ""
    # The checksum at the end of deflate's data; zstd has none as we write it, but a beginning that has to be there.
    world.store.flip(key, 0 if compression == "zstd" else -1)
    if world.secret:
        world.find("signature", key)
    elif compression:
        world.find("compression", key)
    world.settle(block, "" if world.secret or compression else "nothing")


def cut_short(world: World, block: int, seed: int) -> None:
    key = world.layout.key(block)
    found = world.store._objects[key]
    # Of zstd's last bytes a few are not needed to have all of the data.
    body = found.body[: len(found.body) - 40 - seed % 20]
    world.store.put(key, body, content_encoding=found.info.content_encoding, metadata=found.info.metadata)
    kind = "compression" if world.codec.compression else "length"
    world.find("signature" if world.secret else kind, key)
    world.settle(block)


def of_another_length(world: World, block: int, seed: int) -> None:
    put_encoded(world, block, bytes([1 + seed % 200]) * (BLOCK_SIZE // 2 if seed % 2 else BLOCK_SIZE + 1))
    world.find("length", world.layout.key(block))
    world.settle(block)


def far_too_long(world: World, block: int, seed: int) -> None:
    world.store.put(world.layout.key(block), bytes(world.layout.most_stored + 1))
    world.find("length", world.layout.key(block))
    world.settle(block)


def of_an_unknown_encoding(world: World, block: int, seed: int) -> None:
    encoding = ("gzip", "br", "deflate, deflate", "encrypt-", "encrypt-ROT13")[seed % 5]
    put_encoded(world, block, data_of(world, block), content_encoding=encoding)
    world.find("encoding", world.layout.key(block))
    world.settle(block)


def with_the_wrong_encryption(world: World, block: int, seed: int) -> None:
    """Plain where the volume is encrypted, encrypted where it is plain, or with another cipher."""
    other = PLAIN if world.secret and seed % 2 else EncodingOptions(encrypt="AES-192-CBC", password="x")
    codec = choose_codec(other, None, bucket=world.store.bucket, prefix=PREFIX, block="")
    put_encoded(world, block, data_of(world, block), codec)
    world.find("encoding", world.layout.key(block))
    world.settle(block)


def with_the_wrong_signature(world: World, block: int, seed: int) -> None:
    """None, another one, or one that is right for another block."""
    key = world.layout.key(block)
    if not world.secret:
        return
    encoded = world.codec.encode(block + (seed % 3 == 2), data_of(world, block))
    signatures: tuple[dict[str, str], ...] = ({}, {SIGNATURE_METADATA: f'"{seed:040x}"'}, dict(encoded.metadata))
    world.store.put(key, encoded.body, content_encoding=encoded.content_encoding, metadata=signatures[seed % 3])
    world.find("signature", key)
    world.settle(block)


def unreadable(world: World, block: int, seed: int) -> None:
    world.store.failing.add(world.layout.key(block))
    world.find("unreadable", world.layout.key(block))
    world.settle(block)


def vanished(world: World, block: int, seed: int) -> None:
    world.store.lost.add(world.layout.key(block))
    world.find("vanished", world.layout.key(block))
    world.settle(block)


def zeros(world: World, block: int, seed: int) -> None:
    put_encoded(world, block, bytes(BLOCK_SIZE))
    world.find("zeros", world.layout.key(block))


def otherwise_compressed(world: World, block: int, seed: int) -> None:
    """Legal: each object says how it is compressed."""
    name = ("none", "deflate", "zstd")[seed % 3]
    options = replace(world.encoding, compress=name)
    codec = choose_codec(options, None, bucket=world.store.bucket, prefix=PREFIX, block="")
    put_encoded(world, block, data_of(world, block), codec)
    key = world.layout.key(block)
    world.store.kept[key] = ""
    world.settle(block, "hmac" if world.secret else "adler32" if name == "deflate" else "nothing")


def verified_otherwise(world: World, block: int, seed: int) -> None:
    world.store.kept[world.layout.key(block)] = ("crc64nvme", "crc32c", "md5", "")[seed % 4]


DAMAGES: tuple[Callable[[World, int, int], None], ...] = (
    flipped_under_a_checksum,
    flipped_with_nothing_kept,
    cut_short,
    of_another_length,
    far_too_long,
    of_an_unknown_encoding,
    with_the_wrong_encryption,
    with_the_wrong_signature,
    unreadable,
    vanished,
    zeros,
    otherwise_compressed,
    verified_otherwise,
)


# ── what can stand beside the blocks ─────────────────────────────────────────────────────────────────────────────


def beyond_the_end(world: World, seed: int) -> None:
    key = PREFIX + block_name(world.blocks + seed % 5, hash_prefix=world.hashed)
    world.store.put(key, b"whatever")
    world.expected["beyond-end", key] = 1


def of_the_other_naming(world: World, seed: int) -> None:
    key = PREFIX + block_name(seed % world.blocks, hash_prefix=not world.hashed)
    world.store.put(key, bytes(BLOCK_SIZE))
    world.expected["misnamed", key] = 1


def with_a_wrong_hash(world: World, seed: int) -> None:
    block = seed % world.blocks
    key = f"{PREFIX}{block_hash(block) ^ 1:08x}-{block:08x}"
    world.store.put(key, bytes(BLOCK_SIZE))
    world.expected["misnamed", key] = 1


def foreign(world: World, seed: int) -> None:
    names = ("README", "0000000", "000000000", "0000000G", "ABCDEF00", "00000001.aBc12X", "x/00000001", "ffffffff-")
    key = PREFIX + names[seed % len(names)]
    world.store.put(key, b"")
    world.expected["foreign", key] = 1


BESIDE: tuple[Callable[[World, int], None], ...] = (beyond_the_end, of_the_other_naming, with_a_wrong_hash, foreign)


# ── what can be wrong with the volume as a whole ─────────────────────────────────────────────────────────────────


def nothing_wrong(world: World) -> None:
    """It is as it should be."""


def without_metadata(world: World) -> None:
    key = world.layout.key(0)
    metadata = dict(world.store._objects[key].info.metadata)
    metadata.pop(META_SIZE)
    world.store.describe(key, metadata=metadata)
    world.said = {"size": world.layout.size}
    world.find("no-metadata", key)


def with_the_wrong_size(world: World) -> None:
    """As the original's 1.6.0 wrote it."""
    key = world.layout.key(0)
    metadata = {**world.store._objects[key].info.metadata, META_SIZE: str(BLOCK_SIZE)}
    world.store.describe(key, metadata=metadata)
    world.said = {"size": world.layout.size}
    world.find("metadata", key)


def without_the_first_block(world: World) -> None:
    key = world.layout.key(0)
    world.store.lose(key)
    world.said = {"size": world.layout.size, "block_size": BLOCK_SIZE}
    world.find("no-first-block", key)


def mounted(world: World) -> None:
    write_token(world.store, PREFIX, "", new_token(random.Random(1)), former=None)
    world.find("mounted", "")


def an_unfinished_copy(world: World) -> None:
    """Interrupted before its first block was put."""
    note = CopyNote(
        "s3://old/disk", world.layout.size, BLOCK_SIZE, world.hashed, world.codec.content_encoding, 0, "check"
    )
    write_token(world.store, PREFIX, "", new_token(random.Random(1), copy=note), former=None)
    world.store.lose(world.layout.key(0))
    world.find("unfinished-copy", "")


WHOLE = (
    nothing_wrong,
    without_metadata,
    with_the_wrong_size,
    without_the_first_block,
    mounted,
    an_unfinished_copy,
)
