"""The compiled hot path: zero scan beside its yardsticks, bitmaps, block offset math, cache hits."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from perf.side_by_side import Report, compare, interleave
from s3backer import _fast

CHUNK = 128 << 10


def last_level_cache() -> int:
    """Return the bytes of the largest cache of CPU 0."""
    sizes = [32 << 20]
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = entry.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes)


@pytest.fixture(scope="module")
def yardstick(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("yardstick") / "yardstick.so"
    source = Path(__file__).with_name("yardstick.c")
    # Tuned for this machine, unlike ours, which has to choose at run time.
    subprocess.run(["gcc", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    for name in ("scan_or", "scan_memcmp"):
        function = getattr(loaded, name)
        function.restype = ctypes.c_size_t
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return loaded


def test_zero_scan_of_a_large_buffer(report: Report, yardstick: ctypes.CDLL) -> None:
    """All zero, one thread, one call per 128 KiB; the yardsticks loop in C, ours is called from Python each time."""
    size = 4 * last_level_cache()
    with mmap.mmap(-1, size) as buffer:
        # Written once, so that every page is a page of its own and not the kernel's zero page.
        for page in range(0, size, mmap.PAGESIZE):
            buffer[page] = 0
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        chunks = [(ctypes.c_char * CHUNK).from_address(address + start) for start in range(0, size, CHUNK)]
        views = [memoryview(chunk).cast("B") for chunk in chunks]

        def ours() -> None:
            for view in views:
                assert _fast.is_zero(view)

        times = interleave(
            {
                "zero scan": ours,
                "OR loop": lambda: yardstick.scan_or(address, size, CHUNK),
                "memcmp": lambda: yardstick.scan_memcmp(address, size, CHUNK),
            }
        )
        report.add(compare(times, "zero scan", ["OR loop", "memcmp"], 0.8))


@pytest.mark.parametrize("kind", ["zero", "first byte set", "last byte set"])
def test_zero_scan_of_4_kib(benchmark: Any, kind: str) -> None:
    block = bytearray(4096)
    if kind != "zero":
        block[0 if kind == "first byte set" else -1] = 1
    assert benchmark(_fast.is_zero, block) is (kind == "zero")


def test_zero_scan_of_128_kib_first_byte_set(benchmark: Any) -> None:
    block = bytearray(CHUNK)
    block[0] = 1
    assert benchmark(_fast.is_zero, block) is False


@pytest.mark.parametrize("name", ["bitmap_count", "bitmap_all", "bitmap_next_clear"])
def test_bitmap_of_one_block(benchmark: Any, name: str) -> None:
    """The 256 sectors of a 128 KiB block."""
    benchmark(getattr(_fast, name), bytes(b"\xff" * 32), 0, 256)


def test_bitmap_set_of_one_block(benchmark: Any) -> None:
    benchmark(_fast.bitmap_set, bytearray(32), 3, 253)


def test_split_of_an_unaligned_request(benchmark: Any) -> None:
    """128 KiB at an odd offset over blocks of 4 KiB: 33 pieces."""
    assert len(benchmark(_fast.split, (1 << 40) + 5, CHUNK, 4096)) == 33


@pytest.fixture(params=[4096, 131072], ids=["4 KiB blocks", "128 KiB blocks"])
def slab(request: pytest.FixtureRequest) -> _fast.Slab:
    block_size = request.param
    slots = (64 << 20) // block_size
    slab = _fast.Slab(block_size, slots, slots - 1)
    body = os.urandom(block_size)
    for block in range(slots):
        slab.fill(block, body)
    return slab


@pytest.fixture
def mostly_dirty(slab: _fast.Slab) -> _fast.Slab:
    """Nine tenths of the slots are dirty, which leaves few to evict."""
    body = os.urandom(slab.block_size)
    for block in range(slab.slots * 9 // 10):
        slab.write(block * slab.block_size, body, 0.0)
    return slab


@pytest.mark.parametrize("length", [4096, 131072])
def test_cache_hit_read(benchmark: Any, slab: _fast.Slab, length: int) -> None:
    out = bytearray(length)
    assert benchmark(slab.read, 1 << 20, out) == []


@pytest.mark.parametrize("length", [4096, 131072])
def test_cache_hit_write(benchmark: Any, slab: _fast.Slab, length: int) -> None:
    data = os.urandom(length)
    assert benchmark(slab.write, 1 << 20, data, 0.0) == (length, _fast.DONE)


def test_cache_hit_read_of_4_kib_mostly_dirty(benchmark: Any, mostly_dirty: _fast.Slab) -> None:
    assert benchmark(mostly_dirty.read, 1 << 20, bytearray(4096)) == []


def test_cache_hit_write_of_4_kib_mostly_dirty(benchmark: Any, mostly_dirty: _fast.Slab) -> None:
    assert benchmark(mostly_dirty.write, 1 << 20, os.urandom(4096), 0.0) == (4096, _fast.DONE)


def evict_and_fill(benchmark: Any, slab: _fast.Slab) -> None:
    """Give a block that is not cached the place of another."""
    body, blocks = os.urandom(slab.block_size), itertools.count(slab.slots)
    benchmark(lambda: slab.fill(next(blocks), body))
    assert slab.evictions


def test_evict_and_fill_a_block(benchmark: Any, slab: _fast.Slab) -> None:
    evict_and_fill(benchmark, slab)


def test_evict_and_fill_a_block_mostly_dirty(benchmark: Any, mostly_dirty: _fast.Slab) -> None:
    evict_and_fill(benchmark, mostly_dirty)


def test_longest_search_for_a_victim() -> None:
    """In a large cache that is mostly dirty nobody waits long for the lock. CLOCK passed the dirty ones: 2.8 ms."""
    slots = 1 << 18
    slab, body, longest = _fast.Slab(512, slots, slots - 1), os.urandom(512), 0
    for block in range(slots):
        slab.fill(block, body)
    for block in range(slots * 9 // 10):
        slab.write(block * 512, body, 0.0)
    for block in range(slots, slots + 100_000):
        began = time.thread_time_ns()
        slab.fill(block, body)
        longest = max(longest, time.thread_time_ns() - began)
    print(f"the longest of 100000 took {longest / 1000:.0f} µs of processor time")
    assert longest < 1_000_000


def test_pin_and_unpin_4_kib(benchmark: Any) -> None:
    """Through Python, which makes a view; the C functions themselves take a small part of it."""
    slab = _fast.Slab(4096, 64, 32)
    slab.fill(1, os.urandom(4096))
    benchmark(lambda: slab.unpin(slab.pin(4096, 4096)[1]))
    assert slab.pinned == 0
