"""``s3backer recover`` after a mount that has died."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from s3backer.codec.choice import EncodingOptions
from s3backer.errors import JournalError
from s3backer.journal.format import PAGE
from s3backer.recovery import place_of_journal
from s3backer.url import volume_id
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
    assert "copy it elsewhere" in kept.hint() and "s3backer recover --discard" in kept.hint()
    assert "it was damaged" in run("recover", url(dead), *where(dead), "--discard").out
    assert not dead.files


# ── the file it is written to ────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_only_its_owner_can_read(run: Run, dead: Place) -> None:
    found, link = dead.directory / "found", dead.directory / "link"
    assert run("recover", url(dead), *where(dead), "--to", str(found)).code == 0
    assert found.read_bytes()[BLOCK:] == b"a" * BLOCK
    assert found.stat().st_mode & 0o777 == 0o600
    link.symlink_to(dead.directory / "precious")
    answer = run("recover", url(dead), *where(dead), "--to", str(link))
    assert answer.code == 2 and "File exists" in answer.sentence()


def test_nothing_left_to_recover(run: Run, place: Place) -> None:
    with place.killed() as volume:
        volume.write(BLOCK, b"a" * BLOCK)
        volume._driver.flush()
    answer = run("recover", url(place), *where(place))
    assert answer.code == 0
    assert "there was nothing to recover" in answer.out and "1970" not in answer.out
    assert not place.files
