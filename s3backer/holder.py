"""The mount token while this process holds it: taken, renewed, changed, given back; and what happens when it is lost.

    take ──► Holder ──► s3backer-lease: renews it ──► lost ──► on_lost
               └──► the store's fence: no attempt of a write without its leave

Guarantees
  * From the first moment on it is renewed, also while its taker still waits for the former holder's requests.
  * Nothing is written while the lease has not been renewed in time (s3backer/lease.py), and nothing ever again once
    the token is another's. Ours is what was put here, by its nonce: its value a copy of the directory has, too, and
    what it knows otherwise a copy of the running machine.
  * Where the conditions of PUTs are not known to be heeded, it is read before each renewal: of two that want the
    volume one finds the other's.
  * A request to remove it that may still arrive is waited for before the next one.
  * Before a write is sent, this host notes that requests are under way, if there is a directory to note it in: who
    finds this process dead knows how long to wait.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from s3backer.errors import (
    AccessDenied,
    BucketNotFound,
    JournalError,
    PreconditionFailed,
    S3backerError,
    StoreError,
    VolumeInUse,
)
from s3backer.failpoints import reach
from s3backer.journal.files import JournalDirectory
from s3backer.journal.named import if_died
from s3backer.layouts.token import (
    TOKEN_NAME,
    MountToken,
    count_down,
    in_use,
    new_token,
    put_token,
    read_token,
    remove_ours,
    settle,
    watch_token,
    write_token,
)
from s3backer.lease import TERM, Lease
from s3backer.stores.base import ObjectStore

log = logging.getLogger(__name__)

#: Pause in seconds between two attempts to give the token back, and for how long the first renewal is tried.
_RETRY, _TRY = 1.0, 10.0
#: Tokens that may be found although later ones were sent.
_SENT = 32
#: Seconds after which it is noted again that requests are under way.
_NOTE = 1.0
#: Of a term: for how long at most a note of the next token is waited for.
_NOTING = 1 / 6

#: Told the seconds that are left of a wait, which it ends by raising.
Looks = Callable[[float], None]


class Holder:
    """The mount token of one volume, held. ``sent_at``: when the request was sent that put it, on ``clock``.

    That is the store's, if none is given.

    Whoever finds it has to wait for ``token.owed`` seconds, until ``settled`` says that only our own requests count.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        url: str,
        token: MountToken,
        sent_at: float,
        *,
        directory: JournalDirectory | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._store, self._prefix, self._url = store, prefix, url
        self._directory = directory
        self._clock = clock or store.fence.clock
        self._random = random.SystemRandom()
        self._token = token
        #: The nonces of the tokens that were sent last, of which each may be what is found.
        self._sent = deque([token.nonce], maxlen=_SENT)
        #: The last one, if its answer was lost.
        self._pending: MountToken | None = None
        #: Seconds in which requests may arrive that are not ours.
        self._owed = token.owed
        #: Whether the journal has what all requests under way are about, and whether it never will again.
        self._covered, self._journal_failed = token.covered, False
        self.lease = Lease(url, token.lease, sent_at)
        #: What was there before, where it was taken by force: it may say of flushed data elsewhere. It is put back if
        #: nothing is written.
        self.former: MountToken | None = None
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
        try:
            self._find_ours()
        except VolumeInUse as error:
            self._lose(error)
            raise

    def settled(self) -> None:
        """Hear that no request of a former mount can take effect any more."""
        with self._changing:
            self._owed = 0.0
            self._covered = bool(self._token.journal) and not self._journal_failed

    def uncover(self) -> None:
        """Let the token say that requests may be under way of which the journal, which has failed, knows nothing.

        Raises StoreError, VolumeInUse.
        """
        with self._changing:
            self._journal_failed, self._covered = True, False
            self._put()

    def disown_journal(self) -> None:
        """Let the token say of no journal any more: all of it is in the bucket. Raises StoreError, VolumeInUse."""
        with self._changing:
            self._put(journal="")

    def renew(self) -> None:
        """Put the token once more, so that everybody sees that we are alive. Raises StoreError or VolumeInUse."""
        with self._changing:
            self._put()

    def give_back(self, *, patient: bool = True) -> MountToken | None:
        """Remove the token and return another's that stands there instead.

        While the store is away it waits, if ``patient``. Raises StoreError where the store refuses it.
        """
        self.stop()
        if self._directory is not None:
            # Its answer may be lost.
            with contextlib.suppress(JournalError):
                self._directory.note_busy()
        waiting = False
        while True:
            try:
                other = remove_ours(self._store, self._prefix, self._url, self._token, self._is_ours)
                if other is None:
                    self._store.fence.take_down()
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
                # The next mount's token must not meet that request.
                settle(self._store, self._url)

    def put_back(self, former: MountToken) -> None:
        """Put the token there again that was there before. Raises StoreError, and VolumeInUse if it is not ours now."""
        self.stop()
        # A request of ours that may still arrive would take it for what it was meant to replace: the ETag is the same.
        settle(self._store, self._url)
        # Read, as the answer to the last renewal may be lost, and who heeds no conditions would replace another's.
        put_token(self._store, self._prefix, former, former=self._find_ours())

    def stop(self) -> None:
        """Renew it no longer, and leave it where it is. Soon nothing can be written from here any more."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────

    def _may_write(self, wait: bool) -> float:
        try:
            seconds = self.lease.sign_for(self._clock())
        except StoreError:
            if not wait:
                raise
            # As after the computer has slept: with the store there it takes no longer than a request.
            with self._attempted:
                self._wake.set()
                self._attempted.wait(self._token.lease / 3)
            seconds = self.lease.sign_for(self._clock())
        now = self._clock()
        directory = self._directory
        if directory is not None and now >= self._noted + _NOTE:
            self._noted = now
            try:
                directory.note_busy()
            except JournalError as error:
                # What it says is too old from here on: the next token does not name it as home.
                self._leave_home(error)
        return seconds

    def _note(self, directory: JournalDirectory, nonce: str) -> None:
        """Note a nonce, and wait for that no longer than the lease can: a disk may hang. Raises JournalError."""
        answers: queue.SimpleQueue[JournalError | None] = queue.SimpleQueue()

        def note() -> None:
            try:
                directory.note_nonce(nonce)
            except JournalError as error:
                answers.put(error)
            else:
                answers.put(None)

        try:
            threading.Thread(target=note, name="s3backer-note", daemon=True).start()
        except (RuntimeError, MemoryError):
            # As many processes run as may; the lease must not end for that.
            raise JournalError(
                f"the journal's directory {directory.path} takes no note: no thread can be started for it"
            ) from None
        try:
            error = answers.get(timeout=self._token.lease * _NOTING)
        except queue.Empty:
            error = JournalError(f"the journal's directory {directory.path} takes no note: its disk hangs")
        if error is not None:
            raise error

    def _leave_home(self, error: JournalError) -> None:
        _warn_without_note(error)
        self._directory = None

    def _put(self, **changes: str) -> None:
        if self._store.conditions is not True:
            self._token = self._find_ours()
        for _ in range(2):
            token = self._token.anew(
                self._random,
                arriving=self._store.arriving,
                owed=self._owed,
                covered=self._covered,
                home=self._token.home if self._directory is not None else "",
                **changes,
            )
            if self._pending is not None and replace(token, nonce=self._pending.nonce) == self._pending:
                # The same once more: an outage of hours is one request.
                token = self._pending
            else:
                if token.home and self._directory is not None:
                    try:
                        self._note(self._directory, token.nonce)
                    except JournalError as error:
                        self._leave_home(error)
                        token = replace(token, home="")
                # Not before: one that was never sent must not take the place of what may be found.
                self._sent.append(token.nonce)
            self._pending = token
            # Not before: a disk may take its time.
            sent_at = self._clock()
            try:
                self._token = put_token(self._store, self._prefix, token, former=self._token)
            except PreconditionFailed:
                # Perhaps it was put by us, and its answer lost.
                self._token = self._find_ours()
            else:
                self._pending = None
                self.lease.renewed(sent_at)
                return
        raise StoreError(f"the mount token of {self._url} is not what was read of it a moment ago", hint="Try again.")

    def _find_ours(self) -> MountToken:
        """Return the token as it is in the bucket; VolumeInUse if it is another's."""
        found = read_token(self._store, self._prefix)
        if found is None:
            raise VolumeInUse(
                f"the mount token of {self._url} is gone: somebody has unlocked it, and may have mounted it since",
                hint="Unmount it here, and mount it again.",
            )
        if not self._is_ours(found):
            raise in_use(self._url, found)
        return found

    def _is_ours(self, found: MountToken) -> bool:
        return found.nonce in self._sent

    def _run(self) -> None:
        complained = False
        while True:
            self._wake.wait(self.lease.due_in(self._clock()))
            self._wake.clear()
            if self._stopping:
                return
            if self.lease.due_in(self._clock()) > 0:
                # Somebody is waiting for it, and the last attempt has just failed.
                continue
            try:
                self.renew()
                if complained:
                    log.warning("the mount token of %s is renewed again", self._url)
                complained = False
            except VolumeInUse as error:
                self._lose(error)
                return
            except S3backerError as error:
                self.lease.failed(self._clock(), error)
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
    check: Callable[[], None] = lambda: None,
) -> Holder:
    """Put a mount token where there is ``found``, or none, and return it when its former holder cannot write any more.

    A mount that renewed its token and has no journal has died when it does not renew it any more, if the store can
    tell. ``force``: also where that cannot be known, or flushed data is in a journal elsewhere. ``directory``: where it
    is noted; without a journal it may have no room for that. ``looks`` is called while it waits. Raises VolumeInUse.
    When ``looks`` raises, the token stays: whoever comes next has to wait as well; or the former one is put back.
    Where that one names a journal, and this process is killed while it waits, nobody goes on with its token unasked.
    ``check``, called before anybody may, raises where the volume is not to be taken after all.
    """
    ended = False
    if found is not None and not force:
        if not found.lease or found.journal or not store.fenced:
            raise in_use(url, found, died=if_died(store, prefix, url, found) if found.journal else "")
        found = watch_token(store, prefix, url, found, looks)
        ended = True
    owed = quiet_in(store, found, ended=ended) if found is not None else 0.0
    # Where there is one elsewhere it names a journal in any case while it waits: who finds it has to be told by force.
    elsewhere = "" if found is None else found.journal
    waiting = directory.place if elsewhere and directory is not None else elsewhere
    token = new_token(
        random.SystemRandom(),
        journal=journal or waiting,
        lease=lease,
        arriving=store.arriving,
        owed=owed,
        covered=bool(journal) and not owed,
    )
    if directory is not None:
        try:
            if not elsewhere:
                directory.note_token(token.value)
            if owed:
                # Whoever comes next, should this process die, counts from here.
                directory.note_busy()
            directory.note_nonce(token.nonce)
            token = replace(token, home=directory.home)
        except JournalError as error:
            if journal:
                raise
            _warn_without_note(error)
            directory = None
    sent_at = store.fence.clock()
    try:
        token = write_token(store, prefix, url, token, former=found)
    except VolumeInUse:
        if directory is not None:
            directory.forget_token()
        raise
    holder = Holder(store, prefix, url, token, sent_at, directory=directory)
    holder.former = None if ended else found
    try:
        _renew_once(holder, looks)
        if ended and found is not None:
            log.warning("%s was mounted %s, by a mount that has died; taking it over", url, found.describe())
        wait_until_quiet(store, url, owed, looks)
        reach("taken-by-force")
    except BaseException:
        if owed and not (holder.former and holder.former.journal):
            # One in place of another's stays: what is waited for now, the next one has to wait for as well. But nobody
            # else may know where flushed data is.
            holder.stop()
        else:
            give_up(holder, directory)
        raise
    try:
        check()
        if elsewhere:
            _begin(holder, directory, journal)
    except BaseException:
        give_up(holder, directory)
        raise
    holder.settled()
    return holder


