"""``s3backer recover`` after a mount that has died, and what the other commands say of its journal."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from s3backer import replaying
from s3backer.codec.choice import EncodingOptions
from s3backer.errors import JournalError, VolumeInUse
from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import PAGE
from s3backer.journal.marks import file_name, newest_header
from s3backer.journal.replay import scan
from s3backer.layouts.stored_note import StoredNote
from s3backer.layouts.token import read_token
from s3backer.left_journal import place_of_journal
from s3backer.url import volume_id
from s3backer.volume import Volume
from tests.support.commands import Run, tree
from tests.support.journals import resealed
from tests.support.places import BLOCK, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, EncodingOptions())


@pytest.fixture
def dead(place: Place) -> Place:
    """A volume whose mount has died with one block in its journal only."""
    with place.killed() as volume:
        volume.write(BLOCK, b"a" * BLOCK)
        volume.flush()
    return place


def url(place: Place) -> str:
    return f"file://{place.bucket}"


def where(place: Place) -> tuple[str, str]:
    return "--journal-directory", str(place.journals)


def recover(place: Place) -> str:
    """Return the command that an error tells to run."""
    return f"s3backer recover {url(place)} --journal-directory {place.journals}"


def directory(place: Place) -> Path:
    """Return that of the volume's own journal."""
    return Path(place_of_journal(place.store(), "", place.options))


def reseal(file: Path, at: int, value: bytes) -> None:
    """Let a file's header say something else."""
    content = file.read_bytes()
    file.write_bytes(resealed(content[:PAGE], at, value) + content[PAGE:])


# ── giving it up ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("at", "value", "words", "hint"),
    [
        (8, b"\2\0\0\0", "has format version 2; this program knows 1", "a newer one"),
        (12, b"\0\0\0\x80", "uses features 0x80000000, which this program does not know", "a newer one"),
        (72, bytes(32), "belongs to another volume, file://", "That volume's journal belongs in "),
    ],
    ids=["version", "features", "volume"],
)
def test_only_what_is_damaged_is_given_up(run: Run, dead: Place, at: int, value: bytes, words: str, hint: str) -> None:
    first = dead.files[0]
    reseal(first, at, value)
    before = tree(dead.directory)
    refused = run("recover", url(dead), *where(dead), "--discard")
    assert refused.code == 9
    assert f"{first} {words}" in refused.sentence()
    assert hint in refused.hint()
    assert tree(dead.directory) == before
    with pytest.raises(JournalError) as caught:
        dead.open()
    assert (caught.value.message, caught.value.hint) == (refused.sentence(), refused.hint())
    # Beside a damaged one as well.
    (first.parent / "00000000.journal").write_bytes(b"short")
    before = tree(dead.directory)
    assert run("recover", url(dead), *where(dead), "--discard").sentence() == refused.sentence()
    assert tree(dead.directory) == before


def test_the_directory_of_another_volumes_journal_is_named(run: Run, dead: Place) -> None:
    (dead.directory / "other").mkdir()
    other = Place(dead.directory / "other", EncodingOptions())
    theirs = volume_id(other.store().place, "").hex()
    shutil.copytree(directory(dead), dead.journals / theirs)
    answer = run("recover", url(other), *where(dead), "--discard")
    assert answer.code == 9
    assert f"belongs to another volume, {url(dead)}" in answer.sentence()
    assert str(directory(dead)) in answer.hint()


def test_what_is_damaged_can_be_given_up(run: Run, dead: Place) -> None:
    dead.files[0].write_bytes(b"short")
    kept = run("recover", url(dead), *where(dead))
    assert kept.code == 9 and "does not begin like one" in kept.sentence()
    assert "copy it elsewhere" in kept.hint() and f"{recover(dead)} --to FILE" in kept.hint()
    assert "--discard in place of --to FILE" in kept.hint()
    assert "it was damaged" in run("recover", url(dead), *where(dead), "--discard").out
    assert not dead.files


