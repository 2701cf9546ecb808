"""Repairing what was checked a while ago: what was changed since is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from s3backer.checking.repair import perform, repairs
from s3backer.checking.run import Check, CheckOptions
from s3backer.checking.subject import Subject, find_subject
from s3backer.cli.check_report import readable
from s3backer.errors import UsageError, VolumeInUse
from s3backer.layouts.classic import ClassicLayout
from s3backer.opening import VolumeOptions
from s3backer.stores.base import Body
from s3backer.stores.memory import MemoryStore
from s3backer.volume import Volume

BLOCK = 4096
SIZE = 16 * BLOCK


class Lasting(MemoryStore):
    """Outlives the volumes that were open on it."""

    def close(self) -> None:
        pass


class Careless(Lasting):
    """Takes no notice of the conditions of a PUT, as some servers do."""

    def put(self, key: str, body: Body, **more: Any) -> str:
        return super().put(key, body, **{**more, "if_match": None, "if_none_match": False})


def subject_of(store: MemoryStore) -> Subject:
    return find_subject(store, "", VolumeOptions(size=SIZE, block_size=BLOCK))


def repair(subject: Subject, check: Check) -> dict[str, str]:
    """Do all that can be done, and return why it was not, by kind."""
    done: dict[str, str] = {}

    def note(one: Any, why: str) -> None:
        done[one.finding.kind] = why

    perform(subject, list(repairs(subject, check.state.findings(), size_said=True)), note)
    return done


@pytest.mark.parametrize("kind", [Lasting, Careless])
def test_a_first_block_that_came_back_is_not_replaced(kind: type[Lasting]) -> None:
    store = kind()
    ClassicLayout(store, "", block_size=BLOCK, size=SIZE).create(b"partition table.".ljust(BLOCK))
    first = store.get("00000000")
    store.put("00000001", b"a" * BLOCK)
    store.delete("00000000")
    subject = subject_of(store)
    with Check(subject, CheckOptions()) as check:
        check.run()
        # It comes back without its metadata, so that the volume says as little of itself as before.
        store.put("00000000", first.body)
        assert "changed" in repair(subject, check)["no-first-block"]
    assert store.get("00000000").body == first.body
    assert "s3backer-mounted" not in [entry.key for entry in store.list("").entries]


def test_nothing_is_repaired_where_the_volume_grew_meanwhile() -> None:
    store = Lasting()
    ClassicLayout(store, "", block_size=BLOCK, size=SIZE).create()
    subject = subject_of(store)
    with Check(subject, CheckOptions()) as check:
        check.count()
        with Volume.open(store, "", VolumeOptions(memory=8 << 20)) as volume:
            volume.resize(2 * SIZE)
            volume.write(20 * BLOCK, b"x" * BLOCK)
        check.run()
        with pytest.raises(VolumeInUse, match="changed since it was checked"):
            repair(subject, check)
    assert store.get("00000014").body == b"x" * BLOCK
    with Volume.open(store, "", VolumeOptions(memory=8 << 20)) as volume:
        assert volume.size == 2 * SIZE


def test_a_check_of_a_volume_that_grew_since_is_not_gone_on_with(tmp_path: Path) -> None:
    store = Lasting()
    ClassicLayout(store, "", block_size=BLOCK, size=SIZE).create()
    with Check(subject_of(store), CheckOptions(state=tmp_path / "state")) as check:
        check.run()
    with Volume.open(store, "", VolumeOptions(memory=8 << 20)) as volume:
        volume.resize(2 * SIZE)
    options = CheckOptions(state=tmp_path / "state", resume=True, ended_too=True)
    with pytest.raises(UsageError, match="whose first block said 65536 bytes, plain, not 131072"):
        Check(subject_of(store), options)


def test_all_zeros_can_be_repaired_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3backer.checking.run.MOST_NOTES", 3)
    store = Lasting()
    ClassicLayout(store, "", block_size=BLOCK, size=SIZE).create()
    for block in range(1, 9):
        store.put(f"{block:08x}", bytes(BLOCK))
    subject = subject_of(store)
    with Check(subject, CheckOptions()) as check:
        check.run()
        assert repair(subject, check) == {"zeros": ""}
    assert [entry.key for entry in store.list("").entries] == ["00000000"]


def test_keys_are_printed_so_that_they_can_be_read() -> None:
    assert readable("d/ü 1") == "d/ü 1"
    assert readable("a\nproblem: none\x1b[2J") == r"'a\nproblem: none\x1b[2J'"
