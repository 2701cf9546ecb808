"""Which failures are tried again, and when. This table is the only place that says so.

    no answer        refused, unknown host, time-out, reset, cut short      again
                     certificate not trusted                                final
    status           408 429 499 500 502 503 504                            again
    code             those of RETRIED_CODES, under any status               again
    broken XML       under any status but 412                               again
    a success that   whose body is not that of its checksum, that is no     again, at most MAX_ALTERED
    is none          S3's, or XML that breaks off                           attempts in all
    403              for a write that took longer than its signature lasts  again
    clock, region    that the server says are others                        at once, with those
    credentials      that it refuses, where others are found                at once, with those
    anything else                                                           final

Pauses are exponential with full jitter: each is drawn between 0 and a ceiling that doubles. Retry-After makes a
pause longer. The last pause is cut so that all together last ``patience``; one attempt follows it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from s3backer.errors import S3backerError

RETRIED_STATUSES = frozenset({408, 429, 499, 500, 502, 503, 504})
#: Attempts at a body that stays wrong.
MAX_ALTERED = 8
_SLOW_DOWN = frozenset({429, 503})
#: Codes of requests that were turned away because there are too many: they take no effect, now or later.
THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"})
RETRIED_CODES = THROTTLED | frozenset(
    {
        "RequestTimeout",
        "InternalError",
        "ServiceUnavailable",
        "OperationAborted",
        "ConditionalRequestConflict",
        # What the server received is not what was sent.
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
    }
)


class Failure(Exception):
    """One attempt failed.

    ``error`` is what the user is told if it is the last. ``unsettled``: the request may have taken effect.
    ``retry_after`` is what the server asks for, in seconds. ``counted_as``: one of telemetry's FAILURES, where no
    answer came. ``at_once``: another attempt needs no pause, because it will be another request. ``stale``: a kept
    connection had ended before the request.
    """

    def __init__(
        self,
        error: S3backerError,
        *,
        retried: bool,
        unsettled: bool = True,
        retry_after: float = 0.0,
        counted_as: str = "other connection error",
        at_once: bool = False,
        stale: bool = False,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.retried = retried
        self.unsettled = unsettled
        self.retry_after = retry_after
        self.counted_as = counted_as
        self.at_once = at_once
        self.stale = stale

    @property
    def timed_out(self) -> bool:
        """Whether the request was sent, in part at least, and no answer came in time."""
        return self.unsettled and self.counted_as == "timeout"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The pauses between attempts; all in seconds."""

    first_pause: float = 0.2
    longest_pause: float = 10.0
    shortest_pause: float = 0.01

    def pause(
        self, attempt: int, waited: float, patience: float, random_source: random.Random, retry_after: float = 0.0
    ) -> float | None:
        """Return how long to wait after the failed attempt 1, 2, …; None if it was the last.

        ``waited`` is the sum of the pauses so far, ``patience`` what it may be.
        """
        left = patience - waited
        if left <= 0:
            return None
        ceiling = min(self.longest_pause, self.first_pause * 2.0 ** min(attempt - 1, 30))
        pause = max(random_source.uniform(0, ceiling), self.shortest_pause, retry_after)
        return min(pause, left)


def is_retried(status: int, code: str) -> bool:
    """Return whether an answer with this status and error code is worth another attempt."""
    return status in RETRIED_STATUSES or code in RETRIED_CODES


def is_slow_down(status: int) -> bool:
    """Return whether an answer with this status asks for fewer requests."""
    return status in _SLOW_DOWN


def parse_retry_after(value: str) -> float:
    """Return a Retry-After header in seconds; 0 where it is absent, a date or nonsense."""
    value = value.strip()
    return float(value) if value.isascii() and value.isdigit() and len(value) < 8 else 0.0
