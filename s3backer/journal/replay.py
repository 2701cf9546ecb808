"""Reading a journal back after an unclean end: what is in it, where it ends, and whether it can be believed.

Guarantees
  * What is returned is the beginning of what was appended, in order, and holds everything that was synced. Writes that
    were not synced and were lost or came to the disk in another order end it.
  * A record that the journal says was durable, and that is not right any more, is JournalDamaged; nothing is returned,
    and no file is changed. The same goes for a header. (Of the records after the last sync the journal cannot say so
    until a later record, or a MARK, is on the disk.)
  * What is read is what the disk has, not what the page cache kept of a write-back that failed.
  * No number is believed before its CRC was right, and none is used before it was held against the file's length.
  * Memory: one window a file, a few numbers for each block that is not in the bucket, and for each block with a note;
    of the first ``_KEPT`` records what they say, so that large ones, which are few, are read once.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from s3backer._journal import check_records, find_record
from s3backer.errors import JournalDamaged, JournalError
from s3backer.journal import format as form
from s3backer.journal.cipher import decrypt, key_of
from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import (
    AUTHENTICATED_BYTES,
    DATA,
    DONE,
    INTENT,
    MARK,
    PAGE,
    RECORD_BYTES,
    START,
    ZEROS,
    Facts,
    Header,
    Record,
)
from s3backer.journal.marks import file_name

#: Bytes read at once.
_WINDOW = 4 << 20
#: Records of which is kept what they say: 10 MiB or so.
_KEPT = 1 << 15
_KEEP = "Keep the directory and copy it elsewhere. What is in the bucket is an older state of those blocks."


@dataclass(frozen=True, slots=True)
class Intent:
    """A PUT or DELETE that began and whose end was not noted. ``condition`` and ``checksum`` as they were noted."""

    sequence: int
    condition: str
    checksum: str


@dataclass(slots=True)
class Known:
    """What the notes say of a block's object. ``etag``: that of the last PUT, "" if it was removed, None: unknown."""

    etag: str | None = None
    intent: Intent | None = None
    #: As of which sequence the bucket has the block.
    stored: int = field(default=-1, compare=False)


@dataclass(slots=True)
class Session:
    """One mount's part of the journal. ``records`` counts all kinds; 0: it made files ready and never wrote."""

    id: bytes
    token: int
    created: int
    records: int = 0


@dataclass(slots=True)
class UsedFile:
    """A file with records. ``first``: number of its first record; ``end``: where the last one ends, in bytes.

    ``kept``: what they say, in order, as it was found; None where it has to be read again.
    """

    number: int
    header: Header
    first: int
    end: int
    kept: list[list[Facts]] | None = None


