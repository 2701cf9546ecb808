"""Writes whose answers were lost: each may still arrive, until its signature has expired and its upload has ended.

    an attempt            is accepted by an object that is      so until then its key is not
    PUT If-Match E        E                                     made E again
    PUT If-None-Match *   absent                                made absent
    PUT, DELETE           anything                              changed
    DELETE If-Match E     anything (some servers ignore the     changed
                          condition of a DELETE)

Who closes the store after writing, and lets others write, waits for all of them (``settles_in``): nobody else knows.

ETags follow content, hence "again": A → B → A would let a late "PUT B if it is A" through. A write that would break
a rule waits. Attempts of the same request do not bind one another: they all lead to the same object.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

#: What the object has to be for an attempt to take effect, besides an ETag.
ANYTHING = "anything"
ABSENT = "absent"
#: Keys above which those are looked for that have expired.
_LOOK_AT = 1000


class Unsettled:
    """The attempts of one store. ``clock`` in seconds, monotonic; ``lasting``: how long one may still arrive."""

    def __init__(self, clock: Callable[[], float], lasting: float) -> None:
        self._clock = clock
        self.lasting = lasting
        self._lock = threading.Lock()
        self._until: dict[str, dict[str, float]] = {}
        self._look_at = _LOOK_AT

    def add(self, key: str, accepts: str, sent_at: float) -> None:
        """Enter an attempt that was sent at ``sent_at`` and takes effect if the object is what it ``accepts``."""
        with self._lock:
            if len(self._until) >= self._look_at:
                self._forget()
                # Not again for each one more: that would take as long as all of them, each time.
                self._look_at = max(_LOOK_AT, 2 * len(self._until))
            attempts = self._until.setdefault(key, {})
            attempts[accepts] = max(attempts.get(accepts, 0.0), sent_at + self.lasting)

    def wait_before(self, key: str, becomes: Callable[[], str | None]) -> float:
        """Return how many seconds to wait before the object may become what ``becomes`` returns.

        That is ABSENT, an ETag, or None for an ETag that nobody knows yet.
        """
        if key not in self._until:
            return 0.0
        with self._lock:
            now = self._clock()
            attempts = {accepts: until for accepts, until in self._until.get(key, {}).items() if until > now}
            if not attempts:
                self._until.pop(key, None)
                return 0.0
            self._until[key] = attempts
        state = becomes()
        return max(
            (until - now for accepts, until in attempts.items() if _may_be(accepts, state)),
            default=0.0,
        )

    def longest(self) -> float:
        """Return after how many seconds no attempt may arrive any more; 0: none is left."""
        with self._lock:
            self._forget()
            now = self._clock()
            return max((until - now for found in self._until.values() for until in found.values()), default=0.0)

    def _forget(self) -> None:
        now = self._clock()
        self._until = {key: found for key, found in self._until.items() if max(found.values()) > now}


def _may_be(accepts: str, state: str | None) -> bool:
    return accepts in (ANYTHING, state) or (state is None and accepts != ABSENT)
