"""Reading what can be read of a journal that is damaged: for a file to look at, never for the bucket.

    a record     is known by                                and then
    right        its CRCs                                   is written, over what earlier ones had at its bytes
    damaged      its head: of which bytes, not which        these are missing, until a later one has them
    unknown      a number that no record has                any block may be older than what was flushed
    not believed nothing says that what is damaged before   it is unknown
                 it was on the disk: a journal ends there

Guarantees
  * The order is that of the writes, so that nothing older is written over something newer. What is missing at the end
    is left out: no older data is there in its place.
  * A block that the bucket has, as a right record says, is left out, as by a replay.
  * Where a journal was cut, and gone on with in another file, nothing behind the cut is taken, whatever is damaged of
    that file: it stands behind something of which its own session does not say that it was on the disk.
  * Nothing tells how much is missing at the end of it: so its losses always say that any block may be older.
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
from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import DATA, DONE, PAGE, RECORD_BYTES, ZEROS, Header, Record
from s3backer.journal.marks import file_name
from s3backer.journal.replay import (
    Recovered,
    UsedFile,
    Window,
    end_of,
    find,
    first_number,
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


class _Missing(NamedTuple):
    """Bytes of the volume from ``start`` to ``stop`` that a damaged record held, and the sequence of that write."""

    start: int
    stop: int
    sequence: int


class Gap(NamedTuple):
    """Records that are not there: how many, from which number on, and at which byte of a file that is seen."""

    records: int
    number: int
    position: int

    @property
    def last(self) -> int:
        """The last one's number."""
        return self.number + self.records - 1


