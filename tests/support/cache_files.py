"""Writes cache files as the original does, by a plain hand, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SIGNATURE = 0xE496F17B


@dataclass(frozen=True)
class Slot:
    """A used slot. A dirty one has an ETag of zeros."""

    block: int
    data: bytes
    dirty: bool = True
    etag: bytes = bytes(16)


def u32(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def cache_file(
    slots: Sequence[Slot | None],
    *,
    block_size: int,
    token: int = 0,
    page: int = 4096,
    old: bool = False,
    free_at_end: int = 0,
) -> bytes:
    """Return a cache file; None is a free slot. ``old``: the form before 1.5.0."""
    head = u32(SIGNATURE, 32 if old else 64, 4, 4, block_size, page, 0 if old else 1, len(slots) + free_at_end)
    if not old:
        head += u32(token, 0, 0, 0, 0, 0, 0, 0)
    directory = b""
    data = b""
    for slot in [*slots, *[None] * free_at_end]:
        if slot is None:
            directory += bytes(20 if old else 24)
        else:
            directory += u32(slot.block) + slot.etag + (b"" if old else u32(int(slot.dirty)))
    for slot in slots:
        data += slot.data if slot is not None else bytes(block_size)
    head += directory
    return head + bytes(-len(head) % page) + data


def put_cache_file(path: Path, slots: Sequence[Slot | None], *, block_size: int, token: int) -> Path:
    path.write_bytes(cache_file(slots, block_size=block_size, token=token, free_at_end=3))
    return path
