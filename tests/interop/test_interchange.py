"""Debian's s3backer and ours on one bucket in turns, whatever it is stored with: each reads what the other wrote."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

import s3backer
from s3backer.admin import create_volume
from s3backer.checking.run import Check, CheckOptions
from s3backer.checking.subject import find_subject
from s3backer.codec.choice import EncodingOptions
from s3backer.errors import CorruptObject, UsageError, VolumeInUse, VolumeNotFound, WrongPassword
from s3backer.layouts.classic import META_BLOCK_SIZE, META_SIZE, block_name
from s3backer.layouts.token import TOKEN_NAME
from s3backer.opening import VolumeOptions
from s3backer.stores.base import StoredObject
from s3backer.stores.s3 import S3Store
from s3backer.volume import Volume
from tests.support.mounts import needs_mounts
from tests.support.original import (
    ORIGINAL,
    OURS,
    needs_original,
    program_mounted,
    program_refused,
    reach,
    run_program,
)
from tests.support.servers import S3Server

pytestmark = [needs_mounts, needs_original]

SIZE, BLOCK = 1 << 20, 16 << 10
GEOMETRY = ["--size=1m", "--blockSize=16k"]
PASSWORD = "cömmon secret"

ENCODING = [setting.name for setting in fields(EncodingOptions)]

Writes = list[tuple[int, bytes]]


@dataclass(frozen=True)
class Case:
    """One way to store a volume: in the original's words, and in those of ``s3backer.open``."""

    words: Sequence[str] = ()
    ours: dict[str, Any] = field(default_factory=dict)
    #: The Content-Encoding that the original writes; empty for none.
    encoding: str = ""
    prefix: str = ""
    hashed: bool = False


def encrypted(cipher: str, *words: str, written: str = "", **ours: Any) -> Case:
    """Return a case with encryption; ``written`` is how the header names the cipher."""
    return Case(
        [f"--encrypt={cipher}", f"--password={PASSWORD}", *words],
        {"encrypt": cipher, "password": PASSWORD, **ours},
        f"deflate, encrypt-{written or cipher}",
    )


def compressed(level: int) -> Case:
    return Case([f"--compress={level}"], {"compress": "deflate", "compress_level": level}, "deflate")


CASES = {
    "plain": Case(),
    "prefix": Case(prefix="some-"),
    # 1.5.4 knows no BUCKET/DIRECTORY, which is the same as this prefix.
    "subdirectory": Case(prefix="a/b/"),
    "blockHashPrefix": Case(["--blockHashPrefix"], {"block_hash_prefix": True}, hashed=True),
    "compress=1": compressed(1),
    "compress=6": compressed(6),
    "compress=9": compressed(9),
    **{
        name: encrypted(name)
        for name in ("AES-128-CBC", "AES-192-CBC", "AES-256-CBC", "DES-EDE3-CBC", "SM4-CBC", "ARIA-128-CBC")
    },
    "lower case": encrypted("aes-256-cbc", written="AES-256-CBC"),
    "keyLength=64": encrypted("AES-128-CBC", "--keyLength=64", key_length=64),
    "compress and encrypt": encrypted("AES-256-CBC", "--compress=1", compress="deflate", compress_level=9),
    "everything": Case(
        ["--encrypt=AES-128-CBC", f"--password={PASSWORD}", "--blockHashPrefix"],
        {"password": PASSWORD, "encrypt": "AES-128-CBC", "block_hash_prefix": True},
        "deflate, encrypt-AES-128-CBC",
        prefix="x/y-",
        hashed=True,
    ),
}
#: What the original writes and cannot read: its buffer is too short for the name, or it does not know its own alias.
ONE_WAY = {
    "CAMELLIA-128-CBC": encrypted("CAMELLIA-128-CBC"),
    "CAMELLIA-256-CBC": encrypted("CAMELLIA-256-CBC"),
    "AES256": encrypted("AES256"),
}