@dataclass(slots=True)
class Salvaged(Recovered):
    """What is right of a damaged journal. ``unknown``: records of which nothing is known; ``places``: where damage is.

    ``missing`` is known when ``writes`` has ended.
    """

    unknown: int = 0
    places: list[str] = field(default_factory=list)
    #: The number at which each file ends: a later one begins with it, or nothing from there on is believed.
    stops: list[int] = field(default_factory=list)

    def writes(self, key: bytes | None = None) -> Iterator[tuple[Record, bytes | None]]:
        """Yield every write that is right, in order, as ``Recovered.writes`` does."""
        missing: dict[int, list[_Missing]] = {}
        stored: dict[int, list[_Missing]] = {}
        for file, stop in zip(self.files, self.stops, strict=True):
            file_key = key_of(file.header, key)
            for found in self.walk(file, stop):
                if isinstance(found, Gap):
                    continue
                record, window = found
                if record.kind == DONE and window is not None:
                    _note_stored(missing, stored, record.offset // file.header.block_size, record.sequence)
                if record.kind not in (DATA, ZEROS):
                    continue
                data = None
                if window is not None and record.kind == DATA:
                    try:
                        data = window.data(record, file_key)
                    except JournalDamaged:
                        window = None
                for places in (missing, stored) if window is not None else (missing,):
                    _note(places, record, file.header.block_size, right=window is not None)
                if window is not None:
                    yield record, data
        self.missing, self.elsewhere = self._places(missing), self._places(stored)

    def _places(self, missing: dict[int, list[_Missing]]) -> list[tuple[int, int]]:
        return sorted((m.start, m.stop) for block in missing.keys() & self.pending.keys() for m in missing[block])

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
        records = "an unknown number of records"
        if self.unknown:
            records = "at least 1 record" if self.unknown == 1 else f"at least {self.unknown} records"
        said.append(f"of {records} it is not known what was written, so that any block may be older than it was")
        if self.places:
            shown = self.places[:_SHOWN]
            more = f" and {len(self.places) - len(shown)} more" if len(self.places) > len(shown) else ""
            said.append(f"damage in {', '.join(shown)}{more}")
        return said


def salvage(directory: JournalDirectory, volume: bytes) -> Salvaged:
    """Read what is right of a volume's journal. Raises JournalError where it cannot be read, or is another's."""
    salvaged = Salvaged(directory)
    with reading(directory):
        for number in directory.numbers():
            fd = directory.open(number)
            try:
                _sort_in(salvaged, fd, number, volume)
            finally:
                os.close(fd)
        _find_stops(salvaged)
        _take_files(salvaged)
    if salvaged.files and salvaged.files[0].number > salvaged.oldest > 0:
        name = file_name(salvaged.oldest)
        if salvaged.oldest not in directory.numbers():
            salvaged.places.append(f"{name}, which is missing")
    return salvaged


def _sort_in(salvaged: Salvaged, fd: int, number: int, volume: bytes) -> None:
    """Put a file among those that can be used, as far as it can be."""
    try:
        header = read_header(salvaged.directory, fd, number, volume)
    except JournalDamaged:
        found = _header_of(fd, number, volume)
        if found is None:
            salvaged.places.append(f"the header of {file_name(number)}")
            return
        header = found
        salvaged.places.append(f"{file_name(number)}, which has not the length it had")
    first = _first_number(fd, header)
    if first is None:
        salvaged.unused.append(number)
    else:
        salvaged.files.append(UsedFile(number, header, first, header.size))


def _header_of(fd: int, number: int, volume: bytes) -> Header | None:
    """Return the header of a file that has another length than that says; None if it is not right."""
    try:
        header = form.unpack_header(os.pread(fd, PAGE, 0))
    except form.HeaderError:
        return None
    return header if (header.number, header.volume) == (number, volume) else None


def _find_stops(salvaged: Salvaged) -> None:
    """Find where each file ends. One that was cut off begins with a number that a later one has, too."""
    stop = _ENDLESS
    for file in reversed(salvaged.files):
        salvaged.stops.insert(0, stop)
        stop = min(stop, file.first)


def _take_files(salvaged: Salvaged) -> None:
    """Take what all files say of blocks."""
    expected = 1 if salvaged.files and salvaged.files[0].number == 1 else None
    behind, ended = 0, b""
    for index, file in enumerate(salvaged.files):
        if file.first >= salvaged.stops[index]:
            continue
        if file.header.session == ended:
            # Of a session of which something before is not believed.
            behind = max(behind, file.first + 1)
            salvaged.stops[index] = 0
            continue
        if expected is not None and file.first > expected:
            gap = Gap(file.first - expected, expected, PAGE)
            _note_gap(salvaged, file, gap)
            expected = file.first
            if not _was_durable(salvaged, index, gap.last, PAGE):
                behind = max(behind, file.first + 1)
                salvaged.stops[index], ended = 0, file.header.session
                continue
        reached, last = _take_file(salvaged, index)
        expected = max(expected or 0, reached)
        if last >= reached:
            behind, ended = max(behind, last + 1), file.header.session
    salvaged.unknown += max(0, behind - (expected or 0))


def _take_file(salvaged: Salvaged, index: int) -> tuple[int, int]:
    """Take what a file says of blocks; return the number that is expected next, and the last one that was seen.

    The latter is not below the former where the rest of the file is not believed.
    """
    file, stop = salvaged.files[index], salvaged.stops[index]
    expected, last, believed = file.first, file.first - 1, True
    for found in salvaged.walk(file, stop):
        if isinstance(found, Gap):
            last = found.last
            if believed and _was_durable(salvaged, index, last, found.position):
                _note_gap(salvaged, file, found)
                expected = last + 1
            elif believed:
                believed, salvaged.stops[index] = False, found.number
                salvaged.places.append(f"{file_name(file.number)} at byte {found.position}")
            continue
        record, window = found
        last = record.number
        if not believed:
            continue
        if window is None:
            salvaged.places.append(f"{file_name(file.number)} at byte {record.position}")
            if not _was_durable(salvaged, index, record.number, record.position):
                believed, salvaged.stops[index] = False, record.number
                continue
        expected = record.number + 1
        if record.kind == DATA:
            salvaged.pending[record.offset // file.header.block_size] = record.sequence
            salvaged.data_bytes += record.length
        elif window is not None:
            take_record(salvaged, file.header, record, window)
    return expected, last


def _was_durable(salvaged: Salvaged, index: int, number: int, position: int) -> bool:
    """Whether it is known that all up to a number was on the disk, where a file has what is behind it at a position.

    A later record of the session says so, or that the next session went on behind it.
    """
    session = salvaged.files[index].header.session
    for at in range(index, len(salvaged.files)):
        file = salvaged.files[at]
        fd = salvaged.directory.open(file.number)
        try:
            if file.header.session != session:
                begins = first_number(fd, file.header)
                between = range(salvaged.files[at - 1].number + 1, file.number)
                return begins is not None and begins > number and all(n in salvaged.unused for n in between)
            if find(fd, file.header, position if at == index else PAGE, number + 1, number) is not None:
                return True
        finally:
            os.close(fd)
    return False


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
            yield Gap(record.number - number, number, at)
            number, at = record.number, seen
        else:
            yield record, None
            number, at = number + 1, end_of(record, header)


def _note(missing: dict[int, list[_Missing]], record: Record, block_size: int, *, right: bool) -> None:
    """Note that the bytes of a record are missing, or are not any more."""
    start, stop = record.offset, record.offset + record.length
    for block in range(start // block_size, (stop - 1) // block_size + 1):
        if right and block not in missing:
            continue
        low, high = max(start, block * block_size), min(stop, (block + 1) * block_size)
        rest = [piece for place in missing.pop(block, []) for piece in _without(place, low, high)]
        if not right:
            rest.append(_Missing(low, high, record.sequence))
        if rest:
            missing[block] = rest


def _note_stored(
    missing: dict[int, list[_Missing]], stored: dict[int, list[_Missing]], block: int, sequence: int
) -> None:
    """Note that the bucket has a block up to a sequence, and so what is missing of it."""
    for place in missing.pop(block, []):
        where = stored if place.sequence <= sequence else missing
        where.setdefault(block, []).append(place)


def _without(place: _Missing, low: int, high: int) -> list[_Missing]:
    """Return what is left of a place without the range [low, high)."""
    pieces = (place.start, min(place.stop, low)), (max(place.start, high), place.stop)
    return [_Missing(start, stop, place.sequence) for start, stop in pieces if start < stop]
