"""Slowing writers down where the room for what is unsaved becomes scarce, so that they do not run into a full stop.

    level                       0       0.25      0.5      0.75      0.9      1
    seconds since it was 0      0        0.3      0.7       1.4      2.3      full: writers wait       nothing is stored

The level says how much of the last part of the room is used. Below it, at 0, nobody is slowed down. A write that
raises it is taken at once, and answered after the time in which ``SECONDS`` would use up what is left of the room:

    debt of a rise from a to b  =  SECONDS * ln((1 - a) / (1 - b))

Guarantees
  * Without anything stored the level rises as drawn above, whatever writes are like: many small ones or a few large.
  * What is stored takes from the debt as much as it makes room for: writers that are no faster than what is stored
    are not slowed down.
  * A write is held back for ``SECONDS`` at most; in order of arrival.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from s3backer.cache_calls import WriteRequest

#: In this time what is left of the room would be used up, if writers went on as they may at that moment.
SECONDS = 1.0
#: Seconds of which use can be made later: timers are late, and what is stored comes in turns.
_SAVED = 0.1
#: Above it the room counts as full, as the logarithm has no end.
_FULL = 0.999


@dataclass(slots=True, eq=False)
class _Held:
    request: WriteRequest
    due: float


class Throttle:
    """Writes that are taken and not yet answered. Times are seconds of the caller's clock, levels 0 to 1."""

    def __init__(self) -> None:
        #: How much of the last part of the room is used, as was said last.
        self.level = 0.0
        #: When the debt will have been paid, or was.
        self._clear_at = 0.0
        self._held: deque[_Held] = deque()
        #: Writes that were held back.
        self.count = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def next_due(self) -> float | None:
        """Return when the next write is to be answered, None if none is held back."""
        return self._held[0].due if self._held else None

    def note(self, level: float, now: float) -> None:
        """Hear how much of the room is used."""
        level = min(level, _FULL)
        self._clear_at = max(self._clear_at, now - _SAVED)
        change = SECONDS * math.log((1 - self.level) / (1 - level))
        self.level = level
        if level <= 0:
            self._clear_at = now
            for held in self._held:
                held.due = now
        elif change < 0:
            self._clear_at += change
            for held in self._held:
                held.due += change
        else:
            self._clear_at = min(self._clear_at + change, now + SECONDS)

    def hold(self, request: WriteRequest, now: float) -> bool:
        """Hold a write that has been taken back while there is a debt; False if it is to be answered at once."""
        if self._clear_at <= now:
            return False
        self._held.append(_Held(request, self._clear_at))
        self.count += 1
        return True

    def take(self, which: Callable[[WriteRequest, float], bool]) -> list[WriteRequest]:
        """Hold back no longer those of which, with the time at which they are due, that is true; return them."""
        taken: list[WriteRequest] = []
        kept: deque[_Held] = deque()
        for held in self._held:
            if which(held.request, held.due):
                taken.append(held.request)
            else:
                kept.append(held)
        self._held = kept
        return taken
