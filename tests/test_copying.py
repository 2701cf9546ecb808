"""Copying: every byte and every hole, whatever fails on the way."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer.admin import create_volume, erase_volume, inspect_volume, unlock_volume
from s3backer.codec.choice import EncodingOptions, choose_codec
from s3backer.copying import CopyOptions, CopyResult, copy_volume
from s3backer.errors import (
    CorruptObject,
    S3backerError,
    StoreError,
    StoreUnreachable,
    UsageError,
    VolumeExists,
    VolumeInUse,
    VolumeNotFound,
    WrongPassword,
)
from s3backer.layouts.block_set import BlockSet
from s3backer.layouts.classic import ClassicLayout, block_name, parse_block_name
from s3backer.layouts.copy_note import CopyNote
from s3backer.layouts.token import TOKEN_NAME, new_token, read_token, write_token
from s3backer.opening import VolumeOptions, prepare
from s3backer.stores.base import ObjectStore, StoredObject
from s3backer.stores.memory import MemoryStore
from s3backer.volume import Volume
from tests.support.faulty import FaultyStore

KIB = 1 << 10
BLOCK_SIZES = tuple(512 << n for n in range(8))
ENCODINGS = (
    EncodingOptions(),
    EncodingOptions(compress="deflate"),
    EncodingOptions(compress="zstd", compress_level=1),
    EncodingOptions(compress="none", encrypt="AES-128-CBC", password="one"),
    EncodingOptions(compress="zstd", encrypt="AES-256-CBC", password="two", key_length=40),
)
PLAIN, SECRET = ENCODINGS[0], ENCODINGS[4]
ONE_THREAD = CopyOptions(threads=1)


def make_source(
    data: bytes | bytearray,
    block_size: int,
    encoding: EncodingOptions = PLAIN,
    *,
    prefix: str = "old/",
    hash_prefix: bool = False,
    name: str = "memory:source",
) -> MemoryStore:
    """Return a store with a volume of these bytes; blocks of zeros are absent but for block 0."""
    store = MemoryStore(name)
    codec = choose_codec(encoding, None, bucket=store.bucket, prefix=prefix, block="block 0")
    layout = ClassicLayout(store, prefix, block_size=block_size, size=len(data), codec=codec, hash_prefix=hash_prefix)
    for block in range(len(data) // block_size):
        body = bytes(data[block * block_size : (block + 1) * block_size])
        if block == 0 or any(body):
            layout.write(block, body)
    return store


def reading(encoding: EncodingOptions, *, hash_prefix: bool = False) -> VolumeOptions:
    """Return the options that read a volume of that encoding."""
    return VolumeOptions(
        read_only=True,
        block_hash_prefix=hash_prefix,
        encoding=EncodingOptions(password=encoding.password, key_length=encoding.key_length),
    )


def content(store: ObjectStore, prefix: str, options: VolumeOptions) -> bytes:
    """Return the bytes of a volume, read block by block."""
    layout, _ = prepare(store, prefix, options)
    return b"".join(layout.read(block) or bytes(layout.block_size) for block in range(layout.block_count))


def keys(store: ObjectStore) -> set[str]:
    return {entry.key for entry in store.list("").entries}


def wanted_keys(data: bytes | bytearray, block_size: int, prefix: str, *, hash_prefix: bool = False) -> set[str]:
    """Return the objects that a volume of these bytes consists of."""
    return {
        prefix + block_name(block, hash_prefix=hash_prefix)
        for block in range(len(data) // block_size)
        if block == 0 or any(data[block * block_size : (block + 1) * block_size])
    }


@st.composite
def volumes(draw: st.DrawFn) -> tuple[bytearray, int, int]:
    """Sparse bytes and two block sizes that fit them."""
    old, new = draw(st.sampled_from(BLOCK_SIZES)), draw(st.sampled_from(BLOCK_SIZES))
    data = bytearray(max(old, new) * draw(st.integers(1, 3)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(1, min(len(data) - start, 3 * min(old, new))))
        data[start : start + length] = random.Random(draw(st.integers(0, 1 << 16))).randbytes(length)
    return data, old, new


def require_copy(
    target: MemoryStore, data: bytes | bytearray, block_size: int, encoding: EncodingOptions, hash_prefix: bool = False
) -> None:
    """Fail unless the target is a whole volume of these bytes and nothing else."""
    assert keys(target) == wanted_keys(data, block_size, "new/", hash_prefix=hash_prefix)
    assert content(target, "new/", reading(encoding, hash_prefix=hash_prefix)) == data
    facts = inspect_volume(target, "new/", block_hash_prefix=hash_prefix)
    assert (facts.size, facts.block_size, facts.token) == (len(data), block_size, None)


@given(volumes(), st.sampled_from(ENCODINGS), st.sampled_from(ENCODINGS), st.booleans(), st.booleans())
def test_every_byte_and_every_hole(
    volume: tuple[bytearray, int, int], old: EncodingOptions, new: EncodingOptions, old_hash: bool, new_hash: bool
) -> None:
    data, old_size, new_size = volume
    inner = make_source(data, old_size, old, hash_prefix=old_hash)
    source, target = FaultyStore(inner), MemoryStore("memory:target")
    before = dict(inner._objects)
    result = copy_volume(
        source,
        "old/",
        target,
        "new/",
        source_options=reading(old, hash_prefix=old_hash),
        options=CopyOptions(
            block_size=new_size,
            block_hash_prefix=new_hash,
            encoding=replace(new, compress=new.compress or "none"),
            plain=old.secret and not new.secret,
            threads=2,
        ),
    )
    require_copy(target, data, new_size, new, new_hash)
    assert (result.size, result.block_size, result.kept) == (len(data), new_size, 0)
    assert result.written == len(wanted_keys(data, new_size, "new/"))
    assert inner._objects == before
    # What is no object is not asked for, but for the token and block 0.
    asked = {key for kind, key in source.calls if kind == "get"}
    assert asked <= wanted_keys(data, old_size, "old/", hash_prefix=old_hash) | {"old/" + TOKEN_NAME}


@pytest.mark.parametrize("old", BLOCK_SIZES)
@pytest.mark.parametrize("new", BLOCK_SIZES)
def test_all_pairs_of_block_sizes(old: int, new: int) -> None:
    data = bytearray(128 * KIB)
    for start in (511, 70 * KIB, 128 * KIB - 1):
        data[start] = 7
    target = MemoryStore("memory:target")
    copy_volume(make_source(data, old), "old/", target, "new/", options=CopyOptions(block_size=new))
    require_copy(target, data, new, PLAIN)


def sample() -> bytearray:
    """Return a small volume with data, holes, and a hole of which a part is data."""
    data = bytearray(8 * KIB)
    data[100:600] = random.Random(1).randbytes(500)
    data[3 * KIB : 4 * KIB] = random.Random(2).randbytes(KIB)
    data[8 * KIB - 1] = 1
    return data


def copy(source: ObjectStore, target: ObjectStore, *, block_size: int = 2 * KIB, **options: Any) -> CopyResult:
    """Copy with one thread, so that requests come in the same order each time."""
    chosen = replace(ONE_THREAD, block_size=block_size, **options)
    return copy_volume(source, "old/", target, "new/", source_options=reading(SECRET), options=chosen)


def requests_of_a_copy() -> tuple[int, int]:
    source = FaultyStore(make_source(sample(), KIB, SECRET))
    target = FaultyStore(MemoryStore("memory:target"))
    copy(source, target)
    return len(source.calls), len(target.calls)


SOURCE_REQUESTS, TARGET_REQUESTS = requests_of_a_copy()


def require_unfinished(target: MemoryStore) -> None:
    """Fail if what is there could be taken for a volume."""
    if not keys(target):
        return
    token = read_token(target, "new/")
    assert token is not None and token.copy is not None
    for options in (
        reading(SECRET),
        VolumeOptions(size=8 * KIB, block_size=2 * KIB, force=True, encoding=reading(SECRET).encoding),
        VolumeOptions(size=8 * KIB, block_size=2 * KIB, read_only=True, encoding=reading(SECRET).encoding),
    ):
        with pytest.raises(VolumeInUse, match="unfinished copy of memory:source/old"):
            prepare(target, "new/", options)
    with pytest.raises(VolumeInUse, match="unfinished copy"):
        unlock_volume(target, "new/")
    with pytest.raises(VolumeExists):
        create_volume(target, "new/", size=8 * KIB, block_size=KIB)
    before = dict(target._objects)
    with pytest.raises(VolumeInUse, match="unfinished copy"):
        copy(make_source(sample(), KIB, SECRET), target)
    assert target._objects == before


def resume_after(error_in_source: int, error_in_target: int, *, after: bool) -> None:
    data = sample()
    source, target = make_source(data, KIB, SECRET), MemoryStore("memory:target")
    with pytest.raises(StoreUnreachable, match="chosen"):
        copy(
            FaultyStore(source, fail_at=error_in_source, after=after),
            FaultyStore(target, fail_at=error_in_target, after=after),
        )
    require_unfinished(target)
    copy(source, target, resume=True)
    require_copy(target, data, 2 * KIB, SECRET)


@pytest.mark.parametrize("number", range(1, SOURCE_REQUESTS + 1))
def test_any_request_to_the_source_fails(number: int) -> None:
    resume_after(number, 0, after=False)


@pytest.mark.parametrize("number", range(1, TARGET_REQUESTS))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_any_request_to_the_target_fails(number: int, after: bool) -> None:
    """All but the last one, which has a test of its own."""
    resume_after(0, number, after=after)


def test_the_last_request_fails() -> None:
    """It removes the token: when only its answer is lost, the copy is complete and says so."""
    data, source = sample(), make_source(sample(), KIB, SECRET)
    target = MemoryStore("memory:target")
    last = FaultyStore(target, fail_at=TARGET_REQUESTS, after=True)
    copy(source, last)
    assert last.calls[TARGET_REQUESTS - 1] == ("delete", "new/" + TOKEN_NAME)
    require_copy(target, data, 2 * KIB, SECRET)
    with pytest.raises(VolumeExists):
        copy(source, target, resume=True)
    target = MemoryStore("memory:target")
    with pytest.raises(StoreUnreachable):
        copy(source, FaultyStore(target, fail_at=TARGET_REQUESTS))
    require_unfinished(target)
    assert copy(source, target, resume=True).written == 0
    require_copy(target, data, 2 * KIB, SECRET)


@pytest.mark.parametrize("number", range(2, TARGET_REQUESTS + 6))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_the_second_run_fails_too(number: int, after: bool) -> None:
    data, source, target = sample(), make_source(sample(), KIB, SECRET), MemoryStore("memory:target")
    with pytest.raises(StoreUnreachable):
        copy(source, FaultyStore(target, fail_at=TARGET_REQUESTS - 6))
    second = FaultyStore(target, fail_at=number, after=after)
    try:
        copy(source, second, resume=True)
    except StoreUnreachable:
        require_unfinished(target)
        copy(source, target, resume=True)
    require_copy(target, data, 2 * KIB, SECRET)


def test_errors_name_the_object() -> None:
    with pytest.raises(StoreUnreachable, match="'new/00000001'"):
        copy(make_source(sample(), KIB, SECRET), FailingPut(MemoryStore("memory:target"), "new/00000001"))


class FailingPut(FaultyStore):
    """Refuses one key."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        super().__init__(store)
        self._key = key

    def put(self, key: str, body: Any, **options: Any) -> Any:
        if key == self._key:
            raise StoreUnreachable("it is away")
        return super().put(key, body, **options)


