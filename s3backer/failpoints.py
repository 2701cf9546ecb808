"""Points at which a test lets this process die, as if it were killed there, or stand still.

``S3BACKER_FAILPOINT=NAME`` or ``NAME:COUNT``: at the COUNTth time that the point is reached, SIGKILL. Without it
nothing happens. Who is to stand still is told so by ``arm``.
"""

from __future__ import annotations

import os
import signal
import time

VARIABLE = "S3BACKER_FAILPOINT"
#: Seconds after which all threads stand still.
_STANDING = 0.5

_name, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = int(_count) if _count.isdecimal() else 1
_signal = signal.SIGKILL


def arm(name: str, count: int = 1, *, stop: bool = False) -> None:
    """Let this process die at a point, as the variable would, or stop there."""
    global _name, _left, _signal
    _name, _left, _signal = name, count, signal.SIGSTOP if stop else signal.SIGKILL


def armed() -> bool:
    """Return whether there is anything to reach."""
    return bool(_name)


def reach(name: str) -> None:
    """Die or stop here, if that was asked for."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), _signal)
            # Another thread may be the one that gets it, and this one may come as far as here before all stand still.
            time.sleep(_STANDING)
