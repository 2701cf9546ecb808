"""CRC-64/NVME and CRC-32C: published values, and a bit by bit oracle for everything else."""

from __future__ import annotations

import random
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from s3backer._checksum import crc32c, crc64nvme

CHECK = b"123456789"


def oracle(data: bytes, value: int, polynomial: int, bits: int) -> int:
    ones = (1 << bits) - 1
    value ^= ones
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
    return value ^ ones


SUMS: dict[str, tuple[Callable[..., int], int, int, int]] = {
    "crc64nvme": (crc64nvme, 0x9A6C9329AC4BC9B5, 64, 0xAE8B14860A799888),
    "crc32c": (crc32c, 0x82F63B78, 32, 0xE3069283),
}
EVERY_SUM = pytest.mark.parametrize("name", SUMS)
BOTH_WAYS = pytest.mark.parametrize("by_table", [False, True])


@EVERY_SUM
@BOTH_WAYS
def test_published_values(name, by_table):
    function, _, _, expected = SUMS[name]
    assert function(CHECK, by_table=by_table) == expected
    assert function(b"", by_table=by_table) == 0
    assert function(b"", 12345, by_table=by_table) == 12345


@EVERY_SUM
@BOTH_WAYS
@given(data=st.binary(max_size=700), value=st.integers(0, 2**32 - 1))
def test_any_data_and_any_beginning(name, by_table, data, value):
    function, polynomial, bits, _ = SUMS[name]
    assert function(data, value, by_table=by_table) == oracle(data, value, polynomial, bits)


@EVERY_SUM
def test_every_length_and_every_alignment(name):
    function, *_ = SUMS[name]
    data = memoryview(random.Random(1).randbytes(5000))
    for length in [*range(300), 4095, 4096, 4097, 4900]:
        for start in (0, 1, 7, 15, 64):
            piece = data[start : start + length]
            assert function(piece) == function(bytes(piece), by_table=True)


@EVERY_SUM
@given(data=st.binary(max_size=2000), at=st.integers(0, 2000))
def test_a_sum_goes_on_from_an_earlier_one(name, data, at):
    function, *_ = SUMS[name]
    assert function(data[at:], function(data[:at])) == function(data)


@EVERY_SUM
def test_what_is_no_buffer(name):
    function, *_ = SUMS[name]
    with pytest.raises(TypeError):
        function("text")
    with pytest.raises((BufferError, ValueError)):
        function(memoryview(bytes(100))[::2])
