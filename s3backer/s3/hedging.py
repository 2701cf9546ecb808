"""When a slow GET is asked for a second time, on another connection: the first whole answer counts.

    slow        longer than 1.25 times the time in which 95 of the last 100 or so came
    outlier     at least two GETs that began later have been answered, and on average in less than half of the time
                that this one has been waiting: it is this one and not the server
    lone        nothing to compare with: 15 times the median is slow enough by itself

A second attempt needs "slow", and "outlier" or "lone"; and it is paid from a budget of 5 % of all GETs. So when every
answer slows down there is none. Writes are never sent twice while the first may still arrive.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable

from s3backer.errors import S3backerError
from s3backer.s3.http1 import Exchange
from s3backer.s3.retries import Failure

SHARE = 0.05
_SAVED = 10.0
_SAMPLES = 256
_ENOUGH = 32
_PASSED_BY = 2
_OUTLIER = 2.0
_SLOW = 1.25
_LONE = 15.0


class Ticket:
    """One GET under way."""

    __slots__ = ("began", "number", "passed_by", "passed_in")

    def __init__(self, number: int, began: float) -> None:
        self.number = number
        self.began = began
        #: How many that began later have been answered, and the sum of their seconds.
        self.passed_by = 0
        self.passed_in = 0.0


class Aside(threading.Thread):
    """Begins an exchange in a thread of its own: to connect may take long. ``begin`` raises if there will be none."""

    def __init__(self, begin: Callable[[], Exchange]) -> None:
        super().__init__(name="s3backer-hedge", daemon=True)
        self._begin = begin
        self._taking = threading.Lock()
        self._exchange: Exchange | None = None
        self._taken = False
        self.start()

    def run(self) -> None:
        """Begin; close what comes too late."""
        try:
            exchange = self._begin()
        except (Failure, S3backerError):
            return
        with self._taking:
            self._exchange = exchange
            if self._taken:
                exchange.connection.close()

    def take(self) -> Exchange | None:
        """Return the exchange if it has begun; otherwise there will be none any more. To be called once."""
        with self._taking:
            self._taken = True
            return self._exchange


class Hedging:
    """Knows how long GETs take. ``clock`` in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._number = 0
        self._under_way: dict[int, Ticket] = {}
        self._seconds: deque[float] = deque(maxlen=_SAMPLES)
        self._since = 0
        self._budget = 0.0
        self._slow: float | None = None
        self._median = 0.0

    def begin(self) -> Ticket:
        """Begin a GET; it must be ended."""
        with self._lock:
            self._number += 1
            self._budget = min(_SAVED, self._budget + SHARE)
            ticket = self._under_way[self._number] = Ticket(self._number, self._clock())
            return ticket

    def end(self, ticket: Ticket, *, answered: bool) -> None:
        """End a GET; ``answered``: with an answer, from which its time is learnt."""
        with self._lock:
            del self._under_way[ticket.number]
            if not answered:
                return
            seconds = self._clock() - ticket.began
            self._seconds.append(seconds)
            self._since += 1
            if self._since >= _ENOUGH:
                self._learn()
            for other in self._under_way.values():
                # They are in the order in which they began.
                if other.number > ticket.number:
                    break
                other.passed_by += 1
                other.passed_in += seconds

    def patience(self, ticket: Ticket) -> float | None:
        """Return after how many seconds to ask ``allowed``, None if there is nothing to compare with yet."""
        with self._lock:
            if self._slow is None:
                return None
            now = self._clock()
            left = ticket.began + self._slow - now
            # The longer it has been waiting the less a moment matters: with 1 ms for all others, 64 of them that
            # were looked at every half millisecond took the whole CPU while a server was silent.
            return left if left > 0 else max(self._slow / 2, (now - ticket.began) / 8)

    def allowed(self, ticket: Ticket) -> bool:
        """Return whether this GET is to be asked for a second time now, and pay for it."""
        with self._lock:
            age = self._clock() - ticket.began
            if self._slow is None or age < self._slow or self._budget < 1.0:
                return False
            outlier = ticket.passed_by >= _PASSED_BY and age * ticket.passed_by >= _OUTLIER * ticket.passed_in
            if not outlier and age < _LONE * self._median:
                return False
            self._budget -= 1.0
            return True

    def _learn(self) -> None:
        self._since = 0
        ordered = sorted(self._seconds)
        self._slow = _SLOW * ordered[len(ordered) * 95 // 100]
        self._median = statistics.median(ordered)
