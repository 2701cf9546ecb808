"""Files that are used again: nothing of their former use comes back, by the salt and by the numbers, each alone."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.support.journal_twin import MARK, decode, plain_scan, salt_of
from tests.support.journals import BLOCK, FILE, SmallJournal, being_read, files_of, scan_path
from tests.support.power_loss import Calls


def use_again(path: Path, **more) -> list[bytes]:
    """Fill files, store everything, and write a little; return what is written after that."""
    source = random.Random(1)
    with SmallJournal(path, **more) as small:
        before = {number: file.stat().st_ino for number, file in files(path)}
        for _ in range(2):
            while small.core.files < 3:
                small.write(source.randrange(20) * BLOCK, source.randbytes(BLOCK))
                small.journal.prepare()
            small.store_all()
            small.journal.prepare()
        last: list[bytes] = []
        while small.core.files < 2:
            last.append(source.randbytes(BLOCK))
            small.write(0, last[-1])
        last.append(source.randbytes(BLOCK))
        small.write(0, last[-1])
        after = {number: file.stat().st_ino for number, file in files(path)}
        assert set(before.values()) & set(after.values()) and not set(before) & set(after), "no file was used again"
    return last


def files(path: Path) -> list[tuple[int, Path]]:
    return sorted((int(file.stem), file) for file in path.iterdir() if file.suffix == ".journal")


@pytest.mark.parametrize("salted", [True, False])
def test_remains_of_a_former_use(tmp_path: Path, salted: bool) -> None:
    more = {} if salted else {"random_bytes": bytes}
    last = use_again(tmp_path / "j", **more)
    _, writes = scan_path(tmp_path / "j")
    assert [data for _, data in writes][-len(last) :] == last
    found = files_of(tmp_path / "j")
    assert len({salt_of(content) for content in found.values()}) == (len(found) if salted else 1)
    # There are remains, and without a salt of their own they look right.
    remains = [
        record
        for content in found.values()
        for position in range(4096, len(content), 8)
        if content[position : position + 4] == b"\xc5\xa3\x72\x6b" and (record := decode(content, position))
        if record not in plain_scan(found)
    ]
    assert bool(remains) is not salted
    with SmallJournal(tmp_path / "j") as small:
        out = bytearray(BLOCK)
        small.core.load(0, out)
        assert out == last[-1]


def test_files_of_another_size_are_not_used_again(tmp_path: Path) -> None:
    """What an earlier session left is stored and removed; the journal goes on in files of the new size."""
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"old")
    with SmallJournal(tmp_path / "j", file_bytes=2 * FILE) as small:
        small.store_all()
        small.journal.prepare()
        small.write(0, b"new")
    assert {len(content) for content in files_of(tmp_path / "j").values()} == {2 * FILE}
    assert [data for _, data in scan_path(tmp_path / "j")[1]] == [b"new"]


def test_a_file_is_given_up_only_when_the_disk_knows_it(tmp_path: Path) -> None:
    """Otherwise the journal could be without its beginning after a loss of power."""
    on_disk: list[bytes] = []
    with SmallJournal(tmp_path / "j") as small:
        calls = Calls(lambda fd, data, at: os.pwrite(fd, data, at), lambda fd: on_disk.append(os.pread(fd, FILE, 0)))
        calls.interpose(small.core)
        while small.core.files < 2:
            small.write(0, b"x" * BLOCK)
        small.core.sync()
        small.core.stored(0, small.slab.sequence)
        assert small.core.entries == 0
        on_disk.clear()
        freed = small.core.take_freed()
        assert freed is not None and freed[0] == 1
        last = plain_scan({2: on_disk[-1]})[-1]
        assert (last.kind, last.offset) == (MARK, 2)
        # That is enough for all of them.
        syncs = small.core.syncs
        assert small.core.take_freed() is None and small.core.syncs == syncs


def test_what_was_cut_off_is_gone_for_good(tmp_path: Path) -> None:
    """Its records have numbers that will be given once more."""
    with SmallJournal(tmp_path / "j", files=8) as small:
        while small.core.files < 5:
            small.write(0, b"x" * BLOCK)
            small.journal.prepare()
    second = tmp_path / "j" / "00000002.journal"
    content = bytearray(second.read_bytes())
    content[4096:4608] = bytes(512)
    second.write_bytes(content)
    recovered, _ = scan_path(tmp_path / "j")
    assert [file.number for file in recovered.files] == [1]
    assert recovered.unused == [2, 3, 4, 5, 6, 7, 8] and recovered.cut is not None
    last = recovered.last_number
    with SmallJournal(tmp_path / "j", files=8) as small:
        assert small.directory.numbers() == [1, 2]
        small.write(0, b"y")
        assert small.core.number == last + 2
    assert [data for _, data in scan_path(tmp_path / "j")[1]][-2:] == [b"x" * BLOCK, b"y"]


def test_a_file_stays_while_it_is_read(tmp_path: Path) -> None:
    for attempt in range(100):
        with being_read(tmp_path / str(attempt)) as (core, join):
            freed = core.take_freed()
            # It has to have lasted all the time.
            read_meanwhile = core.loading
            join()
            if read_meanwhile:
                assert freed is None, "a file was given up while it was read"
                assert core.take_freed() is not None
                return
    raise AssertionError("no reader was slow enough")


def test_a_record_with_another_number_ends_the_journal(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        for number in range(5):
            small.write(0, b"%d" % number)
    file = tmp_path / "j" / "00000001.journal"
    content = bytearray(file.read_bytes())
    records = plain_scan({1: bytes(content)})
    for number in (records[3].number - 1, records[3].number + 1):
        changed = type(records[3])(**{**vars(records[3]), "number": number})
        raw = changed.encode(salt_of(bytes(content)))
        content[changed.position : changed.position + len(raw)] = raw
        file.write_bytes(content)
        recovered, writes = scan_path(tmp_path / "j")
        assert [data for _, data in writes] == [b"0", b"1"]
        assert recovered.cut == (1, changed.position)
