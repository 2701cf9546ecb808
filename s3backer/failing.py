"""Which blocks could not be stored when that was last tried, and what the log says of it.

    write-back is failing, …: ERROR      once for each kind of error, until everything works again
    write-back works again, …            when none of them is left

One damaged object fails for ever while all others are stored: that is neither to be forgotten nor to be said each time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from s3backer.errors import CorruptObject, JournalDamaged, ObjectVanished, S3backerError

#: Blocks that are remembered.
_MOST = 1000

log = logging.getLogger(__name__)


class Failing:
    """``unsaved`` returns how many blocks are not in the bucket as written; ``fails``: whether one of them is not.

    May be used from several threads.
    """

    def __init__(self, unsaved: Callable[[], int], fails: Callable[[int], bool]) -> None:
        self._unsaved, self._fails = unsaved, fails
        self._errors: dict[int, S3backerError] = {}
        #: Kinds of errors that were said.
        self._said: set[type[S3backerError]] = set()
        #: Blocks whose last failure was damage; at most as many as there are in memory and in the journal.
        self._damaged: set[int] = set()
        self._damage: S3backerError | None = None
        self._lock = threading.Lock()

    @property
    def error(self) -> S3backerError | None:
        """Why a block could not be stored that still is not; None while write-back works."""
        with self._lock:
            errors = list(self._errors.items())
        return next((error for block, error in errors if self._fails(block)), None)

    def damage(self, count: int) -> S3backerError | None:
        """Return why, if at least so many blocks are not stored because something is damaged, else None."""
        with self._lock:
            blocks, error = list(self._damaged), self._damage
        return error if count and sum(map(self._fails, blocks)) >= count else None

    def failed(self, block: int, error: S3backerError) -> None:
        """Hear that a block could not be stored."""
        with self._lock:
            new = type(error) not in self._said
            self._said.add(type(error))
            if isinstance(error, (CorruptObject, JournalDamaged, ObjectVanished)):
                self._damaged.add(block)
                self._damage = error
            else:
                self._damaged.discard(block)
            if block in self._errors or len(self._errors) < _MOST:
                self._errors[block] = error
        if new:
            log.error(
                "write-back is failing, %d blocks are waiting and will be tried again: %s", self._unsaved(), error
            )

    def stored(self, block: int) -> None:
        """Hear that a block was stored."""
        if not self._errors:
            return
        with self._lock:
            failing = bool(self._errors)
            self._errors.pop(block, None)
            self._damaged.discard(block)
            self._forget()
            again = failing and not self._errors
        if again:
            log.warning("write-back works again, %d blocks are waiting", self._unsaved())

    def _forget(self) -> None:
        """Forget the first ones that need not be stored any more, of which nobody says that they were."""
        while self._errors and not self._fails(block := next(iter(self._errors))):
            del self._errors[block]
        if not self._errors:
            self._said.clear()
