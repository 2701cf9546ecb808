"""Damage to what was durable is reported, wherever it is, and never returned as data."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from s3backer.errors import JournalDamaged, JournalError
from s3backer.journal.format import PAGE, RECORD_BYTES, Record
from tests.support.journal_twin import MARK, Damaged, decode, plain_scan
from tests.support.journals import BLOCK, BLOCKS, FILE, SmallJournal, files_of, scan_path

Write = tuple[Record, bytes | None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of two sessions and several files, all of it synced, some of it in the bucket."""
    path = tmp_path_factory.mktemp("sound") / "journal"
    source = random.Random(3)
    for session in range(2):
        with SmallJournal(path, files=8) as small:
            for turn in range(40):
                length = source.choice((512, 700, BLOCK))
                small.write(source.randrange(BLOCKS * BLOCK - length), source.randbytes(length))
                if turn % 6 == 0:
                    small.core.sync()
                if session and turn == 30:
                    small.core.write_zeros(0, 2 * BLOCK, 0.0)
                    small.journal.intend(3, small.slab.sequence, "*", "sum")
                    small.journal.done(3, small.slab.sequence, '"e"')
            small.core.sync()
    assert len(files_of(path)) >= 4
    return path


def spans(path: Path) -> list[tuple[int, int, int, bool]]:
    """(file, start, stop, whether damage there loses nothing) of all that counts: headers and records."""
    found = []
    records = plain_scan(files_of(path))
    last = records[-1].number
    for number, content in files_of(path).items():
        found.append((number, 0, PAGE, False))
        position = PAGE
        while record := decode(content, position):
            if record not in records:
                break
            # Behind the last sync stands only the mark that says so.
            found.append((number, position, record.end, record.kind == MARK and record.number == last))
            position = record.end
    return found


def flip(path: Path, number: int, byte: int, bit: int) -> None:
    with (path / f"{number:08d}.journal").open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))


def check_flip(path: Path, number: int, byte: int, bit: int, harmless: bool, writes: list[Write]) -> None:
    flip(path, number, byte, bit)
    try:
        _, found = scan_path(path)
    except JournalError as error:
        assert f"{number:08d}.journal" in error.message
        assert error.hint
    else:
        assert harmless, f"damage at byte {byte} of file {number} was not seen"
        assert found == writes
    finally:
        flip(path, number, byte, bit)