def scribble(seed: int) -> Writes:
    """Return noise, text and zeros at odd places; block 0 is not zeros after them."""
    source = random.Random(seed)
    writes = []
    for _ in range(12):
        offset = source.randrange(SIZE)
        length = min(source.choice([1, 700, BLOCK + 1, 3 * BLOCK]), SIZE - offset)
        text = (b"%d green bottles, " % source.randrange(99) * length)[:length]
        writes.append((offset, source.choice([source.randbytes(length), text, bytes(length)])))
    # Whole blocks of zeros, which are no objects.
    writes.append((source.randrange(1, SIZE // BLOCK - 2) * BLOCK, bytes(2 * BLOCK)))
    writes.append((SIZE - 333, source.randbytes(333)))
    writes.append((5, b"head %d" % seed))
    return writes


def applied(content: bytes, writes: Writes) -> bytes:
    changed = bytearray(content)
    for offset, data in writes:
        changed[offset : offset + len(data)] = data
    return bytes(changed)


def write_all(file: Path, writes: Writes) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        for offset, data in writes:
            assert os.pwrite(descriptor, data, offset) == len(data)
    finally:
        os.close(descriptor)


def assert_same(found: bytes, expected: bytes) -> None:
    """Compare block by block; the whole would be a message of megabytes."""
    assert len(found) == len(expected)
    different = [
        f"{start // BLOCK:08x}"
        for start in range(0, len(expected), BLOCK)
        if found[start : start + BLOCK] != expected[start : start + BLOCK]
    ]
    assert not different


class Place:
    """One volume in a bucket of its own, and both ways to it."""

    def __init__(self, server: S3Server, case: Case, directory: Path) -> None:
        self.server, self.case = server, case
        self.bucket = server.make_bucket()
        self.store = S3Store(self.bucket, server.options())
        self.mountpoint = directory / "mnt"
        prefix = [f"--prefix={case.prefix}"] if case.prefix else []
        #: What both programs are called with.
        self.words = [*reach(server), *case.words, *prefix, self.bucket]

    def original(self, *more: str) -> Any:
        return program_mounted(ORIGINAL, self.mountpoint, *more, *self.words)

    def ours(self, **more: Any) -> Volume:
        """Open it without saying more than is needed."""
        names = ("password", "key_length", "block_hash_prefix")
        said = {name: value for name, value in self.case.ours.items() if name in names}
        return self.open(**{**said, **more})

    def open(self, **options: Any) -> Volume:
        prefix = self.case.prefix
        if prefix and not prefix.endswith("/"):
            # No URL names it; the command does, in the original's form.
            encoding = {name: options.pop(name) for name in ENCODING if name in options}
            settings = VolumeOptions(**options, encoding=EncodingOptions(**encoding))
            return Volume.open(S3Store(self.bucket, self.server.options()), prefix, settings)
        keys = ("endpoint_url", "region", "access_key", "secret_key")
        access = {name: getattr(self.server.options(), name) for name in keys}
        return s3backer.open(f"s3://{self.bucket}/{prefix}", **access, **options)

    def create(self) -> None:
        options = {name: value for name, value in self.case.ours.items() if name != "block_hash_prefix"}
        create_volume(
            self.store,
            self.case.prefix,
            size=SIZE,
            block_size=BLOCK,
            block_hash_prefix=self.case.hashed,
            encoding=EncodingOptions(**options),
        )

    def objects(self) -> dict[str, StoredObject]:
        """Return everything in the bucket."""
        page = self.store.list("")
        assert not page.truncated
        return {entry.key: self.store.get(entry.key) for entry in page.entries}

    def assert_stored(self, content: bytes, *encodings: str) -> None:
        """See that there is an object of each block that is not zeros, in one of these encodings, and no other."""
        blocks = [n for n in range(SIZE // BLOCK) if any(content[n * BLOCK : (n + 1) * BLOCK])]
        expected = {self.case.prefix + block_name(block, hash_prefix=self.case.hashed) for block in blocks}
        objects = self.objects()
        assert set(objects) == expected
        assert {found.info.content_encoding.replace(" ", "") for found in objects.values()} <= {
            encoding.replace(" ", "") for encoding in encodings
        }


@pytest.fixture
def place(request: pytest.FixtureRequest, s3_server: S3Server, tmp_path: Path) -> Iterator[Place]:
    """Return an empty bucket for the case that is the test's parameter; plain where there is none."""
    found = Place(s3_server, getattr(request, "param", Case()), tmp_path)
    yield found
    found.store.close()


all_cases = pytest.mark.parametrize("place", CASES.values(), ids=CASES, indirect=True)


@all_cases
def test_begun_by_the_original(place: Place) -> None:
    first, second = scribble(1), scribble(2)
    content = applied(bytes(SIZE), first)
    with place.original(*GEOMETRY) as file:
        write_all(file, first)
    place.assert_stored(content, place.case.encoding)
    with place.ours() as volume:
        assert volume.size == SIZE and volume.block_size == BLOCK
        assert_same(volume.read(0, SIZE), content)
        for offset, data in second:
            volume.write(offset, data)
        content = applied(content, second)
    place.assert_stored(content, place.case.encoding)
    # What it is, block 0 says: it was written by us.
    with place.original() as file:
        assert_same(file.read_bytes(), content)


@all_cases
def test_what_the_original_wrote_is_checked(place: Place) -> None:
    writes = scribble(7)
    content = applied(bytes(SIZE), writes)
    with place.original(*GEOMETRY) as file:
        write_all(file, writes)
    # Like that the mount token is gone, and everything is as it should be.
    names = ("password", "key_length")
    encoding = EncodingOptions(**{name: value for name, value in place.case.ours.items() if name in names})
    settings = VolumeOptions(block_hash_prefix=place.case.hashed, encoding=encoding)
    with Check(find_subject(place.store, place.case.prefix, settings), CheckOptions()) as check:
        counts = check.run()
        assert list(check.state.findings()) == []
    blocks = sum(any(content[start : start + BLOCK]) for start in range(0, SIZE, BLOCK))
    assert counts.objects == blocks
    # Either server has an MD5 of what the original puts, at least.
    means = {"hmac"} if "password" in place.case.ours else {"md5", "checksum"}
    assert counts.verified.total() == blocks and set(counts.verified) <= means


@all_cases
def test_begun_by_ours(place: Place) -> None:
    first, second = scribble(3), scribble(4)
    place.create()
    with place.open(**place.case.ours) as volume:
        for offset, data in first:
            volume.write(offset, data)
    content = applied(bytes(SIZE), first)
    place.assert_stored(content, place.case.encoding)
    with place.original() as file:
        assert_same(file.read_bytes(), content)
        write_all(file, second)
    content = applied(content, second)
    place.assert_stored(content, place.case.encoding)
    with place.ours() as volume:
        assert_same(volume.read(0, SIZE), content)


@pytest.mark.parametrize("place", [CASES["prefix"], CASES["everything"]], ids=["prefix", "everything"], indirect=True)
def test_both_programs_take_the_same_words(place: Place) -> None:
    """The drop-in: one command line, mounted with one program, then with the other."""
    content = bytes(SIZE)
    for turn, program in enumerate([OURS, ORIGINAL, OURS, ORIGINAL]):
        with program_mounted(program, place.mountpoint, *(GEOMETRY if not turn else []), *place.words) as file:
            assert_same(file.read_bytes(), content)
            write_all(file, scribble(turn))
            content = applied(content, scribble(turn))
        place.assert_stored(content, place.case.encoding)


@pytest.mark.parametrize("place", ONE_WAY.values(), ids=ONE_WAY, indirect=True)
def test_what_the_original_writes_and_cannot_read(place: Place) -> None:
    writes = scribble(5)
    content = applied(bytes(SIZE), writes)
    with place.original(*GEOMETRY) as file:
        write_all(file, writes)
    place.assert_stored(content, place.case.encoding)
    with place.original() as file, pytest.raises(OSError, match="Input/output error"):
        file.read_bytes()
    with place.ours() as volume:
        assert_same(volume.read(0, SIZE), content)
        volume.write(BLOCK - 7, b"partly rewritten")
    with place.ours() as volume:
        assert_same(volume.read(0, SIZE), applied(content, [(BLOCK - 7, b"partly rewritten")]))


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", [CASES["everything"]], ids=["everything"], indirect=True)
def test_each_refuses_what_the_other_has_mounted(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for program, refusing in ((ORIGINAL, OURS), (OURS, ORIGINAL)):
        with program_mounted(program, place.mountpoint, *GEOMETRY, *place.words) as file:
            write_all(file, [(0, b"mine")])
            assert place.case.prefix + TOKEN_NAME in place.objects()
            assert "mounted" in program_refused(refusing, other, *GEOMETRY, *place.words)
            if program is ORIGINAL:
                # Of a mount of ours it would see whether that is alive, which takes as long as a renewal.
                with pytest.raises(VolumeInUse, match="is mounted by"):
                    place.open(**place.case.ours, size=SIZE, block_size=BLOCK)
            # Who only reads is let in by ours.
            with place.open(**place.case.ours, size=SIZE, block_size=BLOCK, read_only=True) as volume:
                volume.read(0, SIZE)
            assert place.case.prefix + TOKEN_NAME in place.objects()
        assert place.case.prefix + TOKEN_NAME not in place.objects()


both_ways = pytest.mark.parametrize(
    ("writer", "other"), [(ORIGINAL, OURS), (OURS, ORIGINAL)], ids=["original's", "ours"]
)


@both_ways
@pytest.mark.parametrize("place", [CASES["plain"], CASES["everything"]], ids=["plain", "everything"], indirect=True)
def test_each_unlocks_and_erases_what_the_other_left(
    place: Place, writer: Sequence[str | Path], other: Sequence[str | Path], tmp_path: Path
) -> None:
    key = place.case.prefix + TOKEN_NAME
    with program_mounted(writer, place.mountpoint, *GEOMETRY, *place.words) as file:
        write_all(file, scribble(8))
        token = place.objects()[key]
    # As if it had died: the token is still there.
    info = token.info
    place.store.put(key, token.body, content_type=info.content_type, metadata=info.metadata)
    assert "mounted" in program_refused(other, place.mountpoint, *place.words)
    code, said = run_program(other, tmp_path, "--reset-mounted-flag", *place.words)
    assert code == 0, said
    assert key not in place.objects()
    with program_mounted(other, place.mountpoint, *place.words) as file:
        assert_same(file.read_bytes(), applied(bytes(SIZE), scribble(8)))
    code, said = run_program(other, tmp_path, "--erase", "--force", *place.words)
    assert code == 0, said
    assert not place.objects()


@both_ways
def test_a_password_file_is_the_same_password(
    place: Place, writer: Sequence[str | Path], other: Sequence[str | Path], tmp_path: Path
) -> None:
    """Its first line, up to the newline and not one byte less."""
    file = tmp_path / "password"
    file.write_bytes(b" caf\xe9 \t\r\nsecond line\n")
    words = ["--encrypt", f"--passwordFile={file}", *place.words]
    with program_mounted(writer, place.mountpoint, *GEOMETRY, *words) as disk:
        write_all(disk, scribble(9))
    with program_mounted(other, place.mountpoint, *words) as disk:
        assert_same(disk.read_bytes(), applied(bytes(SIZE), scribble(9)))


# ── passwords ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", [CASES["AES-128-CBC"]], ids=["AES-128-CBC"], indirect=True)
@pytest.mark.parametrize("block_0", [True, False], ids=["block 0", "another block"])
def test_a_wrong_password_changes_nothing(place: Place, block_0: bool) -> None:
    """The original takes it, and its writes then replace good blocks."""
    writes = [(9 * BLOCK + 5, b"behind"), *([(0, b"first")] if block_0 else [])]
    with place.original(*GEOMETRY) as file:
        write_all(file, writes)
    before = place.objects()
    assert len(before) == len(writes)
    geometry: dict[str, Any] = {} if block_0 else {"size": SIZE, "block_size": BLOCK}
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (WrongPassword, {"password": "another"}),
        (WrongPassword, {"password": PASSWORD, "key_length": 64}),
        (WrongPassword, {"password": ""}),
        (UsageError, {"password": PASSWORD, "encrypt": "AES-256-CBC"}),
        (UsageError, {}),
    ]
    for error, options in wrong:
        with pytest.raises(error):
            place.open(**geometry, **options)
        assert place.objects() == before, options
    words = [word for word in place.words if not word.startswith("--password")]
    said = program_refused(OURS, place.mountpoint, *GEOMETRY, "--password=another", *words)
    assert "the password is wrong" in said
    assert place.objects() == before
    with place.ours(**geometry) as volume:
        assert_same(volume.read(0, SIZE), applied(bytes(SIZE), writes))


# ── what only one of them knows ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", ["plain", "AES-128-CBC"])
def test_zstd_is_ours_alone(case: str, s3_server: S3Server, tmp_path: Path) -> None:
    """A limit of 1.5.4: it refuses such blocks, and reads the others."""
    place = Place(s3_server, CASES[case], tmp_path)
    writes = scribble(6)
    content = applied(bytes(SIZE), writes)
    place.create()
    with place.open(**place.case.ours, compress="zstd") as volume:
        for offset, data in writes:
            volume.write(offset, data)
    name = "zstd" if case == "plain" else "zstd, encrypt-AES-128-CBC"
    place.assert_stored(content, name)
    with place.original() as file:
        with pytest.raises(OSError, match="Input/output error"):
            file.read_bytes()
        write_all(file, [(BLOCK, b"d" * BLOCK)])
    content = applied(content, [(BLOCK, b"d" * BLOCK)])
    place.assert_stored(content, name, place.case.encoding)
    with place.ours() as volume:
        assert_same(volume.read(0, SIZE), content)
    place.store.close()


@pytest.mark.parametrize("place", [CASES["compress=6"]], ids=["deflate"], indirect=True)
def test_objects_that_have_lost_their_encoding(place: Place) -> None:
    """As a copy made with another program may leave them: it can be said when mounting."""
    writes = scribble(7)
    content = applied(bytes(SIZE), writes)
    with place.original(*GEOMETRY) as file:
        write_all(file, writes)
    for key, found in place.objects().items():
        place.store.put(key, found.body, content_type=found.info.content_type, metadata=found.info.metadata)
    place.assert_stored(content, "")
    with place.ours() as volume, pytest.raises(CorruptObject, match=r"has \d+ bytes, a block of this volume has"):
        volume.read(0, BLOCK)
    with place.original("--defaultContentEncoding=deflate") as file:
        assert_same(file.read_bytes(), content)
    with place.ours(default_content_encoding="deflate") as volume:
        assert_same(volume.read(0, SIZE), content)


# ── sizes that version 1.6.0 stored ──────────────────────────────────────────────────────────────────────────────


def put_as_1_6_0(place: Place, size: int, block: int) -> dict[int, bytes]:
    """Put block 0, which says the size modulo 2^32, and another block; return both."""
    blocks = {0: b"first".ljust(1 << 20, b"\0"), block: b"far behind".ljust(1 << 20, b"\1")}
    for number, body in blocks.items():
        metadata = {META_BLOCK_SIZE: str(1 << 20), META_SIZE: str(size % 2**32)} if number == 0 else {}
        place.store.put(block_name(number), body, metadata=metadata)
    return blocks


def read_blocks(volume: Volume, blocks: dict[int, bytes]) -> dict[int, bytes]:
    return {number: volume.read(number << 20, 1 << 20) for number in blocks}


def test_a_size_that_became_zero_has_to_be_given(place: Place) -> None:
    size = 4 << 30
    blocks = put_as_1_6_0(place, size, 4095)
    with pytest.raises(VolumeNotFound, match="the size of the volume") as caught:
        place.open()
    assert "size" in caught.value.hint
    assert "size" in program_refused(OURS, place.mountpoint, *place.words)
    # The block size is still there, where the original falls back to 4096 bytes and finds no block readable.
    with pytest.raises(UsageError, match="block size of 1MiB, not 4KiB"):
        place.open(size=size, block_size=4096)
    with program_mounted(OURS, place.mountpoint, "--size=4g", *place.words) as file, open(file, "rb") as disk:
        assert os.pread(disk.fileno(), 1 << 20, 4095 << 20) == blocks[4095]
    with place.open(size=size) as volume:
        assert volume.size == size
        assert read_blocks(volume, blocks) == blocks
        volume.write(0, b"First")
    # With block 0 the right size is stored.
    with place.open() as volume:
        assert volume.size == size
        assert volume.read(0, 5) == b"First"


@pytest.mark.parametrize("program", [ORIGINAL, OURS], ids=["original", "ours"])
def test_a_size_that_became_smaller_is_overridden(place: Place, program: Sequence[str | Path]) -> None:
    size = (4 << 30) + (8 << 20)
    blocks = put_as_1_6_0(place, size, 4100)
    with place.open() as volume:
        assert volume.size == 8 << 20
    with pytest.raises(UsageError, match="size of 8MiB, not 4104MiB"):
        place.open(size=size)
    with place.open(size=size, force=True) as volume:
        assert read_blocks(volume, blocks) == blocks
    assert "size" in program_refused(program, place.mountpoint, "--size=4104m", *place.words)
    with program_mounted(program, place.mountpoint, "--size=4104m", "--force", *place.words) as file:
        assert file.stat().st_size == size
        with open(file, "rb") as disk:
            for number, body in blocks.items():
                assert os.pread(disk.fileno(), len(body), number << 20) == body
        write_all(file, [(0, b"First")])
    with place.open() as volume:
        assert volume.size == size
        assert volume.read(0, 5) == b"First"
