"""The server's clock: ours, corrected by the dates in its answers.

Signatures are good from the time they name until some seconds later, by the server's clock. A clock that is ahead
of it would make them good for longer than the writer waits (s3/unsettled.py), so every answer's date is looked at,
not only that of a refusal; and what counts the seconds between answers is a clock that nobody can set.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from s3backer.clocks import boot_time
from s3backer.s3.http1 import Answer
from s3backer.s3.responses import server_time

#: Seconds that a date may be off: it has whole seconds, and clocks differ a little without being told.
DOUBT = 2
#: A difference that is worth a line in the log, and another attempt of what was refused, in seconds.
_SKEW = 10

log = logging.getLogger(__name__)


def steady_clock() -> Callable[[], float]:
    """Return a clock that shows the time of this computer's clock now, in seconds since 1970, and is never set."""
    base = time.time() - boot_time()
    return lambda: base + boot_time()


class ServerClock:
    """What time it is at the server ``name``. ``clock`` in seconds since 1970."""

    def __init__(self, clock: Callable[[], float], name: str) -> None:
        self._clock = clock
        self._name = name
        self._lock = threading.Lock()
        self._offset = 0.0
        #: Seconds by which the server's clock was found to have gone on without ours, all in all.
        self._jumped = 0.0
        #: How far ahead of ours it was found to be at most: servers behind one name differ.
        self._furthest: float | None = None
        self._last: tuple[str, float | None] = ("", None)

    def ours(self) -> float:
        """Return the time of this computer's clock."""
        return self._clock()

    def now(self) -> float:
        """Return the time at the server, as far as it is known."""
        return self._clock() + self._offset

    def unpaused(self) -> float:
        """Return seconds on a clock that nobody sets and that also goes on while this computer is paused.

        Of a pause it learns with the next answer, and never goes back.
        """
        return boot_time() + self._jumped

    @property
    def ahead(self) -> float:
        """How many seconds this computer's clock is ahead of the server's."""
        return -self._offset

    def observe(self, answer: Answer, asked: float) -> bool:
        """Learn from the answer to a request sent ``asked`` (our clock); return whether we were far off."""
        text = answer.headers.get("date", "")
        answered = self._clock()
        with self._lock:
            if text != self._last[0]:
                self._last = text, server_time(answer)
            said = self._last[1]
            # A clock that was set meanwhile says nothing.
            if said is None or answered < asked:
                return False
            # The date was written after the request was sent and before the answer was here.
            least, most = said - answered, said + 1 - asked
            if self._furthest is None:
                self._furthest = min(max(self._offset, least), most)
            elif least - DOUBT > self._furthest:
                self._jumped += least - self._furthest
                self._furthest = least
            if least - DOUBT <= self._offset <= most + DOUBT:
                return False
            right = least if self._offset < least else most
            far = abs(right - self._offset) > _SKEW
            self._offset = right if abs(right) > DOUBT else 0.0
        if far:
            log.warning("the clock of this computer differs from that of %s by %.0f s", self._name, right)
        return far
