"""Reading what can be read of a journal that is damaged: for a file to look at, never for the bucket.

    a record     is known by                                and then
    right        its CRCs                                   is written, over what earlier ones had at its bytes
    damaged      its head: of which bytes, not which        these are missing, until a later one has them
    unknown      a number that no record has                any block may be older than what was flushed

Guarantees
  * The order is that of the writes, so that nothing older is written over something newer. What is missing at the end
    is left out: no older data is there in its place.
  * A block that the bucket has, as a right record says, is left out, as by a replay.
  * Where a journal was cut, and gone on with in another file, nothing behind the cut is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from s3backer._journal import check_records
from s3backer.errors import JournalDamaged
from s3backer.journal import format as form
from s3backer.journal.cipher import key_of
from s3backer.journal.files import JournalDirectory, file_name
from s3backer.journal.format import DATA, PAGE, RECORD_BYTES, ZEROS, Header, Record
from s3backer.journal.replay import (
    Recovered,
    UsedFile,
    Window,
    end_of,
    find,
    largest_payload,
    read_header,
    reading,
    take_record,
    window_for,
)
from s3backer.units import exact_size

#: Places of damage that are named.
_SHOWN = 8
#: Above every record's number.
_ENDLESS = 1 << 64


class Gap(NamedTuple):
    """Records that are not there: how many, and at which byte of a file that is seen."""

    records: int
    position: int


@dataclass(slots=True)
class Salvaged(Recovered):
    """What is right of a damaged journal. ``unknown``: records of which nothing is known; ``places``: where damage is.

    ``missing`` is known when ``writes`` has ended.
    """

    unknown: int = 0
    places: list[str] = field(default_factory=list)
    #: The number at which each file ends, as the next one begins with it.
    stops: list[int] = field(default_factory=list)

    def writes(self, key: bytes | None = None) -> Iterator[tuple[Record, bytes | None]]:
        """Yield every write that is right, in order, as ``Recovered.writes`` does."""
        missing: dict[int, list[tuple[int, int]]] = {}
        for file, stop in zip(self.files, self.stops, strict=True):
            file_key = key_of(file.header, key)
            for found in self.walk(file, stop):
                if isinstance(found, Gap) or found[0].kind not in (DATA, ZEROS):
                    continue
                record, window = found
                data = None
                if window is not None and record.kind == DATA:
                    try:
                        data = window.data(record, file_key)
                    except JournalDamaged:
                        window = None
                _note(missing, record, file.header.block_size, right=window is not None)
                if window is not None:
                    yield record, data
        self.missing = sorted(place for block, places in missing.items() if block in self.pending for place in places)

    def walk(self, file: UsedFile, stop: int) -> Iterator[tuple[Record, Window | None] | Gap]:
        """Yield the records of a file before the number ``stop``, those that are damaged without a window, and gaps."""
        with reading(self.directory):
            fd = self.directory.open(file.number)
            try:
                yield from _walk_around(fd, file, stop)
            finally:
                os.close(fd)

    @property
    def losses(self) -> list[str]:
        """What is not right, in words."""
        size = sum(stop - start for start, stop in self.missing)
        said = [f"{exact_size(size)} of it missing"] if size else []
        if self.unknown:
            records = "1 record" if self.unknown == 1 else f"{self.unknown} records"
            said.append(f"of {records} it is not known what was written, so that any block may be older than it was")
        shown = self.places[:_SHOWN]
        more = f" and {len(self.places) - len(shown)} more" if len(self.places) > len(shown) else ""
        return [*said, f"damage in {', '.join(shown)}{more}"]


def salvage(directory: JournalDirectory, volume: bytes) -> Salvaged:
    """Read what is right of a volume's journal. Raises JournalError where it cannot be read, or is another's."""
    salvaged = Salvaged(directory)
    headers: list[Header] = []
    with reading(directory):
        for number in directory.numbers():
            fd = directory.open(number)
            try:
                header = read_header(directory, fd, number, volume)
                first = _first_number(fd, header)
            except JournalDamaged as error:
                salvaged.places.append(error.message)
            else:
                headers.append(header)
                if first is None:
                    salvaged.unused.append(number)
                else:
                    salvaged.files.append(UsedFile(number, header, first, header.size))
            finally:
                os.close(fd)
    if salvaged.files:
        salvaged.stops = [*(file.first for file in salvaged.files[1:]), _ENDLESS]
    expected = 1 if salvaged.files and salvaged.files[0].number == 1 else None
    for file, stop in zip(salvaged.files, salvaged.stops, strict=True):
        if expected is not None and file.first > expected:
            _note_gap(salvaged, file, Gap(file.first - expected, PAGE))
        expected = max(expected or 0, _take_file(salvaged, file, stop))
    return salvaged


def _take_file(salvaged: Salvaged, file: UsedFile, stop: int) -> int:
    """Take what a file says of blocks; return the number that is expected next."""
    expected = file.first
    for found in salvaged.walk(file, stop):
        if isinstance(found, Gap):
            _note_gap(salvaged, file, found)
            continue
        record, window = found
        expected = record.number + 1
        if window is None:
            salvaged.places.append(f"{file_name(file.number)} at byte {record.position}")
        if record.kind == DATA:
            salvaged.pending[record.offset // file.header.block_size] = record.sequence
            salvaged.data_bytes += record.length
        elif window is not None:
            take_record(salvaged, file.header, record, window)
    return expected


def _note_gap(salvaged: Salvaged, file: UsedFile, gap: Gap) -> None:
    salvaged.unknown += gap.records
    salvaged.places.append(f"{file_name(file.number)} at byte {gap.position}")


def _first_number(fd: int, header: Header) -> int | None:
    """Return the number of the first record whose head is right, None if there is none."""
    at = find(fd, header, PAGE, 0, 0)
    return None if at is None else _head(fd, at).number


def _head(fd: int, position: int) -> Record:
    return form.unpack_record(os.pread(fd, RECORD_BYTES, position))


def _walk_around(fd: int, file: UsedFile, stop: int) -> Iterator[tuple[Record, Window | None] | Gap]:
    """Yield the records of a file, past what is damaged."""
    header, number = file.header, file.first
    buffer, largest = window_for(header), largest_payload(header)
    tag = form.TAG_BYTES if header.encrypted else 0
    at = find(fd, header, PAGE, number, 0)
    while at is not None and number < stop:
        view = buffer[: os.preadv(fd, [buffer], at)]
        found, _ = check_records(view, at, header.seed, number, largest, tag)
        window = Window(at, view, header)
        for facts in found:
            if facts[2] < stop:
                yield Record(*facts), window
        if found:
            number += len(found)
            at = end_of(Record(*found[-1]), header)
            continue
        seen = find(fd, header, at, number, 0)
        if seen is None:
            return
        record = _head(fd, seen)
        if record.number >= stop:
            return
        if seen > at or record.number > number:
            yield Gap(record.number - number, at)
            number, at = record.number, seen
        else:
            yield record, None
            number, at = number + 1, end_of(record, header)


def _note(missing: dict[int, list[tuple[int, int]]], record: Record, block_size: int, *, right: bool) -> None:
    """Note that the bytes of a record are missing, or are not any more."""
    start, stop = record.offset, record.offset + record.length
    for block in range(start // block_size, (stop - 1) // block_size + 1):
        if right and block not in missing:
            continue
        low, high = max(start, block * block_size), min(stop, (block + 1) * block_size)
        rest = [piece for place in missing.pop(block, []) for piece in _without(place, low, high)]
        if not right:
            rest.append((low, high))
        if rest:
            missing[block] = rest


def _without(place: tuple[int, int], low: int, high: int) -> list[tuple[int, int]]:
    """Return what is left of a range [start, stop) without another one."""
    start, stop = place
    return [(a, b) for a, b in ((start, min(stop, low)), (max(start, high), stop)) if a < b]
