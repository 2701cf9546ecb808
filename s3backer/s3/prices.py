"""What requests cost, by a dated table.

Source: the public price list of Amazon S3 for the Standard class in us-east-1, as of PRICES_AS_OF. Traffic out
of AWS is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from s3backer.telemetry.requests import RequestCounters

PRICES_AS_OF = "2026-11"


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars: per 1000 requests of each kind, and per GB (10**9 bytes) stored for a month."""

    put: float = 0.005
    list: float = 0.005
    get: float = 0.0004
    head: float = 0.0004
    delete: float = 0.0
    storage: float = 0.023


def cost(counters: RequestCounters, prices: Prices = Prices()) -> float:
    """Return what the counted requests cost, in US dollars."""
    counts = counters.snapshot()
    return sum(count.requests * float(getattr(prices, kind)) / 1000 for kind, count in counts.items())
