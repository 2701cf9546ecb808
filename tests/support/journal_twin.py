"""Plain Python twins of the journal: what stands in its files, what a scan makes of them, what is not in the bucket.

Written from the drawing in ``s3backer.journal.format`` and for reading, not for speed.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from s3backer._checksum import crc32c
from s3backer.stores.base import Buffer

PAGE = 4096
RECORD = struct.Struct("<2I6Q2I")
MAGIC = 0x6B72A3C5
START, DATA, ZEROS, INTENT, DONE, MARK = range(1, 7)


@dataclass(frozen=True)
class PlainRecord:
    """A record as it stands in a file; ``data`` is its payload."""

    position: int
    kind: int
    number: int
    sequence: int
    durable: int
    offset: int
    length: int
    data: bytes

    def encode(self, salt: bytes) -> bytes:
        seed = crc32c(salt)
        fields = (MAGIC, self.kind, self.number, self.sequence, self.durable, self.offset, self.length, self.position)
        head = RECORD.pack(*fields, crc32c(self.data, seed), 0)[:-4]
        return head + crc32c(head, seed).to_bytes(4, "little") + self.data + bytes(-len(self.data) % 8)

    @property
    def end(self) -> int:
        return self.position + 64 + len(self.data) + -len(self.data) % 8


def salt_of(content: bytes) -> bytes:
    return content[40:56]


def decode(content: bytes, position: int, tag: int = 0, *, payload: bool = True) -> PlainRecord | None:
    """Return the record at a position of a file, None if there is none, or (``payload``) its payload is not right.

    ``tag``: bytes that data is longer by in the file, for being encrypted.
    """
    raw = content[position : position + 64]
    if len(raw) < 64:
        return None
    magic, kind, number, sequence, durable, offset, length, where, payload_crc, crc = RECORD.unpack(raw)
    seed = crc32c(salt_of(content))
    if magic != MAGIC or where != position or crc != crc32c(raw[:60], seed):
        return None
    stored = 0 if kind == ZEROS else length + (tag if kind == DATA else 0)
    data = content[position + 64 : position + 64 + stored]
    if payload and (len(data) < stored or crc32c(data, seed) != payload_crc):
        return None
    if payload and any(content[position + 64 + stored : position + 64 + stored + -stored % 8]):
        return None
    return PlainRecord(position, kind, number, sequence, durable, offset, length, data)


class Damaged(Exception):
    """A record that was durable is not there."""


def plain_scan(files: dict[int, bytes], tag: int = 0) -> list[PlainRecord]:
    """Return the records of files by their numbers; headers are taken to be right."""
    records: list[PlainRecord] = []
    numbers = sorted(files)
    starts = {number: decode(files[number], PAGE) for number in numbers}
    expected = 1 if numbers[:1] == [1] else None
    at, position = -1, PAGE
    while True:
        fits = [n for n in numbers if n > at and (start := starts[n]) and expected in (None, start.number)]
        if not fits or (expected is None and fits[0] != numbers[0]):
            break
        at, position = fits[0], PAGE
        while (record := decode(files[at], position, tag)) and record.number == (expected or record.number):
            records.append(record)
            expected, position = record.number + 1, record.end
    for number in (n for n in numbers if n >= at):
        for place in range(position if number == at else PAGE, len(files[number]) - 63, 8):
            if files[number][place : place + 4] != MAGIC.to_bytes(4, "little"):
                continue
            witness = decode(files[number], place, payload=False)
            if witness and witness.number > (expected or 0) and witness.durable >= (expected or 0):
                raise Damaged(at, position)
    if numbers and expected is None:
        raise Damaged(numbers[0], PAGE)
    oldest = ([0] + [record.offset for record in records if record.kind in (START, MARK)])[-1]
    if records and oldest and oldest not in files:
        raise Damaged(oldest, 0)
    return records


@dataclass
class PlainEntry:
    """What one write holds of one block."""

    sequence: int
    start: int
    data: bytes
    #: Whether it is left to the journal.
    left: bool = False


@dataclass
class PlainMap:
    """What is not in the bucket, by block, in the order in which it was written."""

    block_size: int
    blocks: dict[int, list[PlainEntry]] = field(default_factory=dict)

    def write(self, offset: int, data: bytes, sequence: int) -> None:
        while data:
            block, start = divmod(offset, self.block_size)
            piece = data[: self.block_size - start]
            self.blocks.setdefault(block, []).append(PlainEntry(sequence, start, piece))
            offset, data = offset + len(piece), data[len(piece) :]

    def stored(self, block: int, sequence: int) -> None:
        left = [entry for entry in self.blocks.pop(block, []) if entry.sequence > sequence]
        if left:
            self.blocks[block] = left

    def leave(self, block: int) -> None:
        """Leave all that there is of a block to the journal."""
        for entry in self.blocks.get(block, []):
            entry.left = True

    def carry(self, block: int, sequence: int) -> None:
        """Let a block's pieces up to one be written once more, as of that one."""
        left = self.is_left(block)
        entries, newer = ([e for e in self.blocks[block] if (e.sequence > sequence) == n] for n in (False, True))
        content, there = bytearray(self.block_size), bytearray(self.block_size)
        for entry in entries:
            place = slice(entry.start, entry.start + len(entry.data))
            content[place], there[place] = entry.data, b"1" * len(entry.data)
        self.blocks[block] = [
            PlainEntry(sequence, m.start(), bytes(content[m.start() : m.end()]), left)
            for m in re.finditer(b"1+", there)
        ] + newer

    def is_left(self, block: int) -> bool:
        """Return whether the block's content needs a write that is left to the journal."""
        needed: list[PlainEntry] = []
        for entry in self.blocks.get(block, []):
            needed = [*([] if len(entry.data) == self.block_size else needed), entry]
        return any(entry.left for entry in needed)

    def over(self, block: int, body: Buffer) -> bytes:
        """Return what a block is, of what the bucket has of it."""
        content = bytearray(body)
        for entry in self.blocks.get(block, []):
            content[entry.start : entry.start + len(entry.data)] = entry.data
        return bytes(content)
