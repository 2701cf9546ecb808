"""What is said of blocks that cannot be stored: each kind of error once, and an end when none is left."""

from __future__ import annotations

import pytest

from s3backer.errors import CorruptObject, ObjectVanished, S3backerError, StoreUnreachable
from s3backer.failing import Failing

DAMAGED = CorruptObject("object 'x' is damaged", hint="Look.")
VANISHED = ObjectVanished("object 'x' has vanished", hint="Look.")
AWAY = StoreUnreachable("it is away", hint="Wait.")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_a_block_that_fails_among_others_that_do_not(caplog: pytest.LogCaptureFixture) -> None:
    unsaved = 9
    failing = Failing(lambda: unsaved, lambda block: True)
    assert failing.error is None
    failing.stored(1)
    assert said(caplog) == []
    for _ in range(3):
        failing.failed(3, DAMAGED)
        failing.stored(1)
        failing.failed(4, DAMAGED)
        assert failing.error is DAMAGED
    assert said(caplog) == ["write-back is failing, 9 blocks are waiting and will be tried again: " + str(DAMAGED)]
    failing.failed(5, AWAY)
    failing.failed(6, AWAY)
    assert len(said(caplog)) == 1
    for block in (3, 5, 6):
        failing.stored(block)
    assert said(caplog) == [] and failing.error is DAMAGED
    failing.stored(4)
    assert said(caplog) == ["write-back works again, 9 blocks are waiting"] and failing.error is None
    failing.failed(3, DAMAGED)
    assert len(said(caplog)) == 1


def test_a_block_that_needs_not_be_stored_any_more(caplog: pytest.LogCaptureFixture) -> None:
    dirty = {3, 4}
    failing = Failing(lambda: len(dirty), dirty.__contains__)
    failing.failed(3, DAMAGED)
    failing.failed(4, AWAY)
    assert len(said(caplog)) == 2
    dirty.remove(3)
    assert failing.error is AWAY
    failing.failed(4, DAMAGED)
    failing.failed(4, AWAY)
    assert said(caplog) == []
    dirty.remove(4)
    assert failing.error is None
    failing.stored(1)
    assert said(caplog) == ["write-back works again, 0 blocks are waiting"]
    dirty.add(4)
    failing.failed(4, AWAY)
    assert len(said(caplog)) == 1


def test_it_does_not_remember_more_than_it_may(caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing(lambda: 1, lambda block: True)
    for block in range(3000):
        failing.failed(block, AWAY)
    assert len(failing._errors) == 1000
    for block in range(3000):
        failing.stored(block)
    assert failing.error is None and len(said(caplog)) == 2


@pytest.mark.parametrize("lost", [DAMAGED, VANISHED], ids=["damaged", "vanished"])
def test_damage_is_told_from_an_outage_however_many_blocks_have_it(lost: S3backerError) -> None:
    gone: set[int] = set()
    failing = Failing(lambda: 3000, lambda block: block not in gone)
    assert failing.damage(0) is None
    for block in range(2000):
        failing.failed(block, lost)
    assert failing.damage(2000) is lost and failing.damage(2001) is None
    failing.failed(2500, AWAY)
    failing.failed(7, AWAY)
    assert failing.damage(2000) is None and failing.damage(1999) is lost
    failing.stored(8)
    gone.add(9)
    assert failing.damage(1998) is None and failing.damage(1997) is lost
