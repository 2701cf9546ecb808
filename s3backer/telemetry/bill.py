"""What a mount has cost so far and would cost a month, and whether that is within a budget.

The budget is an account in dollars: it begins with a day's share of the month's amount and is paid the rest as time
goes by; requests and traffic are taken from it. While it is empty, write-back slows down step by step, so that more
writes meet in the cache and are stored once; it speeds up again as soon as the account recovers. Reads, flushes and
what does not fit the memory go out as ever: nothing is lost and nothing waits for money that a caller waits for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from s3backer.errors import UsageError
from s3backer.telemetry.prices import GB, MONTH, Prices, dollars
from s3backer.telemetry.requests import RequestCounters

#: Seconds after which a rate says something.
_ENOUGH = 60.0
_WARN_AT, _QUIET_AT = 0.8, 0.7
_DAYS = MONTH / 86400
#: The write delay is stretched by 2 to 64, a step further in so many seconds.
_MOST_STRETCH = 64.0
_STEP_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bill:
    """Dollars so far, by kind of request and for traffic, and a month at this rate (None: too early to say)."""

    by_kind: dict[str, float]
    per_month: float | None

    @property
    def total(self) -> float:
        """Dollars so far."""
        return sum(self.by_kind.values())


def bill(counters: RequestCounters, prices: Prices, seconds: float) -> Bill:
    """Return what the requests of ``seconds`` have cost."""
    found = Bill(prices.of_requests(counters.snapshot()), None)
    if seconds < _ENOUGH:
        return found
    return Bill(found.by_kind, found.total / seconds * MONTH)


def parse_budget(text: str) -> float:
    """Return the dollars a month of a text such as ``5/month`` or ``$2.50/month``."""
    match = re.fullmatch(r"\$?([0-9]{1,9}(?:\.[0-9]{1,4})?)(?: ?USD)?/(?:month|mo)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{text!r} is no budget", hint="Write dollars a month, for example 5/month.")
    return float(match[1])


class Budget:
    """The account of one mount; see the module. ``amount`` in dollars a month, times in seconds of any clock."""

    def __init__(self, amount: float, now: float) -> None:
        self.amount = amount
        self._began = now
        self._stretch = 1.0
        self._stepped = now
        self._warned = False
        self._over = False

    @property
    def stretch(self) -> float:
        """By what the write delay is multiplied now."""
        return self._stretch

    def balance(self, spent: float, now: float) -> float:
        """Return what is left on the account after ``spent`` dollars in all."""
        return self.amount / _DAYS + self.amount * (now - self._began) / MONTH - spent

    def look(self, spent: float, now: float) -> float:
        """Take notice of ``spent`` dollars in all; warn where that is due, and return ``stretch``."""
        seconds = now - self._began
        projected = spent / seconds * MONTH if seconds >= _ENOUGH else 0.0
        over = self.balance(spent, now) < 0
        if not self._warned and (over or projected >= _WARN_AT * self.amount) and seconds >= _ENOUGH:
            self._warned = True
            log.warning(
                "at this rate a month costs %s, %d %% of the budget of %s",
                dollars(projected),
                100 * projected / self.amount,
                dollars(self.amount),
            )
        elif self._warned and not over and projected < _QUIET_AT * self.amount:
            self._warned = False
        if over != self._over:
            self._over = over
            if over:
                log.warning("the budget of %s a month is used up: write-back slows down", dollars(self.amount))
            else:
                log.warning("there is money for write-back again")
        if not over:
            self._stretch = 1.0
        elif self._stretch == 1.0 or now - self._stepped >= _STEP_SECONDS:
            self._stretch = min(_MOST_STRETCH, self._stretch * 2)
            self._stepped = now
        return self._stretch


class Costs:
    """What one mount costs, and its budget, if it has one: ``monthly_budget`` in dollars. ``clock`` in seconds."""

    def __init__(
        self, counters: RequestCounters, prices: Prices, monthly_budget: float | None, clock: Callable[[], float]
    ) -> None:
        self._counters, self._prices, self._clock = counters, prices, clock
        self._began = clock()
        self._budget = None if monthly_budget is None else Budget(monthly_budget, self._began)

    def look(self) -> float:
        """Return by what the write delay is multiplied for the sake of the budget."""
        if self._budget is None:
            return 1.0
        spent = sum(self._prices.of_requests(self._counters.snapshot()).values())
        return self._budget.look(spent, self._clock())

    def facts(self, stored: int) -> dict[str, object]:
        """Return what ``info`` shows, in dollars, of a volume with so many bytes in the bucket."""
        found = bill(self._counters, self._prices, self._clock() - self._began)
        return {
            "cost": found.total,
            "cost_by_kind": found.by_kind,
            "cost_per_month": found.per_month,
            "stored_cost_per_month": stored * self._prices.storage / GB,
            "prices_as_of": self._prices.as_of,
            "hedged_requests": self._counters.hedges,
            "budget": None if self._budget is None else self._budget.amount,
            "write_delay_factor": 1.0 if self._budget is None else self._budget.stretch,
        }
