"""What was forced and wrote nothing leaves the volume as it was found, however it ended."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3backer import holder, opening, recovery, replaying
from s3backer.admin import unlock_volume
from s3backer.codec.choice import AS_THE_VOLUME
from s3backer.errors import JournalDamaged, JournalError, S3backerError, StoreError, VolumeInUse
from s3backer.journal import marks
from s3backer.journal.files import JournalDirectory
from s3backer.layouts.token import TOKEN_NAME, MountToken, new_token, put_token, read_token
from s3backer.left_journal import place_of_journal
from s3backer.recovery import Recoverer
from s3backer.replaying import Progress
from s3backer.stores.directory import DirectoryStore
from s3backer.volume import Volume
from tests.support.places import BLOCK, Place

OLD, NEW = b"o" * BLOCK, b"n" * BLOCK


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, AS_THE_VOLUME)


class Flaky(DirectoryStore):
    """The answer to the first put of a token is lost, where that is to be so; then, or when told, it is away."""

    loses = away = False

    def _reach(self) -> None:
        if self.away:
            raise StoreError("away", hint="Wait.")

    def get(self, key: str, *args: Any, **more: Any) -> Any:
        self._reach()
        return super().get(key, *args, **more)

    def put(self, key: str, *args: Any, **more: Any) -> str:
        self._reach()
        etag = super().put(key, *args, **more)
        if self.loses and key == TOKEN_NAME:
            self.away = True
            raise StoreError("the answer was lost", hint="Wait.")
        return etag

    def delete(self, key: str, *args: Any, **more: Any) -> Any:
        self._reach()
        return super().delete(key, *args, **more)


def use_elsewhere(place: Place, *, died: bool) -> None:
    """Let a mount be killed whose journal has OLD; then another one, with its journal elsewhere, stores NEW."""
    with place.killed() as volume:
        for block in range(1, 9):
            volume.write(block * BLOCK, OLD)
            volume.flush()
    unlock_volume(place.store(), "", force=True)
    elsewhere = str(place.directory / "elsewhere")
    other = Volume.open(place.store(), "", replace(place.options, journal_directory=elsewhere, lease=1.0))
    for block in range(1, 9):
        other.write(block * BLOCK, NEW)
    other.flush()
    if died:
        other._driver.flush()
        assert other._holder is not None
        other._holder.stop()
    else:
        other.close()


def force(place: Place, store: DirectoryStore, progress: Progress = lambda done, total: None) -> None:
    with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:
        Recoverer(store, "", replace(place.options, lease=1.0), directory).replay(progress, force=True)


def in_another_process(work: Callable[[], None]) -> int:
    """Return with what a process ends that does the work and nothing else; 1 where it does it to its end."""
    if (pid := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refuses_or_has(place: Place, data: bytes) -> None:
    """A mount refuses, or what it shows is ``data``, and nothing older was put over it."""
    try:
        seen = place.content(BLOCK, BLOCK)
    except (VolumeInUse, JournalError):
        seen = place.store().get(f"{1:08x}").body
    assert bytes(seen) == data


@pytest.mark.parametrize("died", [True, False])
def test_a_forced_replay_whose_first_answer_is_lost_is_not_gone_on_with(place: Place, died: bool) -> None:
    use_elsewhere(place, died=died)
    store = Flaky(place.bucket)
    store.loses = True
    with pytest.raises(StoreError):
        force(place, store)
    refuses_or_has(place, NEW)


@pytest.mark.parametrize("died", [True, False])
@pytest.mark.parametrize("way", ["interrupted while the store is away", "killed"])
def test_nor_is_one_that_ended_in_its_wait(place: Place, died: bool, way: str) -> None:
    use_elsewhere(place, died=died)
    store = Flaky(place.bucket)
    store.lasting = store.arriving = 2.0
    theirs = read_token(place.store(), "")

    def progress(done: int, total: int) -> None:
        token = read_token(place.store(), "")
        if token is not None and (theirs is None or token.value != theirs.value):
            if way == "killed":
                os._exit(7)
            store.away = True
            raise KeyboardInterrupt

    if way == "killed":
        assert in_another_process(lambda: force(place, store, progress)) == 7
    else:
        with pytest.raises(KeyboardInterrupt):
            force(place, store, progress)
    refuses_or_has(place, NEW)


def test_nor_is_one_that_was_to_be_given_up_then(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends right before the first file is removed."""
    use_elsewhere(place, died=False)
    store = Flaky(place.bucket)
    store.lasting = store.arriving = 2.0
    assert in_another_process(lambda: force(place, store, lambda done, total: os._exit(7))) == 7

    def discard() -> None:
        monkeypatch.setattr(JournalDirectory, "remove_all", lambda *_, **__: os._exit(7))
        with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:
            Recoverer(place.store(), "", replace(place.options, lease=1.0), directory).discard()

    assert in_another_process(discard) == 7
    refuses_or_has(place, NEW)


