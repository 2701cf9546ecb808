"""The zero scan, block offset math and bitmaps against their plain twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer import _fast
from tests.support import twins

SCANS = [_fast.is_zero, _fast.is_zero_baseline]
BITMAPS = st.one_of(
    st.binary(min_size=1, max_size=40),
    # Long runs, so that whole words are passed over.
    st.builds(
        lambda a, n, b: bytes([a]) * n + b,
        st.sampled_from([0, 255]),
        st.integers(0, 40),
        st.binary(min_size=1, max_size=3),
    ),
)


@pytest.mark.parametrize("scan", SCANS)
@given(length=st.integers(0, 1200), where=st.integers(0, 1199), value=st.integers(0, 255), skip=st.integers(0, 40))
def test_a_single_byte_decides(
    scan: Callable[[memoryview], bool], length: int, where: int, value: int, skip: int
) -> None:
    data = bytearray(length + skip)
    if where < length:
        data[skip + where] = value
    view = memoryview(data)[skip:]
    assert scan(view) is twins.is_zero(view)


@pytest.mark.parametrize("scan", SCANS)
def test_bytes_outside_the_buffer_do_not_count(scan: Callable[[memoryview], bool]) -> None:
    for length in (0, 1, 7, 8, 31, 255, 256, 257, 4096, 131072):
        data = bytearray(b"\xff" * 8 + bytes(length) + b"\xff" * 8)
        assert scan(memoryview(data)[8 : 8 + length]) is True
        assert scan(memoryview(data)[7 : 8 + length]) is False
        assert scan(memoryview(data)[8 : 9 + length]) is False


@pytest.mark.parametrize("scan", SCANS)
def test_every_position_of_a_block_is_seen(scan: Callable[[bytearray], bool]) -> None:
    data = bytearray(4096)
    for where in range(len(data)):
        data[where] = 1
        assert not scan(data), where
        data[where] = 0
    assert scan(data)


def test_zero_scan_refuses_what_is_no_buffer() -> None:
    with pytest.raises(TypeError):
        _fast.is_zero("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        _fast.is_zero(memoryview(bytes(100))[::2])


@given(offset=st.integers(0, 2**62), length=st.integers(0, 20000), shift=st.integers(9, 14))
def test_split(offset: int, length: int, shift: int) -> None:
    assert _fast.split(offset, length, 1 << shift) == twins.split(offset, length, 1 << shift)


@pytest.mark.parametrize(
    ("offset", "length", "block_size"),
    [(0, -1, 512), (2**63 - 1, 2, 512), (2**63, 1, 512), (0, 1, 256), (0, 1, 513), (0, 1, 0), (0, 1, -512)],
)
def test_split_refuses_impossible_ranges(offset: int, length: int, block_size: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        _fast.split(offset, length, block_size)


@given(bitmap=BITMAPS, data=st.data())
def test_bitmaps(bitmap: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 8 * len(bitmap)))
    stop = data.draw(st.integers(start, 8 * len(bitmap)))
    values = twins.bits(bitmap)
    inside = values[start:stop]
    assert _fast.bitmap_all(bitmap, start, stop) is all(inside)
    assert _fast.bitmap_any(bitmap, start, stop) is any(inside)
    assert _fast.bitmap_count(bitmap, start, stop) == sum(inside)
    assert _fast.bitmap_next_set(bitmap, start, stop) == twins.next_of(values, start, stop, True)
    assert _fast.bitmap_next_clear(bitmap, start, stop) == twins.next_of(values, start, stop, False)
    for change, value in ((_fast.bitmap_set, True), (_fast.bitmap_clear, False)):
        changed = bytearray(bitmap)
        change(changed, start, stop)
        assert changed == twins.pack([*values[:start], *[value] * (stop - start), *values[stop:]])


@pytest.mark.parametrize(("start", "stop"), [(0, 17), (-1, 3), (5, 4), (17, 17)])
def test_bitmaps_refuse_ranges_outside(start: int, stop: int) -> None:
    for look in (
        _fast.bitmap_all,
        _fast.bitmap_any,
        _fast.bitmap_count,
        _fast.bitmap_next_set,
        _fast.bitmap_next_clear,
    ):
        with pytest.raises(IndexError):
            look(bytes(2), start, stop)
    for change in (_fast.bitmap_set, _fast.bitmap_clear):
        with pytest.raises(IndexError):
            change(bytearray(2), start, stop)
        with pytest.raises(BufferError):
            change(bytes(2), 0, 1)  # type: ignore[arg-type]
