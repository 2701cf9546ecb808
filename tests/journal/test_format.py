"""The format: a sample of each version opens for ever, ids, headers, and what is not ours."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer._checksum import crc32c
from s3backer.errors import JournalDamaged, JournalError, VolumeInUse
from s3backer.journal import replay
from s3backer.journal.default import journals_directory
from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import (
    PAGE,
    Header,
    HeaderError,
    Record,
    pack_texts,
    unpack_header,
    unpack_texts,
)
from s3backer.journal.replay import Intent, Known, scan
from s3backer.journal.system import System
from tests.golden.make_journal import GOLDEN, WRITES
from tests.support.journal_twin import PlainRecord, plain_scan
from tests.support.journals import MOUNT, VOLUME, SmallJournal, files_of, resealed, scan_path
from tests.support.power_loss import Disk, Recorder

HEADER = Header(4096, 7, 1 << 20, b"s" * 16, b"i" * 16, VOLUME, 0x1234, "s3://bucket/ä", 1700000000)


def test_the_golden_sample_of_version_1(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(GOLDEN, path)
    recovered, writes = scan_path(path)
    assert [(r.offset, data if data is not None else r.length) for r, data in writes] == WRITES
    assert recovered.pending == {0: 1, 1: 3, 2: 4, 3: 4}
    assert recovered.known == {
        4: Known('"abc"', None),
        1: Known(None, Intent(3, "*", "crc64nvme:AAAA")),
    }
    assert recovered.cut is None
    assert (recovered.header.url, recovered.header.token) == (MOUNT.url, MOUNT.token)
    assert [session.id for session in recovered.sessions] == [MOUNT.session]
    with SmallJournal(path) as small:
        assert sorted(small.core.pending(10)) == [0, 1, 2, 3]
        out = bytearray(2048)
        assert small.core.load(1, out) == ([(100, 800)], 3, 3)
        assert out[100:800] == bytes(range(100)) * 7


def test_the_sample_in_the_twins_words() -> None:
    content = files_of(GOLDEN)[1]
    records = plain_scan({1: content})
    for record in records:
        assert content[record.position : record.end] == record.encode(content[40:56])
    assert [record.kind for record in records] == [1, 2, 2, 2, 6, 3, 2, 4, 5]


def test_a_header_and_its_page() -> None:
    page = HEADER.pack()
    assert len(page) == PAGE
    assert page[:12] == b"s3b-jrnl\1\0\0\0"
    assert unpack_header(page) == HEADER
    assert HEADER.seed == crc32c(HEADER.salt)


@given(byte=st.integers(0, PAGE - 1), bit=st.integers(0, 7))
def test_a_header_with_a_flipped_bit(byte: int, bit: int) -> None:
    page = bytearray(HEADER.pack())
    page[byte] ^= 1 << bit
    with pytest.raises(HeaderError):
        unpack_header(bytes(page))


@given(st.binary(max_size=PAGE + 10))
def test_any_page(page: bytes) -> None:
    with pytest.raises(HeaderError):
        unpack_header(page)


def test_features(tmp_path: Path) -> None:
    page = HEADER.pack()
    # Compatible ones are ignored, others refused.
    assert unpack_header(resealed(page, 16, b"\xff\xff\xff\xff")) == HEADER
    with pytest.raises(HeaderError, match="0x80000000"):
        unpack_header(resealed(page, 12, b"\0\0\0\x80"))
    with pytest.raises(HeaderError, match="version 2; this program knows 1"):
        unpack_header(resealed(page, 8, b"\2\0\0\0"))
    with pytest.raises(HeaderError, match="impossible"):
        unpack_header(resealed(page, 20, b"\1\2\0\0"))
    with pytest.raises(HeaderError, match="impossible"):
        unpack_header(resealed(page, 108, b"\xff\xff\0\0"))


def test_a_newer_version_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(GOLDEN, path)
    file = path / "00000001.journal"
    content = file.read_bytes()
    changed = resealed(content[:PAGE], 8, b"\2\0\0\0") + content[PAGE:]
    file.write_bytes(changed)
    with pytest.raises(JournalError, match="format version 2") as caught:
        scan_path(path)
    assert not isinstance(caught.value, JournalDamaged)
    assert "newer" in caught.value.hint
    assert file.read_bytes() == changed


def test_another_volumes_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(GOLDEN, path)
    with pytest.raises(JournalError, match="another volume, s3://bucket/prefix") as caught:
        scan_path(path, bytes(32))
    assert f"{tmp_path}/{VOLUME.hex()}" in caught.value.hint
    # Said before what is damaged, which may be given up.
    (path / "00000000.journal").write_bytes(b"short")
    with pytest.raises(JournalError, match="another volume"):
        scan_path(path, bytes(32))
    with pytest.raises(JournalDamaged, match="does not begin like one"):
        scan_path(path)


def test_a_file_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    shutil.copytree(GOLDEN, path)
    (path / "00000001.journal").rename(path / "00000002.journal")
    with pytest.raises(JournalDamaged, match="its header says number 1"):
        scan_path(path)


def test_block_size_of_another_geometry(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"x")
    with JournalDirectory(tmp_path / "j") as directory:
        recovered = scan(directory, VOLUME)
        recovered.files[0].header = dataclasses.replace(recovered.header, block_size=4096)
        with pytest.raises(JournalError, match="blocks of 4096 bytes, the volume has blocks of 2048"):
            type(small.journal)(directory, small.slab, MOUNT, budget=1 << 20, capacity=100, recovered=recovered)


@given(texts=st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_texts(texts: list[bytes]) -> None:
    payload = pack_texts(*texts)
    assert unpack_texts(payload, len(texts)) == texts
    for other in (payload + b"x", payload[:-1]):
        with pytest.raises(ValueError, match="a note"):
            unpack_texts(other, len(texts))


def test_a_text_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="4096"):
        pack_texts(b"x" * 4095)
    with pytest.raises(ValueError, match="4096"):
        pack_texts(b"x" * 70000)


def test_the_twin_and_the_tuple_agree() -> None:
    record = PlainRecord(4160, 2, 2, 1, 0, 0, 100, bytes(100))
    assert Record(4160, 2, 2, 1, 0, 0, 100).stored_length(False) == 100
    assert record.end == 4160 + 64 + 104


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/x/state")
    assert journals_directory() == Path("/x/state/s3backer/journals")


def test_modes_and_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "state" / "journals" / "id"
    with SmallJournal(path):
        assert path.stat().st_mode & 0o777 == 0o700
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}
        with pytest.raises(VolumeInUse, match="in use by another process") as caught:
            JournalDirectory(path)
        # It need not be a mount yet, or any more.
        assert "begins or ends" in caught.value.hint
    JournalDirectory(path).close()


@pytest.mark.parametrize("name", ["lock", "00000001.journal"])
def test_symbolic_links_are_not_followed(tmp_path: Path, name: str) -> None:
    path, elsewhere = tmp_path / "j", tmp_path / "elsewhere"
    path.mkdir()
    elsewhere.write_bytes(b"precious")
    (path / name).symlink_to(elsewhere)
    with pytest.raises(JournalError):
        scan_path(path)
    assert elsewhere.read_bytes() == b"precious"


def test_a_directory_that_is_a_link_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()
    for name, why in (("link", "cannot be used"), ("file", "cannot be used"), ("file/below", "is not a directory")):
        with pytest.raises(JournalError, match=why) as caught:
            JournalDirectory(tmp_path / name)
        assert "--journal-directory" in caught.value.hint


def test_a_directory_that_others_can_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "journals"
    with SmallJournal(place / "j") as small:
        small.write(0, b"x")
    for mode in (0o770, 0o707, 0o777):
        (place / "j").chmod(mode)
        with pytest.raises(JournalError, match=f"^others than this user can write to .*{place}/j$") as caught:
            scan_path(place / "j")
        assert f"chmod 700 {place}/j" in caught.value.hint
    # As after a copy: what only others can read becomes private.
    (place / "j").chmod(0o755)
    assert scan_path(place / "j")[1]
    assert (place / "j").stat().st_mode & 0o777 == 0o700
    user = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: user + 1)
    with pytest.raises(JournalError, match=f"^the journal's directory {place}/j belongs to another user$") as caught:
        scan_path(place / "j")
    assert "--journal-directory" in caught.value.hint


def test_a_place_in_which_others_could_move_it(tmp_path: Path) -> None:
    place = tmp_path / "journals"
    place.mkdir()
    for mode in (0o770, 0o707, 0o777):
        place.chmod(mode)
        with pytest.raises(JournalError, match=f"^others than this user can write to {place}, ") as caught:
            JournalDirectory(place / "j")
        assert f"chmod go-w {place}" in caught.value.hint and "--journal-directory" in caught.value.hint
        assert not list(place.iterdir())
    for mode in (0o1777, 0o755):
        place.chmod(mode)
        JournalDirectory(place / "j").close()


@pytest.mark.parametrize("name", [os.fsdecode(b"\xff"), "a\nb", "/".join(["\u00e4" * 100] * 2)], ids=repr)
def test_a_place_that_the_token_cannot_say(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    with pytest.raises(JournalError, match="the mount token can say") as caught:
        JournalDirectory(place / "j")
    # It can be printed, and nothing was made.
    assert str(caught.value).isprintable() and not list(tmp_path.iterdir())


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.mkdir()
    os.mkfifo(path / "00000001.journal")
    with pytest.raises(JournalError, match="not a regular file"):
        scan_path(path)
    (path / "00000001.journal").unlink()
    (path / "00000001.journal").write_bytes(b"short")
    with pytest.raises(JournalDamaged, match="does not begin like one"):
        scan_path(path)


class Failing(System):
    """Fails at the Nth call, as if the process had ended there."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _count(self) -> None:
        if not self.left:
            raise OSError(5, "ended here")
        self.left -= 1

    def rename(self, old: str, new: str, directory: int) -> None:
        self._count()
        super().rename(old, new, directory)

    def remove(self, name: str, directory: int) -> None:
        self._count()
        super().remove(name, directory)


