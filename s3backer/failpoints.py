"""Points at which a test lets this process die, as if it were killed there.

``S3BACKER_FAILPOINT=NAME`` or ``NAME:COUNT``: at the COUNTth time that the point is reached, SIGKILL. Without it
nothing happens.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "S3BACKER_FAILPOINT"

_name, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = int(_count) if _count.isdecimal() else 1


def arm(name: str, count: int = 1) -> None:
    """Let this process die at a point, as the variable would."""
    global _name, _left
    _name, _left = name, count


def reach(name: str) -> None:
    """Die here, if that was asked for."""
    global _left
    if name == _name:
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
