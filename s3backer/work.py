"""What the threads of the driver do: one job of the block cache at a time, with the layout and the journal.

    Fetch    a block, from the bucket and what the journal has of it
    Look     what the journal has of a block
    Store    a block, and the journal's note that it is stored
    Sync     the journal's files

Guarantee
  * Whatever happens the cache is told how the job has ended: with a result or an error, also after a defect.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from functools import partial

from s3backer.cache import BlockCache
from s3backer.cache_calls import Fetch, Look, Store
from s3backer.errors import DEFECT, JournalError, S3backerError, StoreError
from s3backer.failing import Failing
from s3backer.failpoints import reach
from s3backer.journal.service import Part, WriteJournal
from s3backer.layouts.base import Layout
from s3backer.stores.base import Buffer

log = logging.getLogger(__name__)


class Work:
    """Of one cache. ``tell`` runs a step of it; ``fetched_in`` hears how many seconds reading a block took."""

    def __init__(
        self,
        cache: BlockCache,
        layout: Layout,
        journal: WriteJournal | None,
        failing: Failing,
        *,
        clock: Callable[[], float],
        tell: Callable[[Callable[[float], None]], None],
        fetched_in: Callable[[float], None],
    ) -> None:
        self._cache, self._layout, self._journal, self._failing = cache, layout, journal, failing
        self._clock, self._tell, self._fetched_in = clock, tell, fetched_in
        #: Whether blocks that were left by an earlier mount wait for being stored.
        self._behind = journal is not None and journal.core.left > 0
        self._lock = threading.Lock()

    def fetch(self, job: Fetch) -> None:
        """Read a block."""
        body: Buffer | None = None
        error: S3backerError | None = None
        began = self._clock()
        try:
            body = self._read(job.block)
            self._fetched_in(self._clock() - began)
        except S3backerError as failure:
            error = failure
        except Exception as failure:
            error = _unexpected("reading", job.block, failure)
        self._tell(lambda now: self._cache.fetched(job.block, body, error, now))
        if error is not None and not (job.urgent or job.ahead) and self._cache.given_up is None:
            self._failing.failed(job.block, error)

    def look(self, job: Look) -> None:
        """Read what the journal has of a block."""
        assert self._journal is not None
        part: Part | None = None
        error: S3backerError | None = None
        try:
            part = self._journal.part(job.block)
        except S3backerError as failure:
            error = failure
        except Exception as failure:
            error = _unexpected("reading", job.block, failure)
        self._tell(lambda now: self._cache.looked(job.block, part, error))

    def store(self, job: Store) -> None:
        """Write a block."""
        error, noted = None, True
        try:
            self._look_at_journal()
            reach("before-store")
            etag = self._layout.write(job.block, job.body)
            reach("stored")
            if self._journal is not None:
                noted = self._journal.done(job.block, job.as_of, etag)
                reach("noted")
        except S3backerError as failure:
            error = failure
        except Exception as failure:
            error = _unexpected("writing", job.block, failure)
        self._tell(lambda now: self._cache.stored(job.block, error, now, noted=noted))
        if self._cache.given_up is None:
            if error is None:
                self._failing.stored(job.block)
            else:
                self._failing.failed(job.block, error)
            self._look_at_backlog()

    def sync(self) -> None:
        """Let the disk have what the journal took."""
        assert self._journal is not None
        with contextlib.suppress(JournalError):
            # Who keeps the journal sees that as well.
            self._journal.core.sync()
        self._tell(self._cache.synced)

    def _read(self, block: int) -> Buffer | None:
        """Return a block as it was written last, of which the journal may have what the bucket has not."""
        if self._journal is None or not self._journal.core.is_left(block):
            return self._layout.read(block)
        return self._journal.over(block, partial(self._layout.read, block))

    def _look_at_journal(self) -> None:
        """Raise if what is to be stored may not be in the journal, and others do not know that.

        Whoever was writing when the block was copied has finished when the journal has answered.
        """
        if self._journal is None or self._cache.admitted:
            return
        failure = self._journal.core.failure
        if self._journal.core.behind and not self._cache.admitted:
            raise failure or JournalError("the journal lacks something", hint="It is stored when others can know that.")

    def _look_at_backlog(self) -> None:
        if self._behind and self._journal is not None and not self._journal.core.left:
            with self._lock:
                said, self._behind = not self._behind, False
            if not said:
                log.warning("all that the former mount had left is stored or written over")


def _unexpected(what: str, block: int, failure: Exception) -> StoreError:
    log.exception("%s block %d failed unexpectedly", what, block)
    return StoreError(f"{what} block {block} failed: {failure!r}", hint=DEFECT)