def test_an_end_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    for at in range(5):
        path = tmp_path / str(at)
        with SmallJournal(path) as small:
            while small.core.files < 3:
                small.write(0, b"x" * 2048)
            small.journal.prepare()
        directory = JournalDirectory(path, system=Failing(at))
        count = len(directory.numbers())
        try:
            directory.remove_all(settled=True)
        except JournalError:
            assert at <= count
        directory.close()
        recovered, _ = scan_path(path)
        assert not recovered.files and not recovered.unused
        assert [file.name for file in path.iterdir()] == ["lock"]


def test_an_end_that_failed_is_tried_again(tmp_path: Path) -> None:
    for at in range(5):
        with SmallJournal(tmp_path / str(at)) as small:
            while small.core.files < 3:
                small.write(0, b"x" * 2048)
        with JournalDirectory(tmp_path / str(at), system=Failing(at)) as directory:
            with suppress(JournalError):
                directory.remove_all(settled=True)
            directory._system = System()
            for _ in range(2):
                directory.remove_all(settled=True)
                assert [file.name for file in (tmp_path / str(at)).iterdir()] == ["lock"]


class NoBegin(System):
    """The mark that a journal has begun is made, but that is not known: the sync after it fails."""

    kept: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.failing = False

    def create(self, name: str, directory: int) -> int:
        self.failing = name == "begun"
        return super().create(name, directory)

    def sync(self, fd: int) -> None:
        if self.failing:
            raise OSError(28, os.strerror(28))
        super().sync(fd)

    def remove(self, name: str, directory: int) -> None:
        if name in self.kept:
            raise OSError(5, os.strerror(5))
        super().remove(name, directory)