def _begin(holder: Holder, directory: JournalDirectory | None, journal: str) -> None:
    """Let the token be one that the next mount here goes on with: what a former mount flushed is given up."""
    if not journal:
        holder.disown_journal()
    if directory is not None:
        try:
            directory.note_token(holder.token.value)
        except JournalError as error:
            if journal:
                raise
            _warn_without_note(error)


def _warn_without_note(error: JournalError) -> None:
    """Say what it means that this host could not note what it is about to do."""
    log.warning("%s; after a crash the next mount cannot know by itself that this one is dead", error.message)


def give_up(holder: Holder, directory: JournalDirectory | None) -> None:
    """Leave the bucket as an opening that failed found it, and forget the note; a token that stays ends by itself.

    Nothing was written: where the volume was taken by force its former mount may live, or have left a journal.
    """
    elsewhere = holder.former is not None and bool(holder.former.journal)
    with contextlib.suppress(S3backerError):
        if holder.former is None:
            holder.give_back(patient=False)
        else:
            # Nobody notes anything any more in what is forgotten.
            holder.stop()
            if elsewhere and directory is not None:
                # Before: where it cannot be put back the next mount does not go on with ours unasked.
                with contextlib.suppress(JournalError):
                    directory.forget_token(nonces=False)
            holder.put_back(holder.former)
        if directory is not None:
            # By its nonce the one that is there is known to have begun nothing, be it ours or that of a mount before.
            directory.forget_token(nonces=not elsewhere)


def _renew_once(holder: Holder, looks: Looks | None) -> None:
    """See whether a token that could be put can also be put in place of the one before."""
    until = time.monotonic() + _TRY
    while True:
        try:
            holder.renew()
            return
        except StoreError as error:
            left = until - time.monotonic()
            if isinstance(error, (AccessDenied, BucketNotFound)) or left <= 0:
                raise
            if looks:
                looks(left)
            time.sleep(min(left, _RETRY))


def quiet_in(store: ObjectStore, token: MountToken, *, ended: bool) -> float:
    """Return for how many seconds requests of a token's mount, or of the one before it, may still take effect.

    From now on, if it cannot renew it any more; ``ended``: its lease has ended.
    """
    if not token.lease:
        return 0.0
    return max(max(store.arriving, token.arriving) + (0.0 if ended else token.lease), token.owed)


def wait_until_quiet(store: ObjectStore, url: str, seconds: float, looks: Looks | None = None) -> None:
    """Wait until requests of a mount that has ended cannot take effect any more."""
    if seconds > 0:
        log.warning("%s waits %.0f s for requests of its former mount", url, seconds)
    until = time.monotonic() + seconds
    count_down(lambda: until - time.monotonic(), looks)