@pytest.mark.parametrize("journal", [4 << 20, 0])
@pytest.mark.parametrize("died", [True, False])
def test_but_one_that_had_begun_is(place: Place, monkeypatch: pytest.MonkeyPatch, died: bool, journal: int) -> None:
    use_elsewhere(place, died=died)

    def replay() -> None:
        die_at_the_third(monkeypatch)
        force(place, place.store())

    assert in_another_process(replay) == 7
    assert place.content(BLOCK, 8 * BLOCK, journal=journal) == 8 * OLD
    assert read_token(place.store(), "") is None and not place.files


def die_at_the_third(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process end when a replay has written twice."""
    count = 0

    def reach(name: str) -> None:
        nonlocal count
        count += name == "replay-write"
        if count == 3:
            os._exit(7)

    monkeypatch.setattr(replaying, "reach", reach)


def test_nor_is_a_journal_of_before_for_the_note_of_a_later_mount(place: Place) -> None:
    """Its files are put back where those of the later one have vanished."""
    with place.killed() as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
    home, backup = place.files[0].parent, place.directory / "backup"
    backup.mkdir()
    for file in place.files:
        shutil.copy2(file, backup)
    place.open().close()
    with place.killed() as volume:
        volume.write(BLOCK, NEW)
        volume.flush()
        volume._driver.flush()
    for file in place.files:
        file.unlink()
    with pytest.raises(JournalDamaged, match="no files any more"):
        place.open()
    for file in backup.iterdir():
        shutil.copy2(file, home)
    refuses_or_has(place, NEW)


def test_who_goes_on_with_a_forced_replay_is_not_taken_for_who_wrote_the_journal(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who has the original of a copy that was replayed, and has forgotten which tokens were its own."""
    with place.killed(lease=1.0) as volume:
        for block in range(1, 5):
            volume.write(block * BLOCK, OLD)
        volume.flush()
    shutil.copytree(place.journals, place.directory / "copy")
    with_copy = replace(place.options, journal_directory=str(place.directory / "copy"), lease=1.0)
    unlock_volume(place.store(), "", force=True, journal_directory=str(place.journals))

    def replay() -> None:
        die_at_the_third(monkeypatch)
        with JournalDirectory(place_of_journal(place.store(), "", with_copy)) as directory:
            Recoverer(place.store(), "", with_copy, directory).replay(force=True)

    def go_on() -> None:
        volume = Volume.open(place.store(), "", with_copy)
        for block in range(1, 5):
            volume.write(block * BLOCK, NEW)
        volume.flush()
        volume._driver.flush()
        os._exit(8)

    assert in_another_process(replay) == 7
    assert in_another_process(go_on) == 8
    refuses_or_has(place, NEW)


def test_its_token_is_removed_with_a_journal_that_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that is damaged, and the computer was started since."""
    use_elsewhere(place, died=False)

    def replay() -> None:
        die_at_the_third(monkeypatch)
        force(place, place.store())

    assert in_another_process(replay) == 7
    with place.killed(lease=1.0) as volume:
        volume.write(BLOCK, NEW)
        volume.flush()
    monkeypatch.setattr(marks, "_boot_id", lambda: "another start")
    for file in place.files:
        file.write_bytes(bytes(64) + file.read_bytes()[64:])
    with pytest.raises(JournalDamaged):
        place.open()
    with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:
        Recoverer(place.store(), "", replace(place.options, lease=1.0), directory).discard()
    assert not place.files and read_token(place.store(), "") is None


def fails(place: Place, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let a forced mount find no room for its journal."""

    def full(*_: object) -> None:
        raise JournalError("no room", hint="Free some.")

    with monkeypatch.context() as patch:
        patch.setattr(JournalDirectory, "make", full)
        with pytest.raises(JournalError, match="no room"):
            place.open(force=True, **changes)


def put_back(place: Place, former: MountToken | None) -> bool:
    found = read_token(place.store(), "")
    return found is not None and former is not None and found.is_put_of(former) and found.journal == former.journal


@pytest.mark.parametrize("way", ["fails", "is interrupted"])
def test_a_forced_mount_that_ends_before_it_began_leaves_the_token_that_says_where_data_is(
    place: Place, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    with place.killed(lease=1.0) as volume:
        volume.write(BLOCK, NEW)
        volume.flush()
    before = read_token(place.store(), "")
    elsewhere: dict[str, Any] = {"lease": 1.0, "journal_directory": str(place.directory / "elsewhere")}

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    if way == "fails":
        fails(place, monkeypatch, **elsewhere)
    else:
        with pytest.raises(KeyboardInterrupt):
            Volume.open(place.store(), "", replace(place.options, force=True, **elsewhere), progress=interrupted)
    assert put_back(place, before)
    with pytest.raises(VolumeInUse):
        place.open(**elsewhere)
    assert place.content(BLOCK, BLOCK) == NEW


def test_and_that_of_a_mount_by_the_original(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may live, and never expires."""
    theirs = put_token(place.store(), "", new_token(random.Random(1)), former=None)
    fails(place, monkeypatch)
    assert put_back(place, theirs)
    with pytest.raises(S3backerError):
        place.open()


def flushed(place: Place) -> dict[str, Any]:
    """Let a mount be killed whose flushed data is in its journal only; return how one elsewhere is opened."""
    with place.killed(lease=1.0) as volume:
        volume.write(BLOCK, NEW)
        volume.flush()
    return {"lease": 1.0, "journal_directory": str(place.directory / "elsewhere")}


def dies_by_force(place: Place, moment: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let a process that mounts by force end at this moment of its taking over."""

    def mount() -> None:
        if moment == "waits":
            Volume.open(place.store(), "", replace(place.options, force=True, **changes), progress=waits)
        monkeypatch.setattr(holder, "reach", lambda name: os._exit(7) if name == moment else None)
        place.open(force=True, **changes)

    def waits(done: int, total: int) -> None:
        os._exit(7)

    assert in_another_process(mount) == 7


@pytest.mark.parametrize("then", ["the same", "without a journal", "on another host"])
@pytest.mark.parametrize("journal", [4 << 20, 0])
@pytest.mark.parametrize("moment", ["waits", "taken-by-force"])
def test_a_forced_mount_that_is_killed_in_its_wait_is_not_gone_on_with(
    place: Place, monkeypatch: pytest.MonkeyPatch, moment: str, journal: int, then: str
) -> None:
    """What the mount before it has flushed is in a journal elsewhere: nobody gives that up unasked."""
    elsewhere = flushed(place)
    dies_by_force(place, moment, monkeypatch, journal=journal, **elsewhere)
    changes: dict[str, Any] = {
        "the same": elsewhere,
        "without a journal": {**elsewhere, "journal": 0},
        "on another host": {**elsewhere, "journal_directory": str(place.directory / "third")},
    }[then]
    for _ in range(2):
        with pytest.raises(VolumeInUse) as refused:
            place.open(**changes)
        assert "--force" in refused.value.hint
    with pytest.raises(VolumeInUse) as refused:
        unlock_volume(place.store(), "")
    assert "--force" in refused.value.hint
    # What it has is still what the first one had stored, and by force it is had at last.
    with place.open(force=True, **changes) as volume:
        assert volume.read(BLOCK, BLOCK) == bytes(BLOCK)
    assert read_token(place.store(), "") is None
    # Nobody has put anything there since.
    with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:
        Recoverer(place.store(), "", place.options, directory).replay(force=True)
    assert place.content(BLOCK, BLOCK) == NEW


@pytest.mark.parametrize("since", ["nothing", "a start of the host", "another one that failed"])
def test_one_that_is_killed_in_its_wait_says_what_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    elsewhere = {**flushed(place), "lease": 3.0}
    dies_by_force(place, "waits", monkeypatch, **elsewhere)
    if since == "a start of the host":
        monkeypatch.setattr(marks, "_boot_id", lambda: "another start")
    elif since == "another one that failed":
        fails(place, monkeypatch, **elsewhere)
    for ask in (lambda: place.open(**elsewhere), lambda: unlock_volume(place.store(), "")):
        with pytest.raises(VolumeInUse) as refused:
            ask()
        said = f"{refused.value.message} {refused.value.hint}"
        assert "took the volume by force and wrote nothing yet" in said
        assert "unlock --force" in refused.value.hint
    unlock_volume(place.store(), "", force=True)
    place.open(**elsewhere).close()


@pytest.mark.parametrize("journal", [4 << 20, 0])
def test_a_forced_mount_that_serves_is_gone_on_with(
    place: Place, monkeypatch: pytest.MonkeyPatch, journal: int
) -> None:
    with place.killed(lease=1.0) as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
    elsewhere: dict[str, Any] = {
        "lease": 1.0,
        "journal_directory": str(place.directory / "elsewhere"),
        "journal": journal,
    }

    def mount() -> None:
        volume = place.open(force=True, **elsewhere)
        volume.write(BLOCK, NEW)
        volume.flush()
        os._exit(7)

    assert in_another_process(mount) == 7
    with place.open(**elsewhere) as volume:
        assert volume.read(BLOCK, BLOCK) == NEW


@pytest.mark.parametrize("journal", [4 << 20, 0])
def test_a_forced_mount_that_fails_when_it_has_waited_is_not_gone_on_with(
    place: Place, monkeypatch: pytest.MonkeyPatch, journal: int
) -> None:
    """Nor where the store is away just then, so that the former token cannot be put back, and its silence is seen."""
    elsewhere = flushed(place)
    store = Flaky(place.bucket)
    waited: list[str] = []

    def head(key: str) -> Any:
        # By that it is seen whether the volume is as it was.
        store.away = bool(waited)
        return store.get(key).info

    with monkeypatch.context() as patch:
        patch.setattr(holder, "reach", waited.append)
        patch.setattr(store, "head", head)
        with pytest.raises(StoreError):
            Volume.open(store, "", replace(place.options, force=True, journal=journal, **elsewhere))
    for changes in (elsewhere, {**elsewhere, "journal": 0}):
        later = place.store()
        later.fenced = True
        with pytest.raises(VolumeInUse) as refused:
            Volume.open(later, "", replace(place.options, **changes))
        assert "took the volume by force and wrote nothing yet" in refused.value.hint
        assert "--force" in refused.value.hint
    with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:
        Recoverer(place.store(), "", place.options, directory).replay(force=True)
    assert place.content(BLOCK, BLOCK) == NEW


def test_what_a_forced_mount_that_fails_has_noted_is_forgotten_when_nobody_notes_any_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who renews the token notes that, too, in a thread of its own."""
    with place.killed(lease=1.0) as volume:
        volume.write(BLOCK, NEW)
        volume.flush()
    elsewhere = str(place.directory / "elsewhere")
    forget = JournalDirectory.forget_token
    renewing: list[str] = []

    def seen(directory: JournalDirectory, **what: bool) -> None:
        renewing.extend(thread.name for thread in threading.enumerate() if thread.name == "s3backer-lease")
        forget(directory, **what)

    def fails(*args: Any) -> None:
        monkeypatch.setattr(JournalDirectory, "forget_token", seen)
        raise StoreError("it fails", hint="Wait.")

    with monkeypatch.context() as patch:
        patch.setattr(opening, "refuse_if_changed", fails)
        with pytest.raises(StoreError):
            place.open(force=True, lease=1.0, journal_directory=elsewhere)
    assert renewing == []
    assert place.content(BLOCK, BLOCK) == NEW


def test_to_unlock_after_a_forced_replay_that_wrote_nothing_says_what_can_be_run(place: Place) -> None:
    """A plain replay is refused then: the token is not that of the mount that wrote the journal."""
    use_elsewhere(place, died=False)
    store = Flaky(place.bucket)
    store.lasting = store.arriving = 2.0
    assert in_another_process(lambda: force(place, store, lambda done, total: os._exit(7))) == 7
    with pytest.raises(VolumeInUse) as refused:
        unlock_volume(place.store(), "")
    assert "was to be replayed by force" in refused.value.message
    assert f"--journal-directory {place.journals} --force" in refused.value.hint
    assert "unlock --force" in refused.value.hint and "another mount has flushed" in refused.value.hint
    force(place, place.store())
    assert place.content(BLOCK, BLOCK) == OLD
    assert read_token(place.store(), "") is None


@pytest.mark.parametrize("known", [False, True])
def test_a_mount_after_such_a_replay_says_what_it_was_and_not_that_somebody_has_the_volume(
    place: Place, known: bool
) -> None:
    """Nobody could unmount it. ``known``: the journal knows the objects of its blocks."""
    with place.killed() as volume:
        if known:
            volume.write(BLOCK, NEW)
            volume.flush()
            volume._driver.flush()
        volume.write(BLOCK, OLD)
        volume.flush()
    unlock_volume(place.store(), "", force=True)
    store = Flaky(place.bucket)
    store.lasting = store.arriving = 2.0
    assert in_another_process(lambda: force(place, store, lambda done, total: os._exit(7))) == 7
    for journal in (4 << 20, 0):
        with pytest.raises(JournalError, match="was to be replayed by force, and that has ended") as refused:
            place.open(journal=journal)
        assert "--force" in refused.value.hint and "nmount" not in refused.value.hint
    force(place, place.store())
    assert place.content(BLOCK, BLOCK) == OLD


@pytest.mark.parametrize("how", ["at once", "killed", "damaged"])
def test_who_gives_the_journal_of_such_a_replay_up_gives_no_other_one_up(
    place: Place, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The token of it stands in place of one that said where the other one is."""
    with place.killed() as volume:
        volume.write(BLOCK, OLD)
        volume.flush()
    unlock_volume(place.store(), "", force=True)
    elsewhere = replace(place.options, journal_directory=str(place.directory / "elsewhere"), lease=1.0)

    def mount() -> None:
        volume = Volume.open(place.store(), "", elsewhere)
        volume.write(BLOCK, NEW)
        volume.flush()
        os._exit(7)

    assert in_another_process(mount) == 7
    store = Flaky(place.bucket)
    store.lasting = store.arriving = 2.0

    def waits(done: int, total: int) -> None:
        token = read_token(place.store(), "")
        if token is not None and token.journal == str(place.journals):
            os._exit(7)

    assert in_another_process(lambda: force(place, store, waits)) == 7

    for file in place.files if how == "damaged" else ():
        file.write_bytes(bytes(64) + file.read_bytes()[64:])

    blocks = None if how == "damaged" else 1

    def discard() -> None:
        if how == "killed":
            monkeypatch.setattr(recovery, "reach", lambda name: os._exit(7))
        with JournalDirectory(place_of_journal(place.store(), "", place.options)) as directory:
            assert Recoverer(place.store(), "", replace(place.options, lease=1.0), directory).discard() == blocks
        os._exit(7)

    assert in_another_process(discard) == 7
    third: dict[str, Any] = {"lease": 1.0, "journal_directory": str(place.directory / "third")}
    for changes in ({"lease": 1.0}, third, {**third, "journal": 0}):
        with pytest.raises(VolumeInUse) as refused:
            place.open(**changes)
        assert "took the volume by force and wrote nothing yet" in refused.value.hint
        assert "unlock --force" in refused.value.hint
    with JournalDirectory(place_of_journal(place.store(), "", elsewhere)) as directory:
        Recoverer(place.store(), "", elsewhere, directory).replay(force=True)
    assert place.content(BLOCK, BLOCK) == NEW