def interrupted(source: ObjectStore, target: MemoryStore, key: str = "new/00000003", **options: Any) -> None:
    """Leave an unfinished copy that lacks the last blocks."""
    with pytest.raises(StoreUnreachable):
        copy(source, FailingPut(target, key), **options)
    assert read_token(target, "new/") is not None


def test_what_is_there_is_not_trusted() -> None:
    """A block that was altered, one that cannot be decoded, one that is no more and one that has another encoding."""
    data = sample()
    source, target = make_source(data, KIB, SECRET), MemoryStore("memory:target")
    interrupted(source, target)
    assert {"new/00000001"} == {key for key in keys(target) if key != "new/" + TOKEN_NAME}
    layout = ClassicLayout(target, "new/", block_size=2 * KIB, size=8 * KIB)
    codec = choose_codec(SECRET, None, bucket=target.bucket, prefix="new/", block="")
    layout.codec = codec
    for altered in (b"\1" * 2 * KIB, None):
        interrupted(source, target, resume=True)
        if altered is None:
            target.put("new/00000001", b"rubbish")
        else:
            layout.write(1, altered)
        # The source has zeros there.
        layout.write(2, b"\2" * 2 * KIB)
        interrupted(source, target, resume=True)
        assert layout.read(1) == bytes(data[2 * KIB : 4 * KIB])
    layout.codec = replace(codec, compression=None)
    layout.write(1, bytes(data[2 * KIB : 4 * KIB]))
    assert copy(source, target, resume=True).kept == 0
    require_copy(target, data, 2 * KIB, SECRET)


