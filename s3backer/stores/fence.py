"""The fence of a store: whether anything may be written now. Who holds a volume's lease puts it up (holder.py).

Every attempt of every write asks it, also one that is repeated; reads do not. The mount token is outside of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable


class Fence:
    """Down at first: everything may be written. Thread-safe."""

    def __init__(self) -> None:
        #: The key that is outside.
        self.outside: str | None = None
        self._ask: Callable[[], float] = lambda: math.inf

    def put_up(self, outside: str, ask: Callable[[], float]) -> None:
        """Let ``ask`` decide about every key but ``outside``: it returns the seconds, or raises why not."""
        self._ask, self.outside = ask, outside

    def take_down(self) -> None:
        """Let everything be written again: nobody else can have the volume yet."""
        self._ask, self.outside = lambda: math.inf, None

    def check(self, key: str) -> float:
        """Return for how many seconds an attempt may take effect; raise StoreError or VolumeInUse if none may."""
        return math.inf if key == self.outside else self._ask()
