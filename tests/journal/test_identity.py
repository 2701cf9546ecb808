"""Whether a journal may be replayed, by the token in the bucket; if not, what is known of its blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from s3backer.journal.identity import NeedsETags, Ours, Refuse, decide
from s3backer.journal.replay import Intent, Known
from tests.support.journals import BLOCK, MOUNT, SmallJournal, scan_path

OTHER = 0x99


def test_our_token(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"x")
    assert decide(MOUNT.token, scan_path(tmp_path / "j")[0]) == Ours()


def test_nothing_left_to_replay(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"x")
        small.journal.done(0, 1, '"e"')
    for token in (None, OTHER):
        assert decide(token, scan_path(tmp_path / "j")[0]) == NeedsETags({})


def test_every_block_has_an_etag(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        for block in range(4):
            small.write(block * BLOCK, b"x")
        small.journal.done(0, 1, '"zero"')
        small.journal.intend(1, 2, '"one"', "sum1")
        small.journal.intend(2, 3, "*", "sum2")
        small.journal.done(3, 4, "")
        for block in (0, 3):
            small.write(block * BLOCK, b"y")
        small.journal.intend(3, 6, "*", "sum3")
        small.journal.intend(0, 5, "", "sum4")
    assert decide(None, scan_path(tmp_path / "j")[0]) == NeedsETags(
        {
            0: Known('"zero"', Intent(5, "", "sum4")),
            1: Known('"one"', Intent(2, '"one"', "sum1")),
            2: Known("", Intent(3, "*", "sum2")),
            3: Known("", Intent(6, "*", "sum3")),
        }
    )


def test_a_block_of_which_nothing_is_known(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        for block in range(3):
            small.write(block * BLOCK, b"x")
        small.journal.done(0, 1, '"zero"')
        small.write(0, b"y")
        small.journal.intend(1, 2, "", "sum")
    recovered = scan_path(tmp_path / "j")[0]
    for token, words in ((None, "no token"), (OTHER, "the token 00000099")):
        refused = decide(token, recovered)
        assert isinstance(refused, Refuse)
        assert words in refused.reason and "token 1234abcd" in refused.reason and "2 of 3 blocks" in refused.reason


def test_the_next_session_goes_on(tmp_path: Path) -> None:
    later = dataclasses.replace(MOUNT, session=b"b" * 16, token=0x77)
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"x")
    with SmallJournal(tmp_path / "j", mount=later) as small:
        # Killed before it wrote: its token may or may not be in the bucket.
        pass
    recovered = scan_path(tmp_path / "j")[0]
    assert decide(MOUNT.token, recovered) == decide(later.token, recovered) == Ours()
    assert isinstance(decide(OTHER, recovered), Refuse)
    with SmallJournal(tmp_path / "j", mount=later) as small:
        small.write(BLOCK, b"y")
    recovered = scan_path(tmp_path / "j")[0]
    assert [session.token for session in recovered.sessions] == [MOUNT.token, later.token]
    assert [session.records for session in recovered.sessions] == [2, 2]
    assert decide(later.token, recovered) == Ours()
    # The bucket was put back to an older state.
    assert isinstance(decide(MOUNT.token, recovered), Refuse)


def test_killed_before_its_first_write(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j"):
        pass
    recovered = scan_path(tmp_path / "j")[0]
    assert decide(MOUNT.token, recovered) == Ours()
    assert decide(OTHER, recovered) == NeedsETags({})
    assert not recovered.files and len(recovered.unused) == 2