def test_what_is_there_and_right_is_kept() -> None:
    source, target = make_source(sample(), KIB, SECRET), MemoryStore("memory:target")
    interrupted(source, target)
    second = FaultyStore(target)
    result = copy(source, second, resume=True)
    assert (result.kept, result.written) == (1, 2)
    assert ("put", "new/00000001") not in second.calls
    require_copy(target, sample(), 2 * KIB, SECRET)


def test_a_source_that_changed_between_two_runs() -> None:
    source, target = make_source(sample(), KIB, SECRET), MemoryStore("memory:target")
    interrupted(source, target)
    data = bytearray(8 * KIB)
    data[7 * KIB] = 9
    copy(make_source(data, KIB, SECRET), target, resume=True)
    require_copy(target, data, 2 * KIB, SECRET)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": 4 * KIB}, "has blocks of 2KiB, not 4KiB"),
        ({"block_hash_prefix": True}, "has hashed keys: False, not True"),
        ({"encoding": EncodingOptions(compress="deflate")}, "stores blocks as 'zstd, encrypt-AES-256-CBC', not 'def"),
        ({"plain": True}, "stores blocks as 'zstd, encrypt-AES-256-CBC', not 'zstd'"),
        ({"encoding": EncodingOptions(key_length=64)}, "has keys of 40 bytes, not 64"),
        ({"encoding": EncodingOptions(password="other")}, "has another password"),
    ],
)
def test_other_options_than_before(options: dict[str, Any], words: str) -> None:
    source, target = make_source(sample(), KIB, SECRET), MemoryStore("memory:target")
    interrupted(source, target)
    before = dict(target._objects)
    with pytest.raises(WrongPassword if "password" in words else UsageError, match=words):
        copy(source, target, resume=True, **options)
    assert target._objects == before


