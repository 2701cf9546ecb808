"""Whether a server heeds the conditions of PUTs, and the end of a signature. None says so; it is tried, once.

    the second conditional PUT ──► the same again, under conditions that do not hold ──► heeded?
              └── yes: a PUT of the mount token, were it not there, with a signature that has ended ──► refused?

Guarantees
  * No trial changes anything: a PUT that is done all the same puts what has just been put there, and the other one is
    made only where its condition is known to be heeded.
  * A trial without a clear answer says nothing: the next conditional PUT has another one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from s3backer.errors import PreconditionFailed, S3backerError
from s3backer.s3.engine import Engine, LostAnswer
from s3backer.s3.http1 import Answer
from s3backer.s3.request import Request
from s3backer.s3.unsettled import ABSENT, ANYTHING

#: The conditional PUT that is repeated to see whether its conditions are heeded, and an ETag that no object has.
_TRIED = 2
_NO_ETAG = '"00000000000000000000000000000000"'
#: Seconds for which a service takes a signature that does not heed how long it was meant for.
_WINDOW = 900.0

log = logging.getLogger(__name__)


class Trials:
    """What is known of one server. ``name``: of the bucket, for messages."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name
        #: Whether it has shown that it heeds the conditions of PUTs, and how many have succeeded without a trial.
        self.conditions: bool | None = None
        self._untried = 0
        #: Whether it has shown that it refuses what was signed for a time that is over.
        self.heeds_expiry: bool | None = None
        self._lock = threading.Lock()

    @property
    def arriving(self) -> float:
        """Seconds for which a write may still take effect that the fence let through at the last moment."""
        return self._engine.arriving + (_WINDOW if self.heeds_expiry is False else 0.0)

    def accepts(self, if_match: str | None, if_none_match: bool) -> str:
        """Return what an object has to be for a write under this condition to take effect."""
        return (if_match or (ABSENT if if_none_match else ANYTHING)) if self.conditions else ANYTHING

    def after(self, done: Request, verify: Callable[[Answer], S3backerError | None]) -> Answer | None:
        """Try what is not known yet, after a conditional PUT; return the last answer if that was done once more."""
        if self.conditions is not None:
            return None
        answer = self._try_conditions(done, verify)
        self.try_expiry()
        return answer

    def _try_conditions(self, done: Request, verify: Callable[[Answer], S3backerError | None]) -> Answer | None:
        """Repeat a PUT under conditions that do not hold; return the answer if the server does it all the same.

        The first conditional PUT is left out: it is the mount token, and an opening shall cost little.
        """
        with self._lock:
            self._untried += 1
            if self._untried != _TRIED:
                return None
        heeded, last = True, None
        plain = {name: value for name, value in done.headers.items() if name not in ("If-Match", "If-None-Match")}
        try:
            for condition in ({"If-None-Match": "*"}, {"If-Match": _NO_ETAG}):
                try:
                    last = self._engine.perform(
                        replace(done, headers=plain | condition, accepts=ANYTHING), verify=verify
                    )
                    heeded = False
                except (PreconditionFailed, LostAnswer):
                    pass
        except S3backerError:
            # The next one will tell.
            self._untried = _TRIED - 1
            return last
        self.conditions = heeded
        if not heeded:
            log.warning(
                "%s does not heed the conditions of writes: it cannot keep two writers apart, and after a lost answer "
                "the next write of the same block waits",
                self._engine.place.endpoint,
            )
        return last

    def try_expiry(self) -> None:
        """See whether a signature that has ended is refused, while there is a lease that rests on it."""
        outside = self._engine.fence.outside
        # Only where conditions are known to be heeded: else the trial would take effect.
        if self.heeds_expiry is None and outside is not None and self.conditions:
            self.heeds_expiry = self._engine.refuses_expired(outside)
            if self.heeds_expiry is False:
                log.warning(
                    "the service of %s takes requests whose signatures have ended: after a mount that froze, the next "
                    "one has to wait a quarter of an hour for what that may still send",
                    self._name,
                )