# ── a journal that is not there ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("left", ["nothing", "the lock"])
@pytest.mark.parametrize("more", [(), ("--discard",), ("--to", "found")], ids=["plain", "discard", "to"])
def test_the_directory_that_the_token_names_is_gone(
    run: Run, dead: Place, monkeypatch: pytest.MonkeyPatch, left: str, more: tuple[str, ...]
) -> None:
    place = directory(dead)
    shutil.rmtree(place)
    if left == "the lock":
        place.mkdir()
        (place / "lock").touch()
        # It may have the inode's number that the former one had.
        monkeypatch.setattr("s3backer.journal.named.is_home", lambda *_: True)
    for words in (where(dead), ()):
        answer = run("recover", url(dead), *words, *more)
        assert answer.code == 9
        assert f"says that its journal is in {place}" in answer.sentence()
        assert "what was flushed and not stored is lost" in answer.sentence()
        assert f"s3backer unlock --force {url(dead)}" in answer.hint()
    assert not Path("found").exists()


@pytest.mark.parametrize("journal", [4 << 20, 0], ids=["with one", "without"])
def test_then_a_mount_does_not_send_to_recover(run: Run, dead: Place, journal: int) -> None:
    shutil.rmtree(directory(dead))
    with pytest.raises(VolumeInUse, match=f"with a journal in {dead.journals} there") as caught:
        dead.open(journal=journal)
    assert "s3backer recover" not in caught.value.hint
    assert f"s3backer unlock --force {url(dead)}" in caught.value.hint


