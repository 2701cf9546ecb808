"""The clock that nobody sets."""

from __future__ import annotations

import time


def boot_time() -> float:
    """Return seconds on a clock that nobody sets and that goes on while the computer sleeps.

    It stands still while a virtual machine is paused from outside.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
