"""What can be read of a damaged journal: all that is right, in order, and never something older in its place."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import PAGE, RECORD_BYTES, Record
from s3backer.journal.salvage import Salvaged, salvage
from s3backer.journal.service import Mount
from tests.support.journal_twin import DATA, DONE, PlainRecord, decode, plain_scan
from tests.support.journals import BLOCK, BLOCKS, MOUNT, VOLUME, SmallJournal, files_of, scan_path

KEY = b"what it is encrypted with"
#: A record of a test's journal: its file, and as it stands there.
Place = tuple[int, PlainRecord]


def mount_of(session: int) -> Mount:
    return replace(MOUNT, session=bytes([session]) * 16)


def made(path: Path, key: bytes | None = None) -> None:
    """A journal of two sessions and several files, all of it synced, some of it in the bucket."""
    source = random.Random(3)
    for session in range(2):
        with SmallJournal(path, files=8, key=key, mount=mount_of(session)) as small:
            for turn in range(40):
                length = source.choice((512, 700, BLOCK))
                small.write(source.randrange(BLOCKS * BLOCK - length), source.randbytes(length))
                if session and turn == 20:
                    small.core.write_zeros(0, 2 * BLOCK, 0.0)
                    small.journal.done(3, small.slab.sequence, '"e"')
            small.core.sync()
    assert len(files_of(path)) >= 4


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def key(request: pytest.FixtureRequest) -> bytes | None:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def path(tmp_path: Path, key: bytes | None) -> Path:
    made(tmp_path / "journal", key)
    return tmp_path / "journal"


def places(path: Path, key: bytes | None) -> list[Place]:
    """Return the records that count, in order."""
    tag = 16 if key else 0
    files = files_of(path)
    wanted, found = plain_scan(files, tag), []
    for number, content in files.items():
        position = PAGE
        while record := decode(content, position, tag):
            if record in wanted:
                found.append((number, record))
            position = record.end
    return sorted(found, key=lambda place: place[1].number)


def spoil(path: Path, number: int, position: int, content: bytes = b"\xff" * 4) -> None:
    with (path / f"{number:08d}.journal").open("r+b") as file:
        file.seek(position)
        file.write(content)


def salvaged(path: Path, key: bytes | None) -> tuple[Salvaged, list[tuple[Record, bytes | None]]]:
    with JournalDirectory(path) as directory:
        found = salvage(directory, VOLUME)
        return found, list(found.writes(key))


def image(writes: Iterator[tuple[Record, bytes | None]] | list[tuple[Record, bytes | None]]) -> dict[int, int]:
    """Return the bytes of a disk, by their offsets, after some writes."""
    disk: dict[int, int] = {}
    for record, data in writes:
        disk |= dict(enumerate(data or bytes(record.length), record.offset))
    return disk


def bytes_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {byte for start, stop in ranges for byte in range(start, stop)}


def test_of_a_sound_one_it_is_all(path: Path, key: bytes | None) -> None:
    recovered, writes = scan_path(path, key=key)
    found, right = salvaged(path, key)
    assert right == writes
    assert (found.pending, found.data_bytes) == (recovered.pending, recovered.data_bytes)
    assert not found.missing and not found.unknown and not found.places


def test_any_damaged_record_of_data_is_missed_where_nothing_later_covers_it(path: Path, key: bytes | None) -> None:
    """The oracle is the disk as it would be, each byte with the write that it is from."""
    recovered, writes = scan_path(path, key=key)
    sound = image(writes)
    newest = {
        byte: record.number for record, _ in writes for byte in range(record.offset, record.offset + record.length)
    }
    partly = stored = 0
    ((_, done),) = [place for place in places(path, key) if place[1].kind == DONE]
    for number, record in [place for place in places(path, key) if place[1].kind == DATA]:
        spoil(path, number, record.position + RECORD_BYTES + record.length // 2)
        found, right = salvaged(path, key)
        assert found.places == [f"{number:08d}.journal at byte {record.position}"] and not found.unknown
        assert [kept for kept, _ in right] == [kept for kept, _ in writes if kept.number != record.number]
        gone = {byte for byte, last in newest.items() if last == record.number and byte // BLOCK in recovered.pending}
        # What the bucket has is not missing.
        there = {byte for byte in gone if byte // BLOCK == done.offset // BLOCK and record.sequence <= done.sequence}
        assert bytes_of(found.missing) == gone - there and bytes_of(found.elsewhere) == there
        stored += len(there)
        disk = image(right)
        assert all(disk[byte] == sound[byte] for byte in sound if byte in disk and byte not in gone)
        partly += 0 < len(gone) < record.length
        spoil(path, number, record.position, record.encode(salt(path, number)))
    assert partly and stored
    assert scan_path(path, key=key)[1] == writes


def salt(path: Path, number: int) -> bytes:
    return files_of(path)[number][40:56]


def test_any_damaged_head_is_one_unknown_record(path: Path, key: bytes | None) -> None:
    _, writes = scan_path(path, key=key)
    records = places(path, key)
    for number, record in records[:-1]:
        spoil(path, number, record.position + 40)
        found, right = salvaged(path, key)
        assert found.unknown == 1 and len(found.places) == 1 and not found.missing
        assert right == [write for write in writes if write[0].number != record.number]
        spoil(path, number, record.position, record.encode(salt(path, number)))
    # That the last one is the end of the journal cannot be seen.
    assert scan_path(path, key=key)[1] == writes


@pytest.mark.parametrize("seed", range(20))
def test_overwritten_parts(path: Path, key: bytes | None, seed: int) -> None:
    """Sectors of noise over several records: what is right is all that the plain twin can decode."""
    _, writes = scan_path(path, key=key)
    before = places(path, key)
    source = random.Random(seed)
    number, record = source.choice(before)
    spoil(path, number, record.position // 512 * 512, source.randbytes(1536))
    content = files_of(path)
    right = {r.number for n, r in before if decode(content[n], r.position, 16 if key else 0) == r}
    found, read = salvaged(path, key)
    assert read == [write for write in writes if write[0].number in right]
    lost = {r.number for _, r in before} - right
    heads = {r.number for n, r in before if decode(content[n], r.position, 16 if key else 0, payload=False)}
    last = max(heads)
    assert found.unknown == len({number for number in lost - heads if number < last})
    assert read or not writes


def test_a_block_in_the_bucket_stays_out(path: Path, key: bytes | None) -> None:
    recovered, _ = scan_path(path, key=key)
    (number, record), *_ = [place for place in places(path, key) if place[1].kind == DONE]
    assert salvaged(path, key)[0].pending == recovered.pending
    # Where that is not known it is taken once more.
    spoil(path, number, record.position + RECORD_BYTES)
    assert salvaged(path, key)[0].pending.keys() == recovered.pending.keys() | {record.offset // BLOCK}


def test_files_without_a_header_or_that_are_gone(path: Path, key: bytes | None) -> None:
    _, writes = scan_path(path, key=key)
    records = places(path, key)
    second = sorted(files_of(path))[1]
    inside = {record.number for number, record in records if number == second}
    expected = [write for write in writes if write[0].number not in inside]
    spoil(path, second, 100)
    found, right = salvaged(path, key)
    assert right == expected and found.unknown == len(inside)
    assert found.places[0] == f"the header of {second:08d}.journal"
    (path / f"{second:08d}.journal").unlink()
    found, right = salvaged(path, key)
    assert right == expected and found.unknown == len(inside)


def test_what_is_right_of_a_file_of_another_length(path: Path, key: bytes | None) -> None:
    """Cut in the middle of a record, or longer than it was."""
    _, writes = scan_path(path, key=key)
    number, record = places(path, key)[-4]
    file = path / f"{number:08d}.journal"
    content = file.read_bytes()
    file.write_bytes(content + bytes(PAGE))
    found, right = salvaged(path, key)
    assert right == writes and found.places == [f"{file.name}, which has not the length it had"]
    file.write_bytes(content[: record.position + 100])
    found, right = salvaged(path, key)
    assert right == [write for write in writes if write[0].number < record.number]
    assert found.places[0] == f"{file.name}, which has not the length it had"


@pytest.mark.parametrize("which", [-1, 0], ids=["newest", "oldest"])
@pytest.mark.parametrize("how", ["header", "gone", "zeros"])
def test_files_at_either_end(path: Path, key: bytes | None, which: int, how: str) -> None:
    """Of how many records nothing tells."""
    number = sorted({number for number, _ in places(path, key)})[which]
    file = path / f"{number:08d}.journal"
    if how == "header":
        spoil(path, number, 100)
    elif how == "gone":
        file.unlink()
    else:
        spoil(path, number, PAGE, bytes(file.stat().st_size - PAGE))
    found, _ = salvaged(path, key)
    assert any("records it is not known what was written, so that any block may be older" in s for s in found.losses)
    assert not any(said.endswith("damage in ") for said in found.losses)


def test_a_file_that_is_still_needed_and_gone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with SmallJournal(path, files=8) as small:
        small.fill()
        small.store_all()
        small.core.sync()
        for turn in range(40):
            small.write(turn % 8 * BLOCK, b"x" * BLOCK)
        small.core.sync()
    needed = scan_path(path)[0].oldest
    for number in list(files_of(path)):
        if number <= needed:
            (path / f"{number:08d}.journal").unlink()
    assert salvaged(path, None)[0].places == [f"{needed:08d}.journal, which is missing"]


@pytest.mark.parametrize("torn", [0, RECORD_BYTES + 5], ids=["head", "payload"])
@pytest.mark.parametrize("how", ["sound", "first page", "header", "gone"])
def test_nothing_behind_a_cut_comes_back(tmp_path: Path, how: str, torn: int) -> None:
    """A write that was not synced was lost, later ones stood there; the next session went on without them.

    Whatever is damaged of its file.
    """
    path = tmp_path / "journal"
    with SmallJournal(path) as small:
        small.write(0, b"a" * BLOCK)
        small.core.sync()
        small.write(BLOCK, b"b" * BLOCK)
        small.write(2 * BLOCK, b"never" * 100)
        small.write(5 * BLOCK, b"never" * 100)
    ((number, record),) = [place for place in places(path, None) if place[1].offset == BLOCK]
    spoil(path, number, record.position + torn, bytes(RECORD_BYTES))
    with SmallJournal(path, mount=mount_of(2)) as small:
        for block in (3, 4, 6, 7):
            small.write(block * BLOCK, b"c" * BLOCK)
            small.core.sync()
    _, writes = scan_path(path)
    assert [r.offset // BLOCK for r, _ in writes] == [0, 3, 4, 6, 7]
    second = max(number for number, _ in places(path, None))
    if how == "first page":
        spoil(path, second, PAGE, b"\xff" * PAGE)
    elif how == "header":
        spoil(path, second, 100)
    elif how == "gone":
        (path / f"{second:08d}.journal").unlink()
    found, right = salvaged(path, None)
    left = {"sound": [0, 3, 4, 6, 7], "first page": [0, 6, 7], "header": [0], "gone": [0]}[how]
    assert [r.offset // BLOCK for r, _ in right] == left
    assert not found.missing and bool(found.unknown) == (how != "sound")
    assert found.pending.keys() == set(left)
