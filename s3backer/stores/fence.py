"""The fence of a store: whether anything may be written now. Who holds a volume's lease puts it up (holder.py).

Every attempt of every write asks it, also one that is repeated; reads do not. The mount token is outside of it: there
each call is one attempt, since only who keeps it knows whether another one is right.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from s3backer.clocks import boot_time
from s3backer.errors import StoreError


class Fence:
    """Down at first: everything may be written. Thread-safe.

    ``clock`` counts the seconds of who puts it up, as far as the store knows them.
    """

    def __init__(self, clock: Callable[[], float] = boot_time) -> None:
        self.clock = clock
        #: The key that is outside.
        self.outside: str | None = None
        self._ask: Callable[[bool], float] = lambda wait: math.inf
        #: Whether a write was ever let through, and whether none ever will be.
        self._passed = self._shut = False
        self._lock = threading.Lock()

    def put_up(self, outside: str, ask: Callable[[bool], float]) -> None:
        """Let ``ask`` decide about every key but ``outside``: it returns the seconds, or raises why not.

        It is told whether it may wait for an answer.
        """
        self._ask, self.outside = ask, outside

    def take_down(self) -> None:
        """Let everything be written again: nobody else can have the volume yet."""
        self._ask, self.outside = lambda wait: math.inf, None

    def check(self, key: str, *, wait: bool = True) -> float:
        """Return for how many seconds an attempt may take effect; raise StoreError or VolumeInUse if none may.

        ``wait``: some seconds for an answer, where that may help. Not for who holds what others need.
        """
        with self._lock:
            if self._shut:
                raise StoreError("nothing is written any more: the process is about to end", hint="Start it again.")
            self._passed = True
        return math.inf if key == self.outside else self._ask(wait)

    def shut(self) -> bool:
        """Let nothing be written from here, if nothing ever was; return whether that is so."""
        with self._lock:
            self._shut = not self._passed
            return self._shut