def test_another_source_than_before() -> None:
    source, target = make_source(sample(), KIB, SECRET), MemoryStore("memory:target")
    interrupted(source, target)
    other = make_source(sample(), KIB, SECRET, name="memory:other")
    with pytest.raises(UsageError, match="is of memory:source/old, not of memory:other/old"):
        copy(other, target, resume=True)
    with pytest.raises(UsageError, match="has a size of 8KiB, not 16KiB"):
        copy(make_source(sample() * 2, KIB, SECRET), target, resume=True)


def test_an_unfinished_copy_can_be_erased() -> None:
    target = MemoryStore("memory:target")
    interrupted(make_source(sample(), KIB, SECRET), target)
    with pytest.raises(VolumeInUse, match="unfinished copy"):
        erase_volume(target, "new/")
    with pytest.raises(VolumeNotFound, match="unfinished copy"):
        inspect_volume(target, "new/")
    erase_volume(target, "new/", force=True)
    assert not keys(target)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("key", ["new/00000000", "new/00000007", "new/" + block_name(7, hash_prefix=True)])
def test_a_volume_that_is_there_is_left_alone(key: str, resume: bool) -> None:
    target = FaultyStore(MemoryStore("memory:target"))
    target.put(key, b"somebody's")
    with pytest.raises(VolumeExists):
        copy(make_source(sample(), KIB, SECRET), target, resume=resume)
    assert keys(target) == {key} and target.count("put") == 1


