"""Checking against an oracle: each damage that was done is told, by its kind and key, and nothing else is."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer.checking.findings import KINDS, MOST_NOTES, Counts
from s3backer.checking.run import Check, CheckOptions
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
from s3backer.layouts.token import write_token
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


def run(world: World, **options: Any) -> tuple[Counter[Found], Counts]:
    """Check a volume; return (kind, key) of each finding, and the counts."""
    with Check(world.subject(), CheckOptions(**{"threads": 3, **options})) as check:
        counts = check.run()
        return told(check), counts


def told(check: Check) -> Counter[Found]:
    return Counter((finding.kind, finding.key) for finding in check.state.findings())


def require(world: World) -> None:
    findings, counts = run(world)
    expected, verified = world.wanted()
    assert findings == expected
    assert counts.kinds == Counter(kind for kind, _ in expected.elements())
    assert counts.verified == verified


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
    write_token(world.store, PREFIX, "", replace=None, random_source=random.Random(1))
    world.find("mounted", "")


def an_unfinished_copy(world: World) -> None:
    """Interrupted before its first block was put."""
    note = CopyNote(
        "s3://old/disk", world.layout.size, BLOCK_SIZE, world.hashed, world.codec.content_encoding, 0, "check"
    )
    write_token(world.store, PREFIX, "", replace=None, random_source=random.Random(1), copy=note)
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


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = World.make(
        draw(st.sampled_from(ENCODINGS)),
        hashed=draw(st.booleans()),
        kept=draw(st.sampled_from(["crc64nvme", "crc32c", "md5", ""])),
        seed=draw(st.integers(0, 1 << 16)),
    )
    seeds = st.integers(0, 1 << 16)
    # The first ones tell the encoding and whether the password is right.
    victims = sorted(world.present(), key=world.layout.key)[4:]
    for block in draw(st.lists(st.sampled_from(victims), unique=True, max_size=8)):
        draw(st.sampled_from(DAMAGES))(world, block, draw(seeds))
    for damage in draw(st.lists(st.sampled_from(BESIDE), max_size=4)):
        damage(world, draw(seeds))
    draw(st.sampled_from(WHOLE))(world)
    return world


@given(worlds())
def test_each_damage_is_told_and_nothing_else(world: World) -> None:
    before = dict(world.store._objects)
    require(world)
    assert world.store._objects == before


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: f"{encoding.compress}-{encoding.encrypt}")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_in_each_encoding(damage: Callable[[World, int, int], None], encoding: EncodingOptions) -> None:
    for seed in range(6):
        world = World.make(encoding)
        damage(world, world.present()[-1], seed)
        require(world)


@pytest.mark.parametrize("whole", WHOLE, ids=lambda whole: whole.__name__)
@pytest.mark.parametrize("hashed", [False, True])
def test_each_volume_that_is_not_as_it_should_be(whole: Callable[[World], None], hashed: bool) -> None:
    for encoding in ENCODINGS:
        world = World.make(encoding, hashed=hashed)
        whole(world)
        require(world)


def test_the_first_block_can_be_damaged_too() -> None:
    for encoding in ENCODINGS:
        world = World.make(encoding)
        key = world.layout.key(0)
        world.store.flip(key)
        world.store.kept[key] = "md5"
        world.find("altered", key)
        world.settle(0)
        require(world)
    world = World.make(ENCRYPTED)
    world.store.flip(world.layout.key(0))
    world.find("signature", world.layout.key(0))
    world.settle(0)
    require(world)


def test_a_first_block_of_zeros_is_as_it_should_be() -> None:
    for encoding in ENCODINGS:
        world = World.make(encoding)
        world.layout.write(0, None)
        require(world)


def test_the_store_may_be_asked_about_a_block_that_is_damaged_itself() -> None:
    """What comes before objects that cannot be read, to see whether the store works."""
    for damage in (flipped_under_a_checksum, far_too_long, vanished):
        world = World.make()
        unreadable(world, world.present()[-1], 0)
        damage(world, world.present()[-2], 1)
        require(world)


# ── encrypted, without the password ──────────────────────────────────────────────────────────────────────────────


def run_locked(world: World) -> tuple[Counter[Found], Counts]:
    subject = find_subject(world.store, PREFIX, VolumeOptions(block_hash_prefix=world.hashed))
    assert subject.locked is not None
    with Check(subject, CheckOptions()) as check:
        counts = check.run()
        return told(check), counts


def test_without_the_password_the_rest_is_verified() -> None:
    world = World.make(ENCRYPTED, kept="crc64nvme")
    one, two, three, four, five, six = world.present()[4:10]
    flipped_under_a_checksum(world, one, 1)
    with_the_wrong_encryption(world, two, 1)
    with_the_wrong_encryption(world, three, 2)
    with_the_wrong_signature(world, four, 0)
    key = world.layout.key(five)
    world.store.describe(key, metadata={SIGNATURE_METADATA: '"no digits"'})
    world.find("signature", key)
    put_encoded(world, six, bytes(7))
    world.store.describe(world.layout.key(six), size=7)
    found = world.store._objects[world.layout.key(six)]
    world.store._objects[found.info.key] = replace(found, body=b"odd one")
    world.find("length", world.layout.key(six))
    findings, counts = run_locked(world)
    assert findings == world.expected
    assert counts.verified == {"checksum": len(world.present()) + 1 - 6}
    world.store.default = ""
    assert run_locked(world)[1].verified == {"nothing": len(world.present()) + 1 - 6}


# ── what the checks of a whole volume rest on ────────────────────────────────────────────────────────────────────


def test_a_block_is_read_again_before_it_is_called_damaged() -> None:
    world = World.make()
    good, bad = (world.layout.key(block) for block in world.present()[:2])
    cut_short(world, world.present()[1], 0)
    found = world.store.get(good)
    answers = [replace(found, body=found.body[:-1]), found]

    class Once(KeepingStore):
        def get(self, key: str, *, at_most: int | None = None) -> Any:
            return answers.pop(0) if key == good and answers else world.store.get(key, at_most=at_most)

    store = Once()
    store._objects = world.store._objects
    world.store.gets.clear()
    with Check(find_subject(store, PREFIX, VolumeOptions()), CheckOptions()) as check:
        check.run()
        assert told(check) == world.expected
    assert not answers
    assert world.store.gets[bad] == 2
    assert {count for key, count in world.store.gets.items() if key not in (good, bad)} == {1}


def test_what_goes_away_while_it_is_checked_is_no_damage() -> None:
    world = World.make()
    victim = world.layout.key(world.present()[3])

    class Leaving(KeepingStore):
        def get(self, key: str, *, at_most: int | None = None) -> Any:
            if key == victim:
                self._objects.pop(key, None)
            return super().get(key, at_most=at_most)

    for token in (False, True):
        store = Leaving()
        store._objects = dict(world.store._objects)
        if token:
            write_token(store, PREFIX, "", replace=None, random_source=random.Random(1))
        with Check(find_subject(store, PREFIX, VolumeOptions()), CheckOptions()) as check:
            check.run()
            expected = {("mounted", ""): 1} if token else {("changed", victim): 1}
            assert told(check) == expected
            assert not check.state.counts.problems


def test_a_volume_that_grows_while_it_is_checked() -> None:
    world = World.make()
    mounted(world)
    subject = world.subject()
    layout = replace_size(world, 2 * world.layout.size)
    layout.write(world.blocks + 3, b"x" * BLOCK_SIZE)
    with Check(subject, CheckOptions()) as check:
        check.run()
        assert told(check) == world.expected


def replace_size(world: World, size: int) -> ClassicLayout:
    """Return the layout of the volume after a resize."""
    layout = ClassicLayout(world.store, PREFIX, block_size=BLOCK_SIZE, size=size)
    layout.write(0, data_of(world, 0))
    return layout


@pytest.mark.parametrize("encoding", [PLAIN, ENCODINGS[4]], ids=["plain", "encrypted"])
def test_a_volume_that_is_written_to_while_it_is_checked(encoding: EncodingOptions) -> None:
    world = World.make(encoding, blocks=200)
    mounted(world)
    done = threading.Event()

    def write() -> None:
        source = random.Random(3)
        while not done.is_set():
            block = source.randrange(200)
            world.layout.write(block, source.choice([None, source.randbytes(BLOCK_SIZE), b"x" * BLOCK_SIZE]))

    writer = threading.Thread(target=write, name="writer")
    writer.start()
    try:
        for _ in range(5):
            assert run(world)[0] == world.expected
    finally:
        done.set()
        writer.join()


def test_notes_without_number_are_counted() -> None:
    world = World.make()
    for number in range(MOST_NOTES + 50):
        world.store.put(f"{PREFIX}other/{number}", b"")
    findings, counts = run(world)
    assert counts.kinds == {"foreign": MOST_NOTES + 50}
    assert len(findings) == MOST_NOTES
    assert counts.problems == 0


def test_every_kind_has_a_meaning() -> None:
    for kind in KINDS.values():
        assert kind.means.format(place="bytes 0 to 1").endswith((".", "object."))


def test_requests_are_counted() -> None:
    world = World.make()
    before = world.store.counters.snapshot()["get"].requests
    _, counts = run(world)
    gets = world.store.counters.snapshot()["get"]
    # One was the token, asked for before.
    assert counts.requests["get"][0] == gets.requests - before - 1 == len(world.present()) + 1
    assert counts.requests["get"][2] == counts.stored == BLOCK_SIZE * (len(world.present()) + 1)
    assert counts.requests["put"] == counts.requests["delete"] == [0, 0, 0]
