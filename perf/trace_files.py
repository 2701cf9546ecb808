"""Traces: what was read and written of a disk, in order, in files of perf/traces/.

file      zlib of one record an access
record    start − where the access before ended, in sectors of 512 bytes, as zigzag varint
          2 × length in sectors + (1 if it is a write), as varint
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

DIRECTORY = Path(__file__).parent / "traces"
SECTOR = 512


class Access(NamedTuple):
    """Bytes [offset, offset + length), read or written."""

    offset: int
    length: int
    write: bool


def save(path: Path, accesses: Iterable[Access]) -> None:
    """Write a trace; what is not whole sectors is rounded to them."""
    out, end = bytearray(), 0
    for offset, length, write in accesses:
        first, stop = offset // SECTOR, -(-(offset + length) // SECTOR)
        step = first - end
        _put(out, 2 * step if step >= 0 else -2 * step - 1)
        _put(out, 2 * (stop - first) + write)
        end = stop
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.compress(bytes(out), 9))


def load(path: Path) -> list[Access]:
    """Read a trace."""
    numbers, accesses, end = _numbers(zlib.decompress(path.read_bytes())), [], 0
    for step in numbers:
        kind = next(numbers)
        first = end + (-(step + 1) // 2 if step & 1 else step // 2)
        end = first + kind // 2
        accesses.append(Access(first * SECTOR, kind // 2 * SECTOR, bool(kind & 1)))
    return accesses


def _put(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _numbers(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0