@pytest.mark.parametrize("resume", [False, True])
def test_a_mounted_target_is_left_alone(resume: bool) -> None:
    target = MemoryStore("memory:target")
    write_token(target, "new/", "", new_token(random.Random(1)), former=None)
    with pytest.raises(VolumeInUse, match="is mounted"):
        copy(make_source(sample(), KIB, SECRET), target, resume=resume)
    assert keys(target) == {"new/" + TOKEN_NAME}


@pytest.mark.parametrize("moment", ["get", "put"])
def test_a_volume_made_meanwhile_is_not_touched(moment: str) -> None:
    """Somebody creates a volume there while the copy begins, or while it runs."""
    inner = MemoryStore("memory:target")

    def create(kind: str, key: str) -> None:
        mine = (moment == "get" and kind == "put") or (moment == "put" and (kind, key) == ("put", "new/00000001"))
        if mine and "new/00000000" not in keys(inner):
            inner.put("new/00000000", b"somebody's")

    with pytest.raises(VolumeExists):
        copy(make_source(sample(), KIB, SECRET), FaultyStore(inner, watch=create))
    assert inner.get("new/00000000").body == b"somebody's"
    if moment == "get":
        assert keys(inner) == {"new/00000000"}


def test_a_later_run_ends_an_earlier_one() -> None:
    source, target = make_source(sample(), KIB, SECRET), MemoryStore("memory:target")

    def second_run(kind: str, key: str) -> None:
        if (kind, key) == ("put", "new/00000003"):
            token = read_token(target, "new/")
            assert token is not None and token.copy is not None
            write_token(target, "new/", "", new_token(random.Random(1), copy=token.copy), former=token)

    with pytest.raises(VolumeInUse, match="was replaced"):
        copy(source, FaultyStore(target, watch=second_run))
    assert "new/00000000" not in keys(target)
    require_unfinished(target)


def test_a_run_looks_for_its_token_while_it_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3backer.copying._TOKEN_SECONDS", 0.0)
    monkeypatch.setattr("s3backer.copying._LOOK", 0.001)
    source, target = make_source(b"\1" * 512 * KIB, 512), MemoryStore("memory:target")

    def remove(kind: str, key: str) -> None:
        if (kind, key) == ("put", "new/00000010"):
            target.delete("new/" + TOKEN_NAME)

    with pytest.raises(VolumeInUse, match="has gone"):
        copy_volume(source, "old/", FaultyStore(target, watch=remove), "new/", options=ONE_THREAD)
    assert len(keys(target)) < 1000


def mark_mounted(store: MemoryStore) -> None:
    write_token(store, "old/", "", new_token(random.Random(1)), former=None)


def test_a_mounted_source_is_refused_unless_forced() -> None:
    source, target = make_source(sample(), KIB, SECRET), MemoryStore("memory:target")
    mark_mounted(source)
    with pytest.raises(VolumeInUse, match="is mounted"):
        copy(source, target)
    assert not keys(target)
    copy(source, target, force=True)
    require_copy(target, sample(), 2 * KIB, SECRET)


def test_blocks_too_large_for_a_cache_are_copied() -> None:
    """A copy has none, and no option for its size."""
    source, target = MemoryStore("memory:source"), MemoryStore("memory:target")
    create_volume(source, "old/", size=64 << 20, block_size=64 << 20)
    copy_volume(source, "old/", target, "new/", options=CopyOptions(block_size=32 << 20, threads=1))
    assert inspect_volume(target, "new/").block_size == 32 << 20