def test_a_flipped_bit_anywhere_is_reported(tmp_path: Path, sound: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(sound, path)
    source = random.Random(5)
    _, writes = scan_path(path)
    for number, start, stop, harmless in spans(path):
        places = {start, start + 4, start + 24, start + 60, start + RECORD_BYTES, stop - 1}
        places.add(source.randrange(start, stop))
        for byte in sorted(place for place in places if start <= place < stop):
            check_flip(path, number, byte, source.randrange(8), harmless, writes)
    assert scan_path(path)[1] == writes


@pytest.mark.soak
def test_a_flipped_bit_in_every_byte_is_reported(tmp_path: Path, sound: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(sound, path)
    source = random.Random(6)
    _, writes = scan_path(path)
    for number, start, stop, harmless in spans(path):
        for byte in range(start, stop):
            check_flip(path, number, byte, source.randrange(8), harmless, writes)


@pytest.mark.parametrize("seed", range(40))
def test_overwritten_parts(tmp_path: Path, sound: Path, seed: int) -> None:
    """Sectors of zeros or noise, also over borders of records; the plain twin says what is damage."""
    path = tmp_path / "journal"
    shutil.copytree(sound, path)
    source = random.Random(seed)
    recovered, writes = scan_path(path)
    number = source.choice(sorted(files_of(path)))
    start = source.randrange(PAGE // 512, 24) * 512
    with (path / f"{number:08d}.journal").open("r+b") as file:
        file.seek(start)
        file.write(source.choice((bytes(512), source.randbytes(1024))))
    try:
        plain_scan(files_of(path))
    except Damaged:
        with pytest.raises(JournalDamaged):
            scan_path(path)
    else:
        # The last writes and the mark behind them: nothing is left that says that they were there.
        found = scan_path(path)[1]
        assert found == writes[: len(found)]
        assert len(found) == len(writes) or number == recovered.files[-1].number


def test_what_the_message_says(tmp_path: Path, sound: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(sound, path)
    number, start, _, _ = spans(path)[3]
    before = files_of(path)
    flip(path, number, start + 70, 0)
    with pytest.raises(JournalDamaged) as caught:
        scan_path(path)
    assert f"{path}/{number:08d}.journal is damaged at byte {start}" in caught.value.message
    assert "Keep the directory" in caught.value.hint
    assert caught.value.exit_code == 9
    flip(path, number, start + 70, 0)
    assert files_of(path) == before


def test_a_missing_file_in_the_middle(tmp_path: Path, sound: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(sound, path)
    (path / f"{sorted(files_of(path))[1]:08d}.journal").unlink()
    with pytest.raises(JournalDamaged):
        scan_path(path)


def test_a_missing_file_at_the_beginning(tmp_path: Path, sound: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(sound, path)
    for number in sorted(files_of(path))[:-3]:
        (path / f"{number:08d}.journal").unlink()
        with pytest.raises(Damaged):
            plain_scan(files_of(path))
        with pytest.raises(JournalDamaged, match=r"00000001\.journal is still needed and is missing"):
            scan_path(path)


def test_a_missing_file_of_which_nothing_is_needed(tmp_path: Path) -> None:
    """That it was being given up is on the disk before it goes."""
    path = tmp_path / "journal"
    with SmallJournal(path, files=8) as small:
        while small.core.files < 3:
            small.write(0, b"x" * BLOCK)
            small.journal.prepare()
        small.write(0, b"y" * BLOCK)
        small.core.stored(0, small.slab.sequence - 1)
        freed = small.core.take_freed()
        assert freed is not None and freed[0] == 1
    for number in (1, 2):
        assert [data for _, data in scan_path(path)[1]][-1] == b"y" * BLOCK
        (path / f"{number:08d}.journal").unlink()
    assert [data for _, data in scan_path(path)[1]][-1] == b"y" * BLOCK
    (path / "00000003.journal").unlink()
    with pytest.raises(JournalDamaged):
        scan_path(path)


def test_the_beginning_of_a_journal_whose_first_files_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with SmallJournal(path) as small:
        while small.core.files < 2:
            small.write(0, b"x" * BLOCK)
        small.store_all()
        small.journal.prepare()
        small.write(0, b"y" * BLOCK)
    number = min(files_of(path))
    assert number > 1
    for byte in (PAGE, PAGE + 8, PAGE + 63):
        flip(path, number, byte, 3)
        with pytest.raises(JournalDamaged, match=f"{number:08d}.journal is damaged at byte 4096"):
            scan_path(path)
        flip(path, number, byte, 3)
    # The same with nothing behind it.
    content = bytearray(files_of(path)[number])
    content[PAGE:] = bytes(len(content) - PAGE)
    (path / f"{number:08d}.journal").write_bytes(content)
    with pytest.raises(JournalDamaged):
        scan_path(path)


def test_a_shorter_file(tmp_path: Path, sound: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(sound, path)
    number = min(files_of(path))
    with (path / f"{number:08d}.journal").open("r+b") as file:
        file.truncate(PAGE + 100)
    with pytest.raises(JournalDamaged, match="not the file it was"):
        scan_path(path)


@pytest.mark.parametrize("left", range(0, 320, 8))
def test_damage_to_what_was_synced_at_the_end_of_a_file(tmp_path: Path, left: int) -> None:
    """However little of the file is left behind it, a MARK says that it is no end that was torn."""
    with SmallJournal(tmp_path / "j") as small:
        used = PAGE + RECORD_BYTES
        while (room := FILE - used - RECORD_BYTES) > BLOCK + left:
            small.write(0, b"x" * BLOCK)
            used += RECORD_BYTES + BLOCK
        small.write(BLOCK, b"?" * (room - left))
        assert small.core.spares
        small.core.sync()
    for path in (tmp_path / "j").glob("*.journal"):
        path.write_bytes(path.read_bytes().replace(b"?" * 64, b"!" * 64, 1))
    with pytest.raises(JournalDamaged):
        scan_path(tmp_path / "j")


def test_damage_under_a_running_journal(tmp_path: Path) -> None:
    """What load returns is right, or it raises."""
    source = random.Random(7)
    with SmallJournal(tmp_path / "journal") as small:
        data = [source.randbytes(BLOCK) for _ in range(4)]
        for block, body in enumerate(data):
            small.write(block * BLOCK, body)
        records = plain_scan(files_of(tmp_path / "journal"))
        for record in records[1:]:
            for byte in (0, 3, 4, 20, 35, 50, 57, 61, RECORD_BYTES, RECORD_BYTES + BLOCK - 1):
                flip(tmp_path / "journal", 1, record.position + byte, 2)
                block = record.offset // BLOCK
                with pytest.raises(JournalDamaged, match=f"file 00000001 does not hold at byte {record.position}"):
                    small.core.load(block, bytearray(BLOCK))
                flip(tmp_path / "journal", 1, record.position + byte, 2)
                out = bytearray(BLOCK)
                small.core.load(block, out)
                assert out == data[block]
        assert small.core.loading == 0