@pytest.mark.parametrize("kept", [(), ("begun",), ("00000001.journal",), ("begun", "00000001.journal")])
def test_a_journal_that_never_began_is_not_missed(tmp_path: Path, kept: tuple[str, ...]) -> None:
    system = NoBegin()
    system.kept = kept
    with pytest.raises(JournalError, match="No space left"):
        SmallJournal(tmp_path / "j", system=system)
    assert kept or [file.name for file in (tmp_path / "j").iterdir()] == ["lock"]
    with JournalDirectory(tmp_path / "j") as directory:
        assert not directory.lost
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"x" * 2048)
    assert list(scan_path(tmp_path / "j")[0].pending) == [0]


def test_the_mark_that_it_has_begun_stays_while_a_file_is_there(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"x" * 2048)
        (tmp_path / "j" / "begun").unlink()
        small.directory._system = NoBegin()
        small.journal.prepare()
    assert sorted(file.suffix for file in (tmp_path / "j").iterdir()).count(".journal") == 2
    assert (tmp_path / "j" / "begun").exists()


class NoInodes(Recorder):
    """A disk, or a quota, that has no room for one more file."""

    def create(self, name: str, directory: int) -> int:
        if os.access(name, os.F_OK, dir_fd=directory):
            return super().create(name, directory)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize("kind", [Recorder, NoInodes])