def test_the_encoding_of_the_first_block_is_foreign() -> None:
    """Without block 0 the first block in the order of numbers is another than in the order of hashed keys."""
    source, target = MemoryStore("memory:source"), MemoryStore("memory:target")
    source.put("old/" + block_name(1, hash_prefix=True), bytes(KIB), content_encoding="gzip")
    for block in range(2, 8):
        source.put("old/" + block_name(block, hash_prefix=True), b"x" * KIB)
    options = VolumeOptions(size=8 * KIB, block_size=KIB, block_hash_prefix=True)
    with pytest.raises(CorruptObject, match=r"00000001.*gzip"):
        copy_volume(source, "old/", target, "new/", source_options=options)
    assert not keys(target)


@pytest.mark.parametrize("allowed", [0, 2])
def test_fewer_threads_than_wanted(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """Those that there are do the work; without any it is said at once."""
    start, started = threading.Thread.start, 0

    def limited(thread: threading.Thread) -> None:
        nonlocal started
        if started == allowed:
            raise RuntimeError("can't start new thread")
        started += 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    source, target = make_source(sample(), KIB, SECRET), MemoryStore("memory:target")
    if allowed:
        copy(source, target, threads=8)
        require_copy(target, sample(), 2 * KIB, SECRET)
    else:
        with pytest.raises(S3backerError, match="no thread can be started"):
            copy(source, target, threads=8)
        monkeypatch.undo()
        require_unfinished(target)


@pytest.mark.parametrize("hashed", [False, True])
def test_keys_of_the_other_naming_are_no_empty_volume(hashed: bool) -> None:
    """Sizes said by hand make a volume of anything, and with the wrong naming one of zeros."""
    source, target = make_source(sample(), KIB, hash_prefix=hashed), MemoryStore("memory:target")
    options = VolumeOptions(size=8 * KIB, block_size=KIB, block_hash_prefix=not hashed)
    with pytest.raises(UsageError, match="begin with a hash" if hashed else "do not begin with a hash") as caught:
        copy_volume(source, "old/", target, "new/", source_options=options)
    assert "--block-hash-prefix" in caught.value.hint
    assert not keys(target)


def test_blocks_beyond_the_end_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """They are what the original leaves when a volume shrinks, or the size was said too small."""
    source, target = make_source(sample(), KIB), MemoryStore("memory:target")
    source.delete("old/00000000")
    options = VolumeOptions(size=4 * KIB, block_size=KIB)
    copy_volume(source, "old/", target, "new/", source_options=options)
    assert "1 blocks beyond its end, such as object 'old/00000007', are not copied" in caplog.text
    require_copy(target, bytes(KIB) + sample()[KIB : 4 * KIB], KIB, PLAIN)


def test_an_unfinished_copy_is_no_source() -> None:
    source = make_source(sample(), KIB, SECRET)
    note = CopyNote("somewhere", 1, 1, False, "", 0, "")
    write_token(source, "old/", "", new_token(random.Random(1), copy=note), former=None)
    with pytest.raises(VolumeInUse, match="unfinished copy of somewhere"):
        copy(source, MemoryStore("memory:target"), force=True)


@pytest.mark.parametrize("change", ["mounted", "block 0", "another block", "new block", "block gone"])
def test_a_source_that_changes_meanwhile(change: str) -> None:
    source, target = make_source(sample(), KIB, SECRET), MemoryStore("memory:target")
    body = source.get("old/00000003").body

    def act(kind: str, key: str) -> None:
        if (kind, key) != ("put", "new/00000003"):
            return
        match change:
            case "mounted":
                mark_mounted(source)
            case "block 0":
                source.put("old/00000000", body, metadata=source.head("old/00000000").metadata)
            case "another block":
                source.put("old/00000003", body[::-1])
            case "new block":
                source.put("old/00000005", body)
            case "block gone":
                source.delete("old/00000003")

    # Each of them is seen by itself; the codec would see a part of them too.
    with pytest.raises((VolumeInUse, CorruptObject)) as caught:
        copy(source, FaultyStore(target, watch=act))
    assert "changed while it was copied" in str(caught.value) or change == "block 0"
    require_unfinished_of(target)


def require_unfinished_of(target: MemoryStore) -> None:
    token = read_token(target, "new/")
    assert token is not None and token.copy is not None and "new/00000000" not in keys(target)


def test_a_block_that_vanishes_before_it_is_read() -> None:
    source, target = make_source(sample(), KIB, SECRET), MemoryStore("memory:target")

    def act(kind: str, key: str) -> None:
        if kind == "put" and key.endswith(TOKEN_NAME):
            source.delete("old/00000007")

    with pytest.raises(VolumeInUse, match="'old/00000007' has gone"):
        copy(source, FaultyStore(target, watch=act))


def flipped(found: StoredObject) -> StoredObject:
    """Return an object with one bit of its last byte changed."""
    return replace(found, body=found.body[:-1] + bytes([found.body[-1] ^ 1]))


@pytest.mark.parametrize("encoding", [PLAIN, ENCODINGS[1], SECRET])
@pytest.mark.parametrize("block", [0, 1, 3])
def test_a_store_that_alters_a_block_is_found_out(block: int, encoding: EncodingOptions) -> None:
    key = f"new/{block:08x}"
    store = FaultyStore(
        MemoryStore("memory:target"), alter=lambda found: flipped(found) if found.info.key == key else found
    )
    with pytest.raises(CorruptObject, match=f"'{key}' .* is not what was written"):
        copy_volume(
            make_source(sample(), KIB, encoding),
            "old/",
            store,
            "new/",
            source_options=reading(encoding),
            options=replace(ONE_THREAD, block_size=2 * KIB),
        )
    assert read_token(store.inner, "new/") is not None


@pytest.mark.parametrize("key", ["new/00000002", "new/" + block_name(2, hash_prefix=True)])
def test_an_object_too_many_or_too_few(key: str) -> None:
    target = MemoryStore("memory:target")

    def add(kind: str, put: str) -> None:
        if (kind, put) == ("put", "new/00000003"):
            target.put(key, b"x")

    def remove(kind: str, put: str) -> None:
        if (kind, put) == ("put", "new/00000003"):
            target.delete("new/00000001")

    source = make_source(sample(), KIB, SECRET)
    with pytest.raises(StoreError, match="is not part of the copy"):
        copy(source, FaultyStore(target, watch=add))
    target = MemoryStore("memory:target")
    with pytest.raises(StoreError, match="'new/00000001' was written and is not in the listing"):
        copy(source, FaultyStore(target, watch=remove))


def copied_encoding(old: EncodingOptions, options: CopyOptions) -> str:
    """Return the Content-Encoding of a copy."""
    target = MemoryStore("memory:target")
    copy_volume(make_source(sample(), KIB, old), "old/", target, "new/", source_options=reading(old), options=options)
    encodings = {target.head(key).content_encoding for key in keys(target)}
    assert len(encodings) == 1
    return encodings.pop()


@pytest.mark.parametrize("old", ENCODINGS)
def test_without_options_it_is_stored_as_the_source(old: EncodingOptions) -> None:
    compression = "" if old.compress in (None, "none") else old.compress or ""
    cipher = f"encrypt-{old.encrypt}" if old.encrypt else ""
    assert copied_encoding(old, CopyOptions()) == ", ".join(filter(None, [compression, cipher]))


def test_what_was_encrypted_becomes_plain_only_if_told() -> None:
    assert copied_encoding(SECRET, CopyOptions(encoding=EncodingOptions(compress="none"))) == "encrypt-AES-256-CBC"
    assert copied_encoding(SECRET, CopyOptions(encoding=EncodingOptions(password="x"))) == "zstd, encrypt-AES-256-CBC"
    assert copied_encoding(SECRET, CopyOptions(plain=True)) == "zstd"
    with pytest.raises(UsageError, match="plain and encrypted"):
        copied_encoding(SECRET, CopyOptions(plain=True, encoding=EncodingOptions(password="x")))
    with pytest.raises(UsageError, match="a password alone"):
        copied_encoding(PLAIN, CopyOptions(encoding=EncodingOptions(password="x")))
    with pytest.raises(UsageError, match="needs a password"):
        copied_encoding(PLAIN, CopyOptions(encoding=EncodingOptions(encrypt="AES-128-CBC")))


def test_the_wrong_password_of_the_source() -> None:
    target = MemoryStore("memory:target")
    wrong = VolumeOptions(encoding=EncodingOptions(password="wrong", key_length=40))
    with pytest.raises(WrongPassword):
        copy_volume(make_source(sample(), KIB, SECRET), "old/", target, "new/", source_options=wrong)
    assert not keys(target)


@pytest.mark.parametrize("threads", [1, 16])
def test_memory_stays_bounded(threads: int) -> None:
    """However many threads were asked for, units under way fit into the memory; each is at most read once at a time."""
    unit = 64 * KIB
    source = make_source(random.Random(1).randbytes(32 * unit), unit)
    highest = 0
    running = FaultyStore(MemoryStore("memory:target"))
    seen: set[int] = set()

    def watch(kind: str, key: str) -> None:
        nonlocal highest
        if kind == "put" and parse_block_name(key.removeprefix("new/")):
            seen.add(threading.get_ident())
            highest = max(highest, len(seen))

    running._watch = watch
    copy_volume(source, "old/", running, "new/", options=CopyOptions(threads=threads, memory=12 * unit, block_size=512))
    assert highest <= 2


def test_a_source_without_metadata() -> None:
    source, target = make_source(sample(), KIB), MemoryStore("memory:target")
    found = source.get("old/00000000")
    source.put("old/00000000", found.body)
    with pytest.raises(VolumeNotFound):
        copy_volume(source, "old/", target, "new/")
    copy_volume(source, "old/", target, "new/", source_options=VolumeOptions(size=8 * KIB, block_size=KIB))
    require_copy(target, sample(), KIB, PLAIN)


def test_a_block_size_that_does_not_divide_the_size() -> None:
    target = MemoryStore("memory:target")
    with pytest.raises(UsageError, match="not a multiple"):
        copy_volume(make_source(bytes(3 * KIB), KIB), "old/", target, "new/", options=CopyOptions(block_size=2 * KIB))
    assert not keys(target)


def test_onto_itself() -> None:
    source = make_source(sample(), KIB)
    with pytest.raises(UsageError, match="onto itself"):
        copy_volume(source, "old/", source, "old/")
    copy_volume(source, "old/", source, "new/")
    assert content(source, "new/", VolumeOptions(read_only=True)) == sample()


def test_progress_ends_at_the_total() -> None:
    said: list[tuple[int, int]] = []
    copy_volume(
        make_source(sample(), KIB),
        "old/",
        MemoryStore("memory:target"),
        "new/",
        progress=lambda done, total: said.append((done, total)),
    )
    assert said[-1] == (3, 3)


def test_the_copy_can_be_written() -> None:
    target = MemoryStore("memory:target")
    copy(make_source(sample(), KIB, SECRET), target)
    with Volume.open(target, "new/", replace(reading(SECRET), read_only=False)) as volume:
        volume.write(10, b"hello")
        assert volume.read(0, 15)[10:] == b"hello"


@given(st.sets(st.integers(0, 20_000) | st.integers(0, 2**32 - 2)))
def test_a_block_set_is_a_set(blocks: set[int]) -> None:
    found = BlockSet()
    for block in [*blocks, *blocks]:
        found.add(block)
    assert list(found) == sorted(blocks) and len(found) == len(blocks)
    assert all(block in found for block in blocks) and (2**32 - 1) not in found


@pytest.mark.parametrize("line", [b"", b"x", b"{}", b'{"copy": 1}', b"[]", b'{"copy": {"source": 1}}', b"\xff"])
def test_a_note_that_is_none(line: bytes) -> None:
    assert CopyNote.parse(line) is None


def test_a_note_survives_its_text() -> None:
    note = CopyNote('file:///a"\n\udcff', 1, 2, True, "zstd", 3, '"x"')
    assert "\n" not in note.text() and CopyNote.parse(note.text().encode()) == note
    assert note.difference(note) is None


def test_all_errors_are_explained() -> None:
    with pytest.raises(S3backerError) as caught:
        copy(make_source(sample(), KIB, SECRET), FaultyStore(MemoryStore("memory:target"), fail_at=9))
    assert caught.value.hint
