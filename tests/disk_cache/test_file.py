"""The file of the disk cache: copies come back as they were kept or not at all, whatever has become of the file."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer.disk_cache_file import GROUP, START, CopyFile, CopyFormat, slot_size
from s3backer.errors import UsageError
from s3backer.layouts.copies import Copy

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "disk-cache-1.copies.gz"
IDENTITY = bytes(range(32))
BLOCK = 512
TEXT = st.text(max_size=20)
FACTS = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20)
COPIES = st.builds(Copy, TEXT, st.binary(max_size=BLOCK), TEXT, st.dictionaries(FACTS, FACTS, max_size=2))


@contextmanager
def opened(path: Path, identity: bytes = IDENTITY, block_size: int = BLOCK) -> Iterator[CopyFile]:
    file = CopyFile(str(path.parent), path.name, identity, block_size)
    try:
        yield file
    finally:
        file.close()


def put(file: CopyFile, slot: int, block: int, copy: Copy) -> None:
    head = file.format.encode(block, copy)
    assert head is not None
    file.write(slot, block, head, copy.body)


def found(file: CopyFile) -> dict[int, Copy | None]:
    """Return what a mount would find: by block, None for what is damaged."""
    return {block: file.format.decode(block, file.read(slot, size)) for slot, block, size in file.entries()}


@given(COPIES, st.integers(0, 2**32 - 2))
def test_what_was_encoded_is_decoded(copy: Copy, block: int) -> None:
    form = CopyFormat(IDENTITY, BLOCK)
    head = form.encode(block, copy)
    if head is None:
        facts = (copy.etag, copy.content_encoding, *(text for item in copy.metadata.items() for text in item))
        assert sum(len(text.encode()) + 1 for text in facts) + len(copy.body) + 24 > form.slot_size
        return
    data = head + copy.body
    assert form.decode(block, data) == form.decode(block, data + b"rest") == copy
    assert form.decode(block ^ 1, data) is None
    assert CopyFormat(IDENTITY, 2 * BLOCK).decode(block, data) is None
    assert CopyFormat(IDENTITY[::-1], BLOCK).decode(block, data) is None


@given(COPIES, st.randoms(use_true_random=False))
def test_any_change_of_a_copy_is_seen(copy: Copy, source: random.Random) -> None:
    form = CopyFormat(IDENTITY, BLOCK)
    head = form.encode(3, copy)
    if head is None:
        return
    data = head + copy.body
    for _ in range(20):
        changed = bytearray(data)
        start = source.randrange(len(data))
        for place in range(start, min(len(data), start + source.choice((1, 2, 512)))):
            changed[place] ^= source.randrange(1, 256)
        assert form.decode(3, bytes(changed)) is None
        assert form.decode(3, data[:start]) is None
    assert form.decode(3, os.urandom(len(data))) is None
    assert form.decode(3, bytes(len(data))) is None


@pytest.mark.parametrize("block_size", [512, 4096, 128 << 10, 1 << 20])
def test_a_slot_takes_an_encoded_block_with_all_that_is_said_of_it(block_size: int) -> None:
    form = CopyFormat(IDENTITY, block_size)
    # zlib's stored blocks and the cipher's padding, the ETag of a multipart upload, the signature.
    body = bytes(block_size + block_size // 16384 * 5 + 11 + 32)
    facts = {"s3backer-hmac": "f" * 64, "s3backer-blocksize": "1048576", "s3backer-filesize": "9" * 19}
    assert form.encode(0, Copy(f'"{"f" * 32}-10000"', body, "deflate, encrypt-AES-256-CBC", facts)) is not None
    assert slot_size(block_size) <= max(2 * block_size, block_size * 9 // 8)


def test_a_restart_finds_everything(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache"
    copies = {slot * 3: Copy(f'"{slot}"', os.urandom(BLOCK)) for slot in (0, 1, 5, GROUP - 1, GROUP, GROUP + 7)}
    with opened(path) as file:
        assert not found(file) and not file.emptied
        for block, copy in copies.items():
            put(file, block // 3, block, copy)
        assert found(file) == copies
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    # Slots that nobody wrote take no room.
    assert path.stat().st_blocks * 512 < 100 << 10 < path.stat().st_size
    with opened(path) as file:
        assert found(file) == copies and not file.emptied
        # Of what is cut off nothing comes back when the file grows again.
        file.cut(2)
        put(file, GROUP + 8, 1, copies[0])
        assert found(file) == {0: copies[0], 3: copies[3], 1: copies[0]}
        file.cut(0)
        assert not found(file) and path.stat().st_size == START


def test_a_shorter_copy_gives_back_room(tmp_path: Path) -> None:
    large = 128 << 10
    with opened(tmp_path / "cache", block_size=large) as file:
        put(file, 0, 0, Copy('"a"', os.urandom(large)))
        put(file, 1, 1, Copy('"b"', os.urandom(large)))
        before = (tmp_path / "cache").stat().st_blocks
        put(file, 0, 0, Copy('"c"', b"x" * 1000))
        if not file.trim(0, 4096):
            pytest.skip("this filesystem has no holes")
        assert before - (tmp_path / "cache").stat().st_blocks >= 200
        assert found(file)[0] == Copy('"c"', b"x" * 1000)
        assert found(file)[1] is not None


# ── crashes ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(40))
def test_after_any_damage_a_copy_is_right_or_none(tmp_path: Path, seed: int) -> None:
    """Cut off, garbled in places, blocks of it old or zero: as a crash, a loss of power or a bad disk may leave it."""
    source = random.Random(seed)
    path = tmp_path / "cache"
    kept: dict[int, set[Copy]] = {}
    old = b""

    def write(file: CopyFile, count: int) -> None:
        for _ in range(count):
            block = source.randrange(8)
            body = source.randbytes(source.choice((0, 1, 100, BLOCK)))
            copy = Copy(f'"{len(kept.get(block, ()))}"', body, source.choice(("", "deflate")))
            kept.setdefault(block, set()).add(_frozen(copy))
            put(file, source.randrange(12), block, copy)

    with opened(path) as file:
        write(file, 20)
        old = path.read_bytes()
        write(file, 20)
    now = bytearray(path.read_bytes())
    for _ in range(source.randrange(1, 6)):
        start = source.randrange(len(now)) if source.random() < 0.3 else len(now) - source.randrange(1, 12000)
        length = source.choice((1, 8, 512, 4096))
        end = min(start + length, len(now))
        match source.randrange(4):
            case 0:
                now[start:end] = source.randbytes(end - start)
            case 1:
                now[start:end] = bytes(end - start)
            case 2:
                now[start:end] = old[start:end].ljust(end - start, b"\0")
            case 3:
                del now[end:]
    path.write_bytes(now)
    try:
        with opened(path) as file:
            for block, copy in found(file).items():
                assert copy is None or _frozen(copy) in kept[block], f"seed {seed}: wrong bytes"
    except UsageError as error:
        # Then the damage has hit the magic or the version.
        assert "left as it is" in error.hint and path.read_bytes() == now


def _frozen(copy: Copy) -> Copy:
    return Copy(copy.etag, copy.body, copy.content_encoding, ())  # type: ignore[arg-type]


# ── files that are not used ──────────────────────────────────────────────────────────────────────────────


def header(path: Path) -> bytearray:
    with opened(path):
        pass
    return bytearray(path.read_bytes())


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (0, b"x", "no disk cache of s3backer"),
        (8, b"\2", "newer s3backer"),
        (12, b"\1", "newer s3backer"),
        (15, b"\x80", "newer s3backer"),
    ],
)
def test_what_is_not_ours_or_newer_is_left_as_it_is(tmp_path: Path, offset: int, value: bytes, said: str) -> None:
    path = tmp_path / "cache"
    data = header(path)
    data[offset : offset + 1] = value
    path.write_bytes(data)
    with pytest.raises(UsageError, match=said) as caught, opened(path):
        pass
    assert str(path) in caught.value.message and "--disk-cache-directory" in caught.value.hint
    assert path.read_bytes() == data


def test_another_volumes_is_left_as_it_is(tmp_path: Path) -> None:
    data = header(tmp_path / "cache")
    with pytest.raises(UsageError, match="another volume"), opened(tmp_path / "cache", identity=bytes(32)):
        pass
    assert (tmp_path / "cache").read_bytes() == data


def test_a_feature_that_does_no_harm_is_ignored(tmp_path: Path) -> None:
    from s3backer._checksum import crc32c

    path = tmp_path / "cache"
    with opened(path) as file:
        put(file, 0, 5, Copy('"a"', b"x"))
    data = bytearray(path.read_bytes())
    data[16] = 1
    data[60:64] = crc32c(data[:60]).to_bytes(4, "little")
    path.write_bytes(data)
    with opened(path) as file:
        assert found(file) == {5: Copy('"a"', b"x")}


@pytest.mark.parametrize(("length", "place"), [(63, 0), (20, 0), (5, 0), (64, 25), (64, 40), (64, 62)])
def test_a_damaged_header_begins_a_new_file(tmp_path: Path, length: int, place: int) -> None:
    path = tmp_path / "cache"
    data = header(path)
    data[place] ^= 0x40 if place else 0
    path.write_bytes(data[:length])
    with opened(path) as file:
        assert file.emptied == "its header is damaged"
        put(file, 0, 5, Copy('"a"', b"x"))
    with opened(path) as file:
        assert found(file) == {5: Copy('"a"', b"x")}


def test_another_block_size_begins_a_new_file(tmp_path: Path) -> None:
    with opened(tmp_path / "cache") as file:
        put(file, 0, 5, Copy('"a"', b"x"))
    with opened(tmp_path / "cache", block_size=4096) as file:
        assert "block size" in file.emptied and not found(file)


def test_links_and_other_things_are_refused(tmp_path: Path) -> None:
    header(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir()
    for name in ("link", "pipe", "directory"):
        with pytest.raises(UsageError, match=name), opened(tmp_path / name):
            pass
    os.link(tmp_path / "real", tmp_path / "second")
    with pytest.raises(UsageError, match="not private"), opened(tmp_path / "second"):
        pass
    (tmp_path / "second").unlink()
    (tmp_path / "real").chmod(0o640)
    with pytest.raises(UsageError, match="not private"), opened(tmp_path / "real"):
        pass
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="others than this user can write"), opened(tmp_path / "open" / "cache"):
        pass
    assert not list((tmp_path / "open").iterdir())


def _hold(path: str, ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with opened(Path(path)):
        ready.set()
        done.wait(60)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "cache"), ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(UsageError, match="in use by another process"), opened(tmp_path / "cache"):
            pass
    finally:
        done.set()
        other.join()
    with opened(tmp_path / "cache"):
        pass


# ── released versions ────────────────────────────────────────────────────────────────────────────────────

#: What the sample of version 1 holds: blocks of 512 bytes of the volume whose identity is 00 01 … 1f.
SAMPLE = {
    0: Copy('"d41d8cd98f00b204e9800998ecf8427e"', b"\0" * 512, "", {"s3backer-blocksize": "512"}),
    7: Copy('"9dd4e461268c8034f5c8564e155c67a6-2"', b"7" * 300, "deflate, encrypt-AES-128-CBC", {"a": "b", "c": "d"}),
    2**32 - 2: Copy('"x"', b""),
}


def test_the_sample_of_version_1_is_opened(tmp_path: Path) -> None:
    (tmp_path / "cache").touch(0o600)
    (tmp_path / "cache").write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    with opened(tmp_path / "cache") as file:
        assert not file.emptied
        assert found(file) == SAMPLE


def test_what_is_written_today_is_version_1(tmp_path: Path) -> None:
    with opened(tmp_path / "cache") as file:
        for slot, (block, copy) in enumerate(SAMPLE.items()):
            put(file, 2 * slot, block, copy)
    assert (tmp_path / "cache").read_bytes() == gzip.decompress(GOLDEN.read_bytes())
