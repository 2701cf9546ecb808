"""What the last write-back of a volume says while it lasts."""

from __future__ import annotations

import pytest

from s3backer.closing import ClosingProgress


def test_what_is_left_is_said_again_when_it_is_less(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "s3backer")
    now = 0.0
    closing = ClosingProgress(terminal=False, clock=lambda: now)
    # Three hours of outage, three times a second; then it goes on.
    with closing:
        for step in range(3 * 3600 * 3):
            now = step / 3
            closing(7, 9)
        for left in (6, 5, 0):
            now += 5.0
            closing(left, 9)
    assert caplog.messages == [
        "7 of 9 blocks are left to store",
        "waiting for the store: 7 blocks are not stored yet, and nothing is given up",
        "storing 6 blocks that are left",
        "6 of 9 blocks are left to store",
        "5 of 9 blocks are left to store",
    ]