def test_a_journal_of_another_host_with_the_same_path(run: Run, dead: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(directory(dead))
    host = socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    answer = run("recover", url(dead), *where(dead))
    assert answer.code == 2
    assert f"its mount token names {dead.journals} on {host}" in answer.sentence()
    assert f"Run there, as the user who mounted the volume: {recover(dead)}" in answer.hint()
    with pytest.raises(VolumeInUse) as caught:
        dead.open()
    assert "s3backer recover" in caught.value.hint


@pytest.fixture
def renamed(dead: Place) -> Place:
    """The same volume by another path, with the journal of its mount under the first one."""
    moved = dead.directory / "moved"
    dead.bucket.rename(moved)
    (dead.directory / "first").write_text(str(dead.bucket))
    dead.bucket = moved
    return dead


@pytest.mark.parametrize("more", [(), ("--discard",), ("--to", "found")], ids=["plain", "discard", "to"])
@pytest.mark.parametrize("copied", [False, True], ids=["in place", "copied"])
def test_a_journal_under_another_name_of_the_volume_is_found(
    run: Run, renamed: Place, more: tuple[str, ...], copied: bool
) -> None:
    """The token's value is in its directory; in a copy of that, too, which has another lock."""
    first = (renamed.directory / "first").read_text()
    (there,) = (path.parent for path in renamed.files[:1])
    if copied:
        shutil.copytree(there, renamed.directory / "copy")
        shutil.rmtree(there)
        (renamed.directory / "copy").rename(there)
    (renamed.journals / "foreign").mkdir()
    before = tree(renamed.directory)
    for words in (where(renamed), ()):
        answer = run("recover", url(renamed), *words, *more)
        assert answer.code == 9
        assert f"the journal of {url(renamed)} is in {there}" in answer.sentence()
        assert f"it was mounted as file://{first}" in answer.sentence()
        assert f"s3backer recover file://{first} --journal-directory {renamed.journals}" in answer.hint()
        assert "unlock" not in answer.hint()
    refused = run("unlock", url(renamed))
    assert refused.code == 6
    assert str(there) in refused.sentence() and f"file://{first}" in refused.hint() and "--force" not in refused.hint()
    for changes in ({}, {"journal": 0}, {"journal_directory": str(renamed.directory / "elsewhere")}):
        with pytest.raises(VolumeInUse) as caught:
            renamed.open(**changes)
        assert str(there) in caught.value.hint and f"as file://{first}" in caught.value.hint
        assert "unlock" not in caught.value.hint and "is lost" not in caught.value.hint
    after = tree(renamed.directory)
    assert {name: content for name, content in after.items() if name in before} == before
    if copied:
        # Whether that mount lives would be watched for a term.
        return
    # The advice.
    renamed.bucket.rename(first)
    renamed.bucket = Path(first)
    assert run("recover", url(renamed), *where(renamed)).code == 0
    assert renamed.content(BLOCK, BLOCK) == b"a" * BLOCK


@pytest.mark.parametrize("tried", [False, True], ids=["", "a mount was tried"])
def test_a_journal_that_was_renamed_is_moved_back(run: Run, dead: Place, tried: bool) -> None:
    there = directory(dead)
    beside = there.with_name(there.name + " kept")
    there.rename(beside)
    if tried:
        with pytest.raises(VolumeInUse):
            dead.open()
    way = f"mv -T {'--backup=numbered ' * tried}'{beside}' {there}"
    answer = run("recover", url(dead), *where(dead))
    assert answer.code == 9
    assert f"is in {beside}: it was renamed, and belongs in {there}" in answer.sentence()
    assert f"{way}. Then run: {recover(dead)}" in answer.hint() and "endpoint" not in answer.err
    refused = run("unlock", url(dead))
    assert refused.code == 6 and way in refused.hint()
    with pytest.raises(VolumeInUse) as caught:
        dead.open(journal_directory=str(dead.directory / "elsewhere"))
    assert "it was renamed" in caught.value.hint and way in caught.value.hint
    # The advice.
    subprocess.run(shlex.split(way), check=True)
    assert run("recover", url(dead), *where(dead)).code == 0
    assert dead.content(BLOCK, BLOCK) == b"a" * BLOCK


def test_a_link_to_a_journal_is_not_moved_in_its_place(run: Run, dead: Place) -> None:
    there, away = directory(dead), dead.directory / "away"
    there.rename(away)
    (dead.journals / "link").symlink_to(away)
    answer = run("recover", url(dead), *where(dead))
    assert f"mv -T {away} {there}" in answer.hint()


def test_what_others_have_put_beside_is_not_looked_at(run: Run, renamed: Place) -> None:
    if os.geteuid():
        pytest.skip("only root can give a directory to somebody else")
    (there,) = {path.parent for path in renamed.files}
    os.chown(there, 65534, 65534)
    answer = run("recover", url(renamed), *where(renamed))
    assert answer.code == 9 and str(there) not in answer.err
    os.chown(there, 0, 0)
    assert str(there) in run("recover", url(renamed), *where(renamed)).sentence()


def test_the_name_of_before_has_no_control_characters(run: Run, renamed: Place) -> None:
    newest = renamed.files[-1]
    reseal(newest, 108, (len(b"file:///\x1b[31m\nx")).to_bytes(4, "little"))
    reseal(newest, 136, b"file:///\x1b[31m\nx")
    said = run("recover", url(renamed), *where(renamed)).err
    assert "file:///\ufffd[31m\ufffdx" in said and "\x1b" not in said


def test_a_journal_of_another_volume_beside_is_none_of_it(run: Run, dead: Place) -> None:
    (dead.directory / "other").mkdir()
    other = Place(dead.directory / "other", EncodingOptions())
    other.journals, other.options = dead.journals, dead.options
    with other.killed() as volume:
        volume.write(BLOCK, b"b" * BLOCK)
    shutil.rmtree(directory(dead))
    answer = run("recover", url(dead), *where(dead))
    assert answer.code == 9
    assert "what was flushed and not stored is lost" in answer.sentence()


def test_no_token_and_no_journal(run: Run, place: Place) -> None:
    answer = run("recover", url(place), *where(place))
    assert (answer.code, answer.err) == (0, "")
    assert "has no journal on this host" in answer.out and "it has no mount token either" in answer.out
    assert "is empty" not in answer.out


def test_a_mount_without_a_journal(run: Run, place: Place) -> None:
    with place.killed(journal=0, journal_directory=None) as volume:
        volume.write(BLOCK, b"a" * BLOCK)
    answer = run("recover", url(place), *where(place))
    assert answer.code == 0
    assert "has no journal on this host" in answer.out and "is mounted by" in answer.out


def test_nothing_left_to_recover(run: Run, place: Place) -> None:
    with place.killed() as volume:
        volume.write(BLOCK, b"a" * BLOCK)
        volume._driver.flush()
    answer = run("recover", url(place), *where(place))
    assert answer.code == 0
    assert "there was nothing to recover" in answer.out and "1970" not in answer.out
    assert not place.files


# ── the file it is written to ────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_only_its_owner_can_read(run: Run, dead: Place) -> None:
    found, link = dead.directory / "found", dead.directory / "link"
    assert run("recover", url(dead), *where(dead), "--to", str(found)).code == 0
    assert found.read_bytes()[BLOCK:] == b"a" * BLOCK
    assert found.stat().st_mode & 0o777 == 0o600
    link.symlink_to(dead.directory / "precious")
    answer = run("recover", url(dead), *where(dead), "--to", str(link))
    assert answer.code == 2 and "File exists" in answer.sentence()


@pytest.mark.parametrize(
    ("failure", "code", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "Free some space, or name a file on a larger disk."),
        (OSError(errno.EIO, "Input/output error"), 2, "Name another file."),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["full", "broken", "interrupted"],
)
def test_a_part_of_it_is_not_left(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int, hint: str
) -> None:
    with place.killed() as volume:
        for block in range(1, 5):
            volume.write(block * BLOCK, b"a" * BLOCK)
        volume.flush()
    found, write, written = place.directory / "found", replaying._write_at, list[Any]()

    def write_some(file: BinaryIO, *piece: Any) -> None:
        if len(written) == 2:
            file.flush()
            assert found.stat().st_size
            raise failure
        written.append(piece)
        write(file, *piece)

    before = tree(place.directory)
    with monkeypatch.context() as patched:
        patched.setattr(replaying, "_write_at", write_some)
        answer = run("recover", url(place), *where(place), "--to", str(found))
    assert answer.code == code
    if hint:
        assert f"{found} cannot be written: {failure.args[1]}" in answer.sentence()
        assert answer.hint() == hint
    assert tree(place.directory) == before
    assert run("recover", url(place), *where(place), "--to", str(found)).code == 0
    # Nor does it take away what was there before.
    assert run("recover", url(place), *where(place), "--to", str(found)).code == 2
    assert found.exists()


@pytest.mark.parametrize("payload", [True, False], ids=["payload", "head"])
def test_what_is_right_of_a_damaged_journal(run: Run, place: Place, payload: bool) -> None:
    with place.killed() as volume:
        for block in range(1, 9):
            volume.write(block * BLOCK, bytes([64 + block]) * BLOCK)
        volume.write(3 * BLOCK, b"new" * 100)
        volume.flush()
    (file,) = (path for path in place.files if b"C" * 500 in path.read_bytes())
    content = bytearray(file.read_bytes())
    at = content.index(b"C" * 500) + (1000 if payload else -20)
    content[at] ^= 1
    file.write_bytes(content)
    found = place.directory / "found"
    for _ in range(2):
        answer = run("recover", url(place), *where(place), "--to", str(found))
        assert answer.code == 9
        assert f"{file} is damaged at byte" in answer.sentence() and f"is in {found}; " in answer.sentence()
        assert f"{recover(place)} --discard" in answer.hint()
        read = found.read_bytes()
        for block in (1, 2, 4, 5, 6, 7, 8):
            assert read[block * BLOCK :][:BLOCK] == bytes([64 + block]) * BLOCK
        assert read[3 * BLOCK :][:BLOCK] == (b"new" * 100).ljust(BLOCK, b"\0")
        if payload:
            assert f"missing there: {BLOCK - 300} bytes from byte {3 * BLOCK + 300}, in block 3\n" in answer.out
            assert f"{BLOCK - 300} of it missing" in answer.sentence()
        else:
            assert "of at least 1 record it is not known what was written" in answer.sentence()
        found.unlink()
    assert file.read_bytes() == content
    assert read_token(place.store(), "") is not None


def test_where_nothing_is_right_nothing_is_written(run: Run, dead: Place) -> None:
    for file in dead.files:
        file.write_bytes(b"short")
    found = dead.directory / "found"
    answer = run("recover", url(dead), *where(dead), "--to", str(found))
    assert answer.code == 9 and "does not begin like one" in answer.sentence()
    assert f"Nothing of it can be read: nothing was written to {found}" in answer.sentence()
    assert "--to" not in answer.hint() and f"{recover(dead)} --discard" in answer.hint()
    assert not found.exists()


def test_of_what_is_in_the_bucket_it_says_so(run: Run, dead: Place) -> None:
    found = dead.directory / "found"
    header = newest_header(str(directory(dead)))
    assert header is not None
    StoredNote(dead.store(), "", header.session, str(directory(dead))).put()
    answer = run("recover", url(dead), *where(dead), "--to", str(found))
    assert answer.code == 0
    assert "All of it is in the bucket, or something newer, as a note there says" in answer.out


@pytest.mark.parametrize("more", [(), ("--discard",), ("--to", "found"), ("--force",)])
@pytest.mark.parametrize("noted", [True, False])
def test_a_directory_that_cannot_be_written_to(
    run: Run, dead: Place, monkeypatch: pytest.MonkeyPatch, noted: bool, more: tuple[str, ...]
) -> None:
    """As a mount says it."""

    def refuse(self: JournalDirectory) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    header = newest_header(str(directory(dead)))
    assert header is not None
    if noted:
        StoredNote(dead.store(), "", header.session, str(directory(dead))).put()
    monkeypatch.setattr(JournalDirectory, "_take_lock", refuse)
    with pytest.raises(JournalError) as caught:
        dead.open()
    answer = run("recover", url(dead), *where(dead), *more)
    assert answer.code == 9
    assert (answer.sentence(), answer.hint()) == (caught.value.message, caught.value.hint)
    if noted:
        assert answer.hint().startswith("All of it is in the bucket, as a note there says: mount with another ")
    else:
        assert f"(mkdir DIR && cp -a {directory(dead)} DIR), and give that with --journal-directory" in answer.hint()


def test_what_is_damaged_and_in_the_bucket_is_neither_missing_nor_older_there(run: Run, place: Place) -> None:
    with place.killed() as volume:
        volume.write(3 * BLOCK, b"old" * 100)
        volume.write(3 * BLOCK, b"C" * 300)
        volume._driver.flush()
        volume.write(3 * BLOCK + 2000, b"newest")
        volume.flush()
    (file,) = (path for path in place.files if b"C" * 300 in path.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(b"C" * 300) + 5] ^= 1
    file.write_bytes(content)
    found = place.directory / "found"
    answer = run("recover", url(place), *where(place), "--to", str(found))
    assert answer.code == 9 and "is damaged at byte" in answer.sentence()
    assert "missing there" not in answer.out and "of it missing" not in answer.sentence()
    read = found.read_bytes()[3 * BLOCK :]
    assert read.rstrip(b"\0") == bytes(2000) + b"newest"


@pytest.mark.parametrize("what", ["header", "oldest"])
def test_damage_is_named_in_words(run: Run, place: Place, what: str) -> None:
    with place.killed(journal=8 << 20, memory=32 << 20) as volume:
        # Each once: all of it is needed.
        for block in range(1, 450):
            volume.write(block * BLOCK, bytes([block % 255 + 1]) * BLOCK)
        volume.flush()
    with JournalDirectory(directory(place)) as locked:
        used = [file.number for file in scan(locked, volume_id(place.store().place, "")).files]
    file = directory(place) / file_name(used[0])
    if what == "header":
        content = bytearray(file.read_bytes())
        content[100] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    said = run("recover", url(place), *where(place), "--to", str(place.directory / "found")).sentence()
    assert "of an unknown number of records it is not known what was written" in said
    damage = f"the header of {file.name}" if what == "header" else f"{file.name}, which is missing"
    assert said.endswith(f"; damage in {damage}")


def test_no_file_of_a_journal_that_is_not_there(run: Run, place: Place) -> None:
    found = place.directory / "found"
    answer = run("recover", url(place), *where(place), "--to", str(found))
    assert answer.code == 9
    assert "has no journal on this host" in answer.sentence() and "nothing was written" in answer.sentence()
    # Nor where a mount without one has left a note.
    with place.killed(journal=0):
        pass
    answer = run("recover", url(place), *where(place), "--to", str(found))
    assert answer.code == 9 and "nothing was written" in answer.sentence()
    assert not found.exists()


def test_no_file_among_the_volumes_own(run: Run, dead: Place) -> None:
    (dead.directory / "link").symlink_to(dead.bucket)
    before = tree(dead.directory)
    names = [dead.bucket / "00000005", dead.directory / "link" / "x", directory(dead) / "00000009.journal"]
    for name in names:
        answer = run("recover", url(dead), *where(dead), "--to", str(name))
        assert answer.code == 2 and "own directory" in answer.sentence()
    assert tree(dead.directory) == before


def test_by_force_it_says_that_newer_data_goes(run: Run, dead: Place) -> None:
    assert run("unlock", url(dead), "--force").code == 0
    refused = run("recover", url(dead), *where(dead))
    assert refused.code == 9
    assert "of 1 block in it the journal does not know what was there" in refused.sentence()
    assert f"{recover(dead)} --to FILE" in refused.hint() and "older data over newer" in refused.hint()
    with dead.open(journal_directory=str(dead.directory / "elsewhere")) as volume:
        volume.write(BLOCK, b"b" * BLOCK)
    forced = run("recover", url(dead), *where(dead), "--force")
    assert forced.code == 0
    assert "all 1 blocks are put over what is there now, also where that is newer" in forced.err


# ── what others say ──────────────────────────────────────────────────────────────────────────────────────────


def test_unlock_of_a_mount_that_lives_without_its_socket(run: Run, place: Place) -> None:
    with place.open() as volume:
        volume.write(BLOCK, b"a" * BLOCK)
        volume.flush()
        for force in ((), ("--force",)):
            answer = run("unlock", url(place), *force)
            assert answer.code == VolumeInUse.exit_code
            assert f"has locked {directory(place)}" in answer.sentence()
            assert "a mount begins or ends" in answer.hint()
        assert place.files
    assert place.content(BLOCK, BLOCK) == b"a" * BLOCK


def test_unlock_of_a_mount_that_may_be_alive(run: Run, dead: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    known = run("unlock", url(dead))
    assert f"had a journal, in {dead.journals} there" in known.sentence()
    assert f"s3backer recover {url(dead)} --journal-directory {dead.journals}" in known.hint()
    # On another host nothing tells.
    dead.journals.rename(dead.directory / "moved")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    answer = run("unlock", url(dead))
    assert answer.code == known.code == 6
    assert "may be alive" in answer.sentence() and f"a journal in {dead.journals} there" in answer.sentence()
    assert f"s3backer recover {url(dead)} --journal-directory {dead.journals}" in answer.hint()


def test_unlock_where_the_journal_is_gone(run: Run, dead: Place) -> None:
    shutil.rmtree(directory(dead))
    answer = run("unlock", url(dead))
    assert answer.code == 6
    assert "s3backer recover" not in answer.hint() and "s3backer unlock --force" in answer.hint()


def test_check_and_info_name_the_journal(run: Run, dead: Place) -> None:
    way = f"s3backer recover {url(dead)} --journal-directory {dead.journals}"
    said = run("check", url(dead)).out
    assert f"If that mount has died: {way}" in said and "s3backer unlock" not in said
    said = run("info", url(dead)).out
    assert f"in {dead.journals} there" in said and way in said
    assert json.loads(run("info", url(dead), "--json").out)["journal"] == {"directory": str(dead.journals)}


def test_info_of_a_mount_without_a_journal(run: Run, place: Place) -> None:
    with place.open(journal=0):
        assert "journal" not in run("info", url(place)).out


def test_check_takes_the_note_of_a_journal_for_no_foreign_object(run: Run, place: Place) -> None:
    StoredNote(place.store(), "", bytes(16), str(place.journals)).put()
    answer = run("check", url(place))
    assert answer.code == 0 and "s3backer-stored" not in answer.out


def test_where_a_forced_mount_was_killed_in_its_wait_there_is_nothing_to_recover(run: Run, dead: Place) -> None:
    elsewhere = dead.directory / "elsewhere"
    if (pid := os.fork()) == 0:

        def waits(done: int, total: int) -> None:
            os._exit(7)

        try:
            forced = replace(dead.options, force=True, journal_directory=str(elsewhere))
            Volume.open(dead.store(), "", forced, progress=waits)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    answer = run("recover", url(dead), "--journal-directory", str(elsewhere))
    assert answer.code == 9
    assert "was taken by force" in answer.sentence() and "is lost" not in answer.sentence()
    assert f"s3backer unlock --force {url(dead)}" in answer.hint()
