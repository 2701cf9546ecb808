"""Counts of the requests sent to a store, by kind, with bytes and seconds, and of how attempts failed.

Attempts are counted, not calls: a request that was sent three times was paid three times.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

KINDS = ("get", "head", "put", "delete", "list")
#: How an attempt may fail. An absent object (404), one that is as before (304) and a range past its end are answers.
FAILURES = (
    "unauthorized",
    "forbidden",
    "stale",
    "redirect",
    "other 3xx",
    "other 4xx",
    "5xx",
    "other status",
    "timeout",
    "connect failed",
    "host unknown",
    "other connection error",
)
_BY_STATUS = {
    401: "unauthorized",
    403: "forbidden",
    412: "stale",
    **dict.fromkeys((301, 302, 303, 307, 308), "redirect"),
    **dict.fromkeys((304, 404, 416), ""),
}
_BY_CLASS = {2: "", 3: "other 3xx", 4: "other 4xx", 5: "5xx"}


def failure_of_status(status: int) -> str:
    """Return which of ``FAILURES`` an answer's status is, empty if none."""
    return _BY_STATUS.get(status, _BY_CLASS.get(status // 100, "other status"))


@dataclass(slots=True)
class RequestCount:
    """Totals of one kind: attempts, failed attempts, bytes sent and received, seconds waited."""

    requests: int = 0
    failures: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0


class RequestCounters:
    """Thread-safe totals for every kind in ``KINDS``, and of every failure in ``FAILURES``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {kind: RequestCount() for kind in KINDS}
        self._failures = dict.fromkeys(FAILURES, 0)
        self._retries = 0
        self._retry_seconds = 0.0
        self._connections = 0
        self._hedges = 0
        self._hedges_won = 0

    def add(self, kind: str, *, sent: int = 0, received: int = 0, seconds: float = 0.0, failed: bool = False) -> None:
        """Count one attempt of a kind."""
        with self._lock:
            count = self._counts[kind]
            count.requests += 1
            count.failures += failed
            count.bytes_sent += sent
            count.bytes_received += received
            count.seconds += seconds

    def add_failure(self, failure: str) -> None:
        """Count how one attempt failed: one of ``FAILURES``, or empty where it did not."""
        if failure:
            with self._lock:
                self._failures[failure] += 1

    def add_retry(self, pause: float = 0.0) -> None:
        """Count one repeated attempt and the seconds waited before it."""
        with self._lock:
            self._retries += 1
            self._retry_seconds += pause

    def add_connection(self) -> None:
        """Count one connection that is made, or tried."""
        with self._lock:
            self._connections += 1

    def add_hedge(self, *, won: bool) -> None:
        """Count one request that was sent twice because its answer was slow; ``won``: the second came first."""
        with self._lock:
            self._hedges += 1
            self._hedges_won += won

    @property
    def hedges(self) -> int:
        """Requests that were sent twice because their answer was slow."""
        return self._hedges

    @property
    def hedges_won(self) -> int:
        """Those of them whose second answer came first."""
        return self._hedges_won

    @property
    def retries(self) -> int:
        """Attempts that repeated an earlier one."""
        return self._retries

    @property
    def retry_seconds(self) -> float:
        """Sum of the pauses between attempts."""
        return self._retry_seconds

    @property
    def connections(self) -> int:
        """Connections made, or tried, so far; 0 for a store that needs none."""
        return self._connections

    def failures(self) -> dict[str, int]:
        """Return how many attempts failed in which way."""
        with self._lock:
            return dict(self._failures)

    def snapshot(self) -> dict[str, RequestCount]:
        """Return a copy of all totals, by kind."""
        with self._lock:
            return {kind: replace(count) for kind, count in self._counts.items()}
