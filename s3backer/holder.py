"""The mount token while this process holds it: taken, renewed, changed, given back; and what happens when it is lost.

    take ──► Holder ──► s3backer-lease: renews it ──► lost ──► on_lost
               └──► the store's fence: no attempt of a write without its leave

Guarantees
  * From the first moment on it is renewed, also while its taker still waits for the former holder's requests.
  * Nothing is written while the lease has not been renewed in time (s3backer/lease.py), and nothing ever again once
    the token is another's.
  * Before a write is sent, this host notes that requests are under way, if there is a directory to note it in: who
    finds this process dead knows how long to wait.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable

from s3backer.errors import AccessDenied, BucketNotFound, JournalError, S3backerError, StoreError, VolumeInUse
from s3backer.journal.files import JournalDirectory
from s3backer.layouts.token import (
    TOKEN_NAME,
    MountToken,
    claim_token,
    count_down,
    in_use,
    read_token,
    remove_token,
    watch_token,
    write_token,
)
from s3backer.lease import TERM, Lease
from s3backer.s3.server_clock import boot_time
from s3backer.stores.base import ObjectStore

log = logging.getLogger(__name__)

#: Pause in seconds between two attempts to give the token back.
_RETRY = 1.0
#: Seconds after which it is noted again that requests are under way.
_NOTE = 1.0

#: Told the seconds that are left of a wait, which it ends by raising.
Looks = Callable[[float], None]


class Holder:
    """The mount token of one volume, held. ``sent_at``: when the request was sent that put it, on ``clock``."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        url: str,
        token: MountToken,
        sent_at: float,
        *,
        directory: JournalDirectory | None = None,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._store, self._prefix, self._url = store, prefix, url
        self._directory = directory
        self._clock = clock
        self._random = random.SystemRandom()
        self._token = token
        #: Each value that it may have in the bucket.
        self._values = {token.value}
        self.lease = Lease(url, token.lease, sent_at)
        #: Called once, by any thread, when the token has become another's.
        self.on_lost: Callable[[VolumeInUse], None] = lambda error: None
        self._noted = -_NOTE
        #: Held while the token is changed.
        self._changing = threading.Lock()
        self._telling = threading.Lock()
        self._stopping = False
        self._wake = threading.Event()
        #: Notified when an attempt to renew it has ended.
        self._attempted = threading.Condition()
        store.fence.put_up(prefix + TOKEN_NAME, self._may_write)
        self._thread = threading.Thread(target=self._run, name="s3backer-lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> MountToken:
        """The token as it was put last."""
        return self._token

    def confirm(self) -> None:
        """Raise VolumeInUse unless the token in the bucket is still ours."""
        found = read_token(self._store, self._prefix)
        if found is None or found.value not in self._values:
            error = self._not_ours(found)
            self._lose(error)
            raise error

    def change(self, value: int) -> None:
        """Give the token another value. Raises StoreError, and then it has the one or the other; VolumeInUse."""
        with self._changing:
            self._values.add(value)
            self._put(value)

    def renew(self) -> None:
        """Put the token once more, so that everybody sees that we are alive. Raises StoreError or VolumeInUse."""
        with self._changing:
            self._put(None)

    def give_back(self, *, patient: bool = True) -> MountToken | None:
        """Remove the token and return another's that stands there instead.

        While the store is away it waits, if ``patient``. Raises StoreError where the store refuses it.
        """
        self.stop()
        waiting = False
        while True:
            try:
                other = remove_token(self._store, self._prefix, self._token)
                if other is not None and other.value in self._values:
                    # It was put, and its answer lost.
                    other = remove_token(self._store, self._prefix, other)
                return other
            except (AccessDenied, BucketNotFound):
                # That is an answer, and asking again would not change it.
                raise
            except StoreError as error:
                if not patient:
                    raise
                if not waiting:
                    log.warning("%s: all data is stored, waiting to remove the mount token: %s", self._url, error)
                waiting = True
                time.sleep(_RETRY)

    def stop(self) -> None:
        """Renew it no longer, and leave it where it is. What is written from now on must end before the lease does."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        if self.lease.lost is None:
            self._store.fence.take_down()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────

    def _may_write(self) -> float:
        try:
            seconds = self.lease.sign_for(self._clock())
        except StoreError:
            # As after the computer has slept: with the store there it takes no longer than a request.
            with self._attempted:
                self._wake.set()
                self._attempted.wait(self._token.lease / 3)
            seconds = self.lease.sign_for(self._clock())
        now = self._clock()
        if self._directory is not None and now >= self._noted + _NOTE:
            # It may be that disk that has failed.
            with contextlib.suppress(JournalError):
                self._directory.note_busy()
            self._noted = now
        return seconds

    def _put(self, value: int | None) -> None:
        try:
            self.lease.sign_for(self._clock())
        except StoreError:
            # It may be another's by now, and not every service heeds conditions.
            self._read_back()
        for _ in range(2):
            sent_at, former = self._clock(), self._token
            try:
                self._token = claim_token(
                    self._store,
                    self._prefix,
                    self._url,
                    value=former.value if value is None else value,
                    replace=former,
                    random_source=self._random,
                    journal=former.journal,
                    lease=former.lease,
                    began=former.time,
                )
            except VolumeInUse:
                # Perhaps it was put by us, and its answer lost.
                self._read_back()
            else:
                self.lease.renewed(sent_at)
                return
        raise StoreError(f"the mount token of {self._url} is not what was read of it a moment ago", hint="Try again.")

    def _read_back(self) -> None:
        """Take the token as it is in the bucket; VolumeInUse if it is another's."""
        found = read_token(self._store, self._prefix)
        if found is None or found.value not in self._values:
            raise self._not_ours(found)
        self._token = found

    def _not_ours(self, found: MountToken | None) -> VolumeInUse:
        if found is not None:
            return in_use(self._url, found)
        return VolumeInUse(
            f"the mount token of {self._url} is gone: somebody has unlocked it, and may have mounted it since",
            hint="Unmount it here, and mount it again.",
        )

    def _run(self) -> None:
        complained = False
        while True:
            self._wake.wait(self.lease.due_in(self._clock()))
            self._wake.clear()
            if self._stopping:
                return
            try:
                self.renew()
                if complained:
                    log.warning("the mount token of %s is renewed again", self._url)
                complained = False
            except VolumeInUse as error:
                self._lose(error)
                return
            except S3backerError as error:
                self.lease.failed(self._clock())
                if not complained:
                    log.warning("the mount token of %s cannot be renewed: %s", self._url, error)
                complained = True
            except Exception:
                log.exception("the lease's thread met a defect and goes on")
                self.lease.failed(self._clock())
            finally:
                with self._attempted:
                    self._attempted.notify_all()

    def _lose(self, error: VolumeInUse) -> None:
        with self._telling:
            if self.lease.lost is None:
                self.lease.lose(error)
                self.on_lost(error)


def take(
    store: ObjectStore,
    prefix: str,
    url: str,
    found: MountToken | None,
    *,
    force: bool,
    lease: float = TERM,
    journal: str = "",
    directory: JournalDirectory | None = None,
    looks: Looks | None = None,
) -> Holder:
    """Put a mount token where there is ``found``, or none, and return it when its former holder cannot write any more.

    A mount that renewed its token and has no journal has died when it does not renew it any more. ``force``: also where
    that cannot be known, or flushed data is in a journal elsewhere. ``looks`` is called while it waits. Raises
    VolumeInUse. When ``looks`` raises, the token stays: whoever comes next has to wait as well.
    """
    ended = False
    if found is not None and not force:
        if not found.lease or found.journal:
            raise in_use(url, found)
        found = watch_token(store, prefix, url, found, looks)
        ended = True
    sent_at = boot_time()
    token = write_token(
        store,
        prefix,
        url,
        replace=found,
        random_source=random.SystemRandom(),
        journal=journal,
        lease=lease,
        on_value=directory.note_token if directory else None,
    )
    holder = Holder(store, prefix, url, token, sent_at, directory=directory)
    if found is not None and found.lease:
        try:
            if ended:
                log.warning("%s was mounted %s, by a mount that has died; taking it over", url, found.describe())
            if directory is not None:
                directory.note_busy()
            wait_until_quiet(store, url, quiet_in(store, found) + (0.0 if ended else found.lease), looks)
        except BaseException:
            holder.stop()
            raise
    return holder


def quiet_in(store: ObjectStore, token: MountToken) -> float:
    """Return for how many seconds after the end of its lease requests of a token's mount may still take effect."""
    return max(store.arriving, token.arriving)


def wait_until_quiet(store: ObjectStore, url: str, seconds: float, looks: Looks | None = None) -> None:
    """Wait until requests of a mount that has ended cannot take effect any more."""
    if seconds > 0:
        log.warning("%s waits %.0f s for requests of its former mount", url, seconds)
    until = time.monotonic() + seconds
    count_down(lambda: until - time.monotonic(), looks)