def test_the_power_fails_while_a_journal_ends(tmp_path: Path, kind: type[Recorder]) -> None:
    """Also where its end is marked without a new file: all of it is there, or nothing."""
    path, left, recorder, source = tmp_path / "j", tmp_path / "left", kind(), random.Random(1)
    with SmallJournal(path) as small:
        while small.core.files < 3:
            small.write(len(small.core.pending(20)) * 2048, b"x" * 2048)
        small.core.sync()
    whole = sorted(scan_path(path)[0].pending)
    with JournalDirectory(path) as directory:
        # One that waits for its next use.
        (path / "00000001.spare").touch()
        disk, directory._system = Disk(path), recorder
        directory.remove_all(settled=True)
    assert [file.name for file in path.iterdir()] == ["lock"]
    found = set()
    for step in recorder.steps:
        disk.take(step)
        for _ in range(5):
            disk.fail(source, left)
            with JournalDirectory(left) as directory:
                assert not directory.lost
            found.add(tuple(scan_path(left)[0].pending))
            shutil.rmtree(left)
    assert {tuple(sorted(blocks)) for blocks in found} == {tuple(whole), ()}


def test_the_entry_of_every_new_directory_is_on_the_disk(tmp_path: Path) -> None:
    class Watching(System):
        def sync(self, fd: int) -> None:
            synced.append((os.fstat(fd).st_ino, (tmp_path / "a/b/id").exists()))

    synced: list[tuple[int, bool]] = []
    (tmp_path / "a").mkdir()
    for _ in range(2):
        JournalDirectory(tmp_path / "a" / "b" / "id", system=Watching()).close()
        # The second time nothing was made.
        assert synced == [((tmp_path / "a").stat().st_ino, False), ((tmp_path / "a/b").stat().st_ino, True)]


def test_what_is_read_is_what_the_disk_has(tmp_path: Path) -> None:
    """Each file is settled before its first byte is read; one that cannot be is not believed."""

    class Watching(System):
        def settle(self, fd: int) -> None:
            super().settle(fd)
            settled.append(os.fstat(fd).st_ino)
            if len(settled) == fail_at:
                raise OSError(5, os.strerror(5))

    def pread(fd: int, length: int, offset: int) -> bytes:
        assert os.fstat(fd).st_ino in settled, "it is read before"
        return real_pread(fd, length, offset)

    settled: list[int] = []
    fail_at, real_pread = 0, os.pread
    with SmallJournal(tmp_path / "j") as small:
        while small.core.files < 3:
            small.write(0, b"x" * 2048)
    with JournalDirectory(tmp_path / "j", system=Watching()) as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", pread)
        assert len(scan(directory, VOLUME).files) == 3
        assert len(settled) == len(directory.numbers())
        settled.clear()
        fail_at = 2
        with pytest.raises(JournalDamaged, match="cannot be read: Input/output error"):
            scan(directory, VOLUME)


def test_of_many_records_only_the_first_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SmallJournal(tmp_path / "j") as small:
        small.fill()
    with JournalDirectory(tmp_path / "j") as directory:
        everything = scan(directory, VOLUME)
        records = [sum(map(len, file.kept or [])) for file in everything.files]
        assert len(records) > 2 and all(records) and sum(records) == everything.records
        monkeypatch.setattr(replay, "_KEPT", sum(records[:2]))
        found = scan(directory, VOLUME)
        assert [file.kept is not None for file in found.files] == [True, True] + [False] * (len(records) - 2)
        assert found.entries() == everything.entries()
    with SmallJournal(tmp_path / "j") as small:
        # A journal that goes on from it needs them no more.
        assert all(file.kept is None for file in small.recovered.files)


def test_files_that_were_being_prepared_are_removed(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j"):
        pass
    (tmp_path / "j" / "00000009.spare").write_bytes(b"half")
    (tmp_path / "j" / "mine.txt").write_bytes(b"kept")
    scan_path(tmp_path / "j")
    assert not (tmp_path / "j" / "00000009.spare").exists()
    assert (tmp_path / "j" / "mine.txt").exists()
