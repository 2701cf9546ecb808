"""Counts of the requests sent to a store, by kind, with bytes and seconds.

Attempts are counted, not calls: a request that was sent three times was paid three times.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

KINDS = ("get", "head", "put", "delete", "list")


@dataclass(slots=True)
class RequestCount:
    """Totals of one kind: attempts, failed attempts, bytes sent and received, seconds waited."""

    requests: int = 0
    failures: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0


class RequestCounters:
    """Thread-safe totals for every kind in ``KINDS``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {kind: RequestCount() for kind in KINDS}
        self._retries = 0

    def add(self, kind: str, *, sent: int = 0, received: int = 0, seconds: float = 0.0, failed: bool = False) -> None:
        """Count one attempt of a kind."""
        with self._lock:
            count = self._counts[kind]
            count.requests += 1
            count.failures += failed
            count.bytes_sent += sent
            count.bytes_received += received
            count.seconds += seconds

    def add_retry(self) -> None:
        """Count one repeated attempt."""
        with self._lock:
            self._retries += 1

    @property
    def retries(self) -> int:
        """Attempts that repeated an earlier one."""
        return self._retries

    def snapshot(self) -> dict[str, RequestCount]:
        """Return a copy of all totals, by kind."""
        with self._lock:
            return {kind: replace(count) for kind, count in self._counts.items()}