@dataclass(slots=True)
class Recovered:
    """What a journal holds.

    ``pending``: the blocks that are not in the bucket as far as is noted, each with its newest sequence; ``known``:
    what the notes say of blocks. ``unused``: numbers of files without records, or only with some that were cut off.
    ``cut``: where the journal ends before the end of what stands there, (file, byte), if it does.
    """

    directory: JournalDirectory
    sessions: list[Session] = field(default_factory=list)
    files: list[UsedFile] = field(default_factory=list)
    unused: list[int] = field(default_factory=list)
    pending: dict[int, int] = field(default_factory=dict)
    known: dict[int, Known] = field(default_factory=dict)
    cut: tuple[int, int] | None = None
    #: Of all records: how many, the bytes of data and zeros in them, the last number, the last write's sequence.
    records: int = 0
    data_bytes: int = 0
    last_number: int = 0
    last_sequence: int = 0
    #: Blocks that were written, each as often as it was: no map needs more entries.
    written: int = 0
    #: Ranges [start, stop) of the volume that stood in it and cannot be read: see salvage.py.
    missing: list[tuple[int, int]] = field(default_factory=list)
    #: The same, of what the bucket has.
    elsewhere: list[tuple[int, int]] = field(default_factory=list)
    #: Number of the oldest file that was needed when it ended, 0 if that was not said.
    oldest: int = 0

    def needs(self, block: int, sequence: int) -> bool:
        """Return whether a write to a block, as of a sequence, is not in the bucket, as far as is noted."""
        known = self.known.get(block)
        return block in self.pending and (known is None or sequence > known.stored)

    @property
    def header(self) -> Header:
        """The newest used file's header."""
        return self.files[-1].header

    def facts(self, file: UsedFile) -> Iterator[list[Facts]]:
        """Yield the facts of a file's records, in order; those that were not kept are checked again."""
        if file.kept is not None:
            yield from file.kept
            return
        for found, _ in self._walked(file):
            # What was cut off here may have been written since, by nobody but a defect.
            yield [record for record in found if record[0] < file.end]

    def entries(self) -> int:
        """Return how many entries a map needs that takes all of it, which it forgets again as _journal_map.pxi says.

        They may be more than the map had in which the journal was written: where there was no room for the note that a
        block was stored, that was forgotten.
        """
        #: By block: its entries, those of them before the newest that holds the whole block, the newest sequence.
        held: dict[int, tuple[int, int, int]] = {}
        count = most = 0
        for file in self.files:
            size = file.header.block_size
            for facts in self.facts(file):
                for _, kind, _, sequence, _, offset, length in facts:
                    block, end = offset // size, offset + length
                    if kind in (DATA, ZEROS):
                        blocks = range(block, (end - 1) // size + 1)
                        most = max(most, count + len(blocks))
                        for block in blocks:
                            entries, useless, _ = held.get(block, (0, 0, 0))
                            whole = offset <= block * size and end >= (block + 1) * size
                            held[block] = entries - useless + 1, entries - useless if whole else 0, sequence
                            count += 1 - useless
                    elif kind == DONE and block in held and held[block][2] <= sequence:
                        count -= held.pop(block)[0]
        return most

    def writes(self, key: bytes | None = None) -> Iterator[tuple[Record, bytes | None]]:
        """Yield every write in order: its record, and its data or None for zeros.

        ``key``: what the volume is encrypted with. Raises WrongPassword without the right one, JournalError where
        something cannot be read.
        """
        number = self.files[0].first if self.files else 0
        for file in self.files:
            file_key = key_of(file.header, key)
            for found, window in self._walked(file):
                for facts in found:
                    record = Record(*facts)
                    if record.position < file.end and record.kind in (DATA, ZEROS):
                        yield record, window.data(record, file_key) if record.kind == DATA else None
                    number = record.number + 1
        if self.files and number <= self.last_number:
            raise JournalDamaged(f"the journal in {self.directory.path} changed while it was read", hint=_KEEP)

    def _walked(self, file: UsedFile) -> Iterator[tuple[list[Facts], Window]]:
        with reading(self.directory):
            fd = self.directory.open(file.number)
            try:
                yield from _walk(fd, file.header, file.first)
            finally:
                os.close(fd)


def scan(directory: JournalDirectory, volume: bytes) -> Recovered:
    """Read all of a volume's journal. Raises JournalDamaged, JournalError where it cannot be used or is another's.

    A header that is another volume's, or a newer version's, is told before damage: only what is damaged is given up.
    """
    recovered = Recovered(directory)
    files: list[tuple[int, int, Header]] = []
    damaged: JournalDamaged | None = None
    try:
        with reading(directory):
            for number in directory.numbers():
                fd = directory.open(number)
                files.append((number, fd, _PLACEHOLDER))
                directory.settle(fd)
                try:
                    files[-1] = (number, fd, read_header(directory, fd, number, volume))
                except JournalDamaged as error:
                    damaged = damaged or error
            if damaged is not None:
                raise damaged
            _scan_files(recovered, files)
    finally:
        for _, fd, _ in files:
            os.close(fd)
    return recovered


@contextlib.contextmanager
def reading(directory: JournalDirectory) -> Iterator[None]:
    """Let what the disk cannot read be a JournalError, or JournalDamaged."""
    try:
        yield
    except OSError as error:
        kind = JournalDamaged if error.errno == errno.EIO else JournalError
        raise kind(
            f"the journal in {directory.path} cannot be read: {error.strerror}",
            hint="Copy what can be read to another disk (ddrescue) before anything else.",
        ) from None


_PLACEHOLDER = Header(512, 0, 0, b"", b"", b"", 0, "", 0)


def read_header(directory: JournalDirectory, fd: int, number: int, volume: bytes) -> Header:
    """Return the header of a file. Raises JournalDamaged, JournalError where it is another's or a newer version's."""
    name = f"{directory.path}/{file_name(number)}"
    try:
        header = form.unpack_header(os.pread(fd, PAGE, 0))
    except form.NewerFormat as error:
        raise JournalError(f"{name} {error}", hint="Mount it with the version that wrote it, or a newer one.") from None
    except form.HeaderError as error:
        raise JournalDamaged(f"{name} {error}", hint=_KEEP) from None
    if header.volume != volume:
        raise JournalError(
            f"{name} belongs to another volume, {header.url}",
            hint=f"That volume's journal belongs in {directory.place}/{header.volume.hex()}: move this file there, "
            "unless there is one of that name.",
        )
    if header.number != number or header.size != os.fstat(fd).st_size:
        raise JournalDamaged(
            f"{name} is not the file it was: its header says number {header.number} and {header.size} bytes, it has "
            f"{os.fstat(fd).st_size}",
            hint=_KEEP,
        )
    return header


def _scan_files(recovered: Recovered, files: list[tuple[int, int, Header]]) -> None:
    rest = list(files)
    expected = None
    end = PAGE
    while rest:
        number, fd, header = rest[0]
        first = first_number(fd, header)
        if expected is None and number == 1:
            expected = 1
        if first is None or expected not in (None, first):
            # Never begun, cut off, or the place of the damage: _check_end says which, unless one of the others goes on.
            following = next((i for i, (_, f, h) in enumerate(rest) if first_number(f, h) == expected), None)
            if following is None or expected is None:
                break
            recovered.unused += [n for n, _, _ in rest[:following]]
            rest = rest[following:]
            continue
        end, expected = _take_file(recovered, number, fd, header, first)
        rest = rest[1:]
    recovered.unused += [number for number, _, _ in rest]
    for _, _, header in rest:
        _session_of(recovered, header)
    if files:
        _check_end(recovered, files, end, expected)
    if recovered.files and recovered.files[0].number > recovered.oldest > 0:
        raise JournalDamaged(
            f"the journal in {recovered.directory.path} begins with {file_name(recovered.files[0].number)}, but "
            f"{file_name(recovered.oldest)} is still needed and is missing",
            hint=_KEEP,
        )


def first_number(fd: int, header: Header) -> int | None:
    """Return the number of a file's first record, None if it has none at its beginning."""
    raw = os.pread(fd, RECORD_BYTES, PAGE)
    number = int.from_bytes(raw[8:16], "little")
    found, _ = check_records(raw, PAGE, header.seed, number, 0, 0)
    return number if found and found[0][1] == START else None


def _take_file(recovered: Recovered, number: int, fd: int, header: Header, first: int) -> tuple[int, int]:
    """Take all records of a file; return where they end and the number that is expected next."""
    session = _session_of(recovered, header)
    used = UsedFile(number, header, first, PAGE, kept=[])
    for found, window in _walk(fd, header, first):
        for facts in found:
            if facts[1] == DATA:
                # Nearly all are: a record of data lies in one block.
                recovered.pending[facts[5] // header.block_size] = facts[3]
                # What was carried has the sequence of an earlier write.
                recovered.last_sequence = max(recovered.last_sequence, facts[3])
                recovered.data_bytes += facts[6]
                recovered.written += 1
            else:
                take_record(recovered, header, facts, window)
        if found:
            last = Record(*found[-1])
            used.end = end_of(last, header)
            session.records += len(found)
            recovered.records += len(found)
            recovered.last_number = last.number
        if recovered.records > _KEPT:
            used.kept = None
        if used.kept is not None:
            used.kept.append(found)
    recovered.files.append(used)
    return used.end, recovered.last_number + 1


def _session_of(recovered: Recovered, header: Header) -> Session:
    """Return the newest session, a new one if this header begins it."""
    if not recovered.sessions or recovered.sessions[-1].id != header.session:
        recovered.sessions.append(Session(header.session, header.token, header.created))
    return recovered.sessions[-1]


def take_record(recovered: Recovered, header: Header, facts: Facts, window: Window) -> None:
    """Take what a record says, which is none of data."""
    _, kind, _, sequence, _, offset, length = facts
    first = offset // header.block_size
    if kind in (START, MARK):
        recovered.oldest = offset
        recovered.last_sequence = max(recovered.last_sequence, sequence)
    elif kind == ZEROS:
        recovered.data_bytes += length
        recovered.last_sequence = max(recovered.last_sequence, sequence)
        for block in range(first, (offset + length - 1) // header.block_size + 1):
            recovered.pending[block] = sequence
            recovered.written += 1
    elif kind == DONE:
        # A block may have been touched, which is no record.
        recovered.last_sequence = max(recovered.last_sequence, sequence)
        (etag,) = form.unpack_texts(window.payload(Record(*facts)), 1)
        known = recovered.known.setdefault(first, Known())
        known.etag, known.stored = etag.decode("utf-8", "replace"), max(known.stored, sequence)
        if known.intent is not None and known.intent.sequence < sequence:
            # Else it was under way before.
            known.intent = None
        if recovered.pending.get(first, sequence + 1) <= sequence:
            del recovered.pending[first]
    elif kind == INTENT:
        condition, checksum = (
            text.decode("utf-8", "replace") for text in form.unpack_texts(window.payload(Record(*facts)), 2)
        )
        recovered.known.setdefault(first, Known()).intent = Intent(sequence, condition, checksum)


def end_of(record: Record, header: Header) -> int:
    """Return the byte behind a record in its file."""
    stored = record.stored_length(header.encrypted)
    return record.position + RECORD_BYTES + -(-stored // 8) * 8


class Window:
    """A piece of a file."""

    def __init__(self, start: int, view: memoryview, header: Header) -> None:
        self._start, self._view, self._header = start, view, header

    def payload(self, record: Record) -> bytes:
        """Return a copy of the payload of a record in it."""
        at = record.position - self._start + RECORD_BYTES
        return bytes(self._view[at : at + record.stored_length(self._header.encrypted)])

    def data(self, record: Record, key: bytes) -> bytes:
        """Return the data of a record in it. Raises JournalDamaged."""
        if not key:
            return self.payload(record)
        at = record.position - self._start
        try:
            return decrypt(key, record, self._view[at : at + AUTHENTICATED_BYTES], self.payload(record))
        except ValueError as error:
            raise JournalDamaged(
                f"journal file {file_name(self._header.number)} is not what was encrypted at byte {record.position}: "
                f"{error}",
                hint=_KEEP,
            ) from None


def largest_payload(header: Header) -> int:
    """Return the bytes that no payload exceeds."""
    return max(header.block_size + (form.TAG_BYTES if header.encrypted else 0), form.LARGEST_NOTE)


def window_for(header: Header) -> memoryview:
    """Return a buffer for pieces of a file."""
    return memoryview(bytearray(min(header.size, max(_WINDOW, 4 * largest_payload(header)))))


def _walk(fd: int, header: Header, number: int) -> Iterator[tuple[list[Facts], Window]]:
    """Yield the facts of the records from the first one on, in groups, until one is not right."""
    tag = form.TAG_BYTES if header.encrypted else 0
    largest, buffer = largest_payload(header), window_for(header)
    position, cut = PAGE, True
    while cut and position < header.size:
        view = buffer[: os.preadv(fd, [buffer], position)]
        # The disk reads on while this is checked.
        os.posix_fadvise(fd, position + len(view), len(buffer), os.POSIX_FADV_WILLNEED)
        found, cut = check_records(view, position, header.seed, number, largest, tag)
        if not found:
            return
        yield found, Window(position, view, header)
        number += len(found)
        position = end_of(Record(*found[-1]), header)


def _check_end(recovered: Recovered, files: list[tuple[int, int, Header]], end: int, expected: int | None) -> None:
    """Raise JournalDamaged if a record behind the end says that the one expected there was durable."""
    last = recovered.files[-1].number if recovered.files else files[0][0]
    # A file is given up only when the first record of the next one is known to be on the disk: it must be there.
    damaged = expected is None
    for number, fd, header in files:
        if number < last or damaged:
            continue
        position = end if number == last else PAGE
        if find(fd, header, position, expected or 0, 0) is not None:
            recovered.cut = (last, end)
            damaged = find(fd, header, position, (expected or 0) + 1, expected or 0) is not None
    if damaged:
        # Where one file ended and the next began stood in the record that is missing.
        following = next((f" or {file_name(n)} at byte {PAGE}" for n, _, _ in files if n > last and end > PAGE), "")
        raise JournalDamaged(
            f"{recovered.directory.path}/{file_name(last)} is damaged at byte {end}{following}: what stood there was "
            "on the disk, and later records still are",
            hint=_KEEP,
        )


def find(fd: int, header: Header, position: int, number: int, durable: int) -> int | None:
    """Return the place of the first record from a position on with at least these two numbers, None without one."""
    buffer = memoryview(bytearray(min(header.size, _WINDOW + RECORD_BYTES - 8)))
    for start in range(position, header.size, _WINDOW):
        view = buffer[: os.preadv(fd, [buffer], start)]
        place = find_record(view, start, header.seed, number, durable)
        if place is not None:
            return place
    return None
