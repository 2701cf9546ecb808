"""The clock that nobody sets, and how long something has stayed as it is."""

from __future__ import annotations

import time


def boot_time() -> float:
    """Return seconds on a clock that nobody sets and that goes on while the computer sleeps.

    It stands still while a virtual machine is paused from outside.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Unchanged:
    """For how many seconds a value has been the same. Reads no clock: ``now`` is passed in."""

    def __init__(self) -> None:
        self._value: object = None
        self._since = 0.0

    def lasts(self, value: object, now: float) -> float:
        """Return for how long it has been this value: not at all, if it was another one when last asked."""
        if value != self._value:
            self._value, self._since = value, now
        return now - self._since

    def restart(self, now: float) -> None:
        """Count from now on."""
        self._since = now
