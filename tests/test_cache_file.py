"""The original's cache file: read back as written, and every damage refused with one sentence that names it."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3backer.cache_file import CacheFile
from s3backer.errors import CorruptObject, UsageError, VolumeInUse
from tests.support.cache_files import Slot, cache_file, u32

BLOCK = 512
ETAG = bytes(range(1, 17))
shared_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def filled(block: int) -> bytes:
    return u32(block) * (BLOCK // 4)


def entries() -> Any:
    numbers = st.lists(st.integers(0, 2**32 - 2), unique=True, max_size=12)
    kinds = st.sampled_from(["dirty", "clean", "clean zero"])

    def slots(blocks: list[int], data: st.DataObject) -> list[Slot | None]:
        made: list[Slot | None] = []
        for block in blocks:
            kind = data.draw(kinds)
            etag = ETAG if kind == "clean" else bytes(16)
            made.append(Slot(block, data.draw(st.sampled_from([filled(block), bytes(BLOCK)])), kind == "dirty", etag))
            made += [None] * data.draw(st.integers(0, 2))
        return made

    return st.builds(slots, numbers, st.data())


def problem(path: Path) -> str:
    with pytest.raises((CorruptObject, UsageError)) as caught:
        CacheFile(str(path))
    assert str(path) in caught.value.message and caught.value.hint
    return caught.value.message


@given(
    slots=entries(),
    token=st.integers(0, 0x7FFFFFFE),
    page=st.sampled_from([4096, 16384, 65536]),
    free=st.integers(0, 10000),
)
@shared_path
def test_what_was_written_is_read(slots: list[Slot | None], token: int, page: int, free: int, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(cache_file(slots, block_size=BLOCK, token=token, page=page, free_at_end=free))
    dirty = {slot.block: slot.data for slot in slots if slot is not None and slot.dirty}
    with CacheFile(str(path)) as file:
        assert (file.header.token, file.header.block_size) == (token, BLOCK)
        assert file.header.slots == len(slots) + free
        assert file.dirty_blocks == sorted(dirty)
        assert {block: file.read(block) for block in dirty} == dirty
        file.check_unchanged()


def test_the_older_form_has_nothing_dirty(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    used = [Slot(7, filled(7), etag=ETAG), None, Slot(1, filled(1), etag=ETAG)]
    path.write_bytes(cache_file(used, block_size=BLOCK, old=True))
    with CacheFile(str(path)) as file:
        assert (file.dirty_blocks, file.header.token, file.header.slots) == ([], 0, 3)
    # 203 entries of 20 bytes end within the first page, 204 of them after it.
    for slots, start in ((203, 4096), (204, 8192)):
        path.write_bytes(cache_file([None] * slots, block_size=BLOCK, old=True))
        with CacheFile(str(path)) as file:
            assert file.header.data_offset == start


def valid() -> bytes:
    slots = [Slot(7, filled(7)), None, Slot(0, filled(0)), Slot(5, filled(5), False, ETAG)]
    return cache_file(slots, block_size=BLOCK, token=0x1234)


def changed(offset: int, new: bytes) -> bytes:
    content = bytearray(valid())
    content[offset : offset + len(new)] = new
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (b"\x7b", "too short"),
        (valid()[:31], "too short"),
        (valid()[:63], "ends within its header"),
        (b"ELF, or what", "no cache file"),
        (changed(0, bytes.fromhex("e496f17b")), "byte order"),
        (changed(4, u32(65)), "65 bytes; 32 and 64"),
        (changed(4, u32(32)), "flags 0x1"),
        (changed(8, u32(8)), "8 and 4 bytes"),
        (changed(12, u32(8)), "4 and 8 bytes"),
        (changed(16, u32(0)), "0 bytes, which is no power"),
        (changed(16, u32(513)), "513 bytes, which is no power"),
        (changed(16, u32(256)), "256 bytes, which is no power"),
        (changed(20, u32(0)), "aligned to 0"),
        (changed(20, u32(4095)), "aligned to 4095"),
        (changed(24, u32(0)), "flags 0x0"),
        (changed(24, u32(3)), "flags 0x3"),
        (changed(28, u32(0xFFFFFFFF)), "directory of 4294967295 slots"),
        (changed(32, u32(0xFFFFFFFF)), "token ffffffff"),
        (changed(32, u32(0x7FFFFFFF)), "token 7fffffff"),
        (changed(36, u32(1)), "always zero"),
        (changed(60, u32(1)), "always zero"),
        (changed(64, u32(5)), "block 5 twice"),
        (changed(64, u32(0xFFFFFFFF)), "block 4294967295"),
        (changed(84, u32(2)), "flags 0x2 at slot 0 (block 7)"),
        (changed(64 + 3 * 24 + 20, u32(1)), "block 5 at slot 3 both"),
        (valid()[: 4096 + 3 * BLOCK - 1], "dirty block 0 (slot 2) end at byte 5632"),
        (valid()[:4096], "dirty block 7 (slot 0)"),
        (valid()[:159], "directory of 4 slots ends at byte 160"),
    ],
)
def test_damage_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(content)
    assert said in problem(path)


def test_a_clean_block_beyond_the_end_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(valid()[: 4096 + 3 * BLOCK])
    with CacheFile(str(path)) as file:
        assert file.dirty_blocks == [0, 7]


def read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        with CacheFile(str(path)) as file:
            for block in file.dirty_blocks:
                assert len(file.read(block)) == file.header.block_size
    except (CorruptObject, UsageError) as error:
        assert str(path) in error.message and error.hint


@given(st.binary(max_size=300), st.booleans())
@shared_path
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, signed: bool) -> None:
    read_or_refuse(tmp_path / "cache", u32(0xE496F17B) + content if signed else content)


@given(st.lists(st.integers(0, 8 * 160 - 1), min_size=1, max_size=3), st.integers(0, len(valid())))
@shared_path
def test_any_bits_are_read_or_refused(tmp_path: Path, bits: list[int], cut: int) -> None:
    content = bytearray(valid())
    for bit in bits:
        content[bit // 8] ^= 1 << bit % 8
    read_or_refuse(tmp_path / "cache", bytes(content))
    read_or_refuse(tmp_path / "cache", bytes(content[:cut]))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("used", [0, 1, 2**31 + 77, 2**32 - 2])
def test_a_huge_sparse_directory_needs_little_memory_and_time(tmp_path: Path, used: int) -> None:
    path = tmp_path / "cache"
    slots = 2**32 - 1
    with open(path, "wb") as file:
        file.write(u32(0xE496F17B, 64, 4, 4, BLOCK, 4096, 1, slots, 0, 0, 0, 0, 0, 0, 0, 0))
        file.truncate((64 + slots * 24 + 4095) // 4096 * 4096 + (used + 1) * BLOCK)
        file.seek(64 + used * 24)
        file.write(u32(7) + bytes(16) + u32(1))
    tracemalloc.start()
    try:
        with CacheFile(str(path)) as cache:
            assert cache.dirty_blocks == [7]
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def make_link(path: Path) -> None:
    path.with_name("there").write_bytes(valid())
    path.symlink_to("there")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (make_link, "symbolic link"),
    ],
)
def test_what_is_no_file(make: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    make(tmp_path / "cache")
    assert said in problem(tmp_path / "cache")


def test_a_file_that_another_process_writes_to_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(valid())
    code = "import sys; f = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(VolumeInUse, match=f"in use by process {process.pid}"):
            CacheFile(str(path))
        process.communicate()
    CacheFile(str(path)).close()


def test_the_kernel_tells_of_writers_that_proc_does_not_show(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(valid())
    # Our own descriptors are not looked for in /proc.
    with open(path, "r+b"), pytest.raises(VolumeInUse, match="open for writing"):
        CacheFile(str(path))


def test_two_imports_of_a_file_exclude_each_other_and_changes_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(valid())
    with CacheFile(str(path)) as file:
        with pytest.raises(VolumeInUse, match="imported already"):
            CacheFile(str(path))
        path.write_bytes(valid() + b"x")
        with pytest.raises(VolumeInUse, match="was changed"):
            file.check_unchanged()
        os.truncate(path, 4096 + 100)
        with pytest.raises(CorruptObject, match="shorter"):
            file.read(7)
