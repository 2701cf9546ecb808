"""A mounted volume's journal at work: who makes its files ready, who syncs it, and what happens once it has failed.

    fsync ──► begin ──► s3backer-sync ──► fdatasync ──► done            one fdatasync for all who asked before it began
                              │ failed
                              ▼
                        the token says so ──► flush into the bucket ──► the journal is retired ──► done

    s3backer-journal          prepares files, misses those removed; syncs now and then, so that they can be given up
    s3backer-admit            lets the token say that the journal does not have everything

Nothing that the journal does not have, as it has failed or had no room for a write once, is stored before that is
admitted: who finds this process dead must not believe that it has all. Nobody who writes or flushes into a journal that
goes on waits for that request, which takes as long as an outage.

A journal that has failed takes no more writes. From then on what it holds may be older than what is in the bucket, so
no flush succeeds before everything is in the bucket and nobody can replay it any more: its files are removed, or, where
that fails too, a note in the bucket says that all of it is there (layouts/stored_note.py), and the mount token says of
no journal any more. Nobody has to flush for that: s3backer-journal does, until it has succeeded. The same where
somebody has removed the directory: until its disk has heard of that, a loss of power could bring the files back. An end
at which its files cannot be removed puts the note as well, before the token goes. With its files still there:

it ends, or a request fails         a flush   the bucket has   the next mount with that journal
before all is stored                fails     token            goes on with it
while the note is put               fails     token, or both   goes on with it, or removes it
after that, before the token        fails     both             removes it
when the token says of no journal   returns   both             removes it
at an end, when the token is gone   returned  note             removes it
an end where the note is refused    failed    token            removes it
and the token cannot be changed     failed    token            goes on with it; the end says so

It removes it also where others have had the volume since, and where what is in the files is damaged; not while their
disk does not let it. Where it goes on, what they hold is put over what was stored since and not flushed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from s3backer.cache_calls import Done, answer
from s3backer.errors import DEFECT, AccessDenied, BucketNotFound, JournalError, JournalGone, S3backerError, StoreError
from s3backer.failpoints import reach
from s3backer.journal.service import WriteJournal
from s3backer.layouts.stored_note import StoredNote

log = logging.getLogger(__name__)

#: Seconds between two looks for something to prepare, and after which all that was written is synced.
_LOOK, _SYNC = 0.2, 1.0
#: Seconds after an attempt to prepare a file that failed.
_RETRY = 5.0
_LEFT = (
    "All that was in the journal is in the bucket, and a note there says so: the next mount with that directory "
    "removes it. As long as its disk does not let it, mount with another --journal-directory"
)


class Keeper:
    """Runs the journal of one mount, which it closes.

    ``in_bucket`` begins a flush into the bucket. ``on_room`` is called when a file has become ready, or a disk that had
    no room is to be tried again; ``admit`` lets everybody know that the journal has failed, and what it does not have
    be stored; ``note`` says where others find it that all of the journal is stored, and ``disown`` lets the token say
    of no journal. All raise S3backerError where they cannot.
    """

    def __init__(
        self,
        journal: WriteJournal,
        *,
        in_bucket: Callable[[Done], object],
        on_room: Callable[[], None],
        admit: Callable[[], None],
        note: StoredNote,
        disown: Callable[[], None],
    ) -> None:
        self.journal = journal
        self._in_bucket = in_bucket
        self._on_room = on_room
        self._admit = admit
        self._note, self._disown = note, disown
        #: Whether the note may be there.
        self._noted = False
        #: Why its files are still there, although it is retired or has ended, and what to do.
        self.left: str | None = None
        #: Held while files are made ready or removed.
        self._files = threading.Lock()
        #: Why the journal is not used any more; None while it works.
        self.failure: JournalError | None = None
        self._retired = self._lost = False
        self._waiting: deque[tuple[Done, Callable[[Done], object]]] = deque()
        self._stored: deque[Done] = deque()
        self._changed = threading.Condition(threading.Lock())
        #: Told to end: who prepares files, then who syncs, as the former may ask the latter for something.
        self._ending = self._over = False
        #: Whether others have to be told that the journal does not have everything, and whether they are.
        self._lacking = self._told = False
        self._preparing = threading.Thread(target=self._prepare, name="s3backer-journal", daemon=True)
        self._syncing = threading.Thread(target=self._serve, name="s3backer-sync", daemon=True)
        self._admitting = threading.Thread(target=self._tell, name="s3backer-admit", daemon=True)
        self._preparing.start()
        self._syncing.start()
        self._admitting.start()

    def begin(self, done: Done, in_bucket: Callable[[Done], object] | None = None) -> None:
        """Flush: ``done`` is called when everything acknowledged so far survives.

        ``in_bucket``: the caller's own way to begin a flush into the bucket, where the journal has failed.
        """
        in_bucket = in_bucket or self._in_bucket
        if self.failure is None:
            with self._changed:
                self._waiting.append((done, in_bucket))
                self._changed.notify_all()
        else:
            self._go_to_bucket(done, in_bucket)

    def lose(self, error: JournalError) -> None:
        """Hear that the volume is somebody else's: the journal is kept as it is, and nobody waits for it."""
        if self.failure is None:
            self.failure = error
        with self._changed:
            self._lost = True
            self._changed.notify_all()

    def end(self, *, keep: bool = False) -> None:
        """End the threads and remove the journal: everything is in the bucket, settled, and nobody calls any more.

        Where its files cannot be removed, that is noted in the bucket; while the store is away it waits. Raises
        StoreError where the store refuses that, VolumeInUse if the volume is another's. ``keep``: leave it where it is,
        as what it holds is nowhere else.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._preparing.join()
        self._admitting.join()
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._syncing.join()
        try:
            if not keep and (not self._retired or self.left is not None):
                self._remove_or_leave()
        finally:
            self.journal.close()

    def facts(self) -> dict[str, object]:
        """Return what ``info`` shows, ready for JSON."""
        core = self.journal.core
        return {
            "directory": self.journal.path,
            "bytes": core.most_files * self.journal.file_bytes,
            "limit": self.journal.limit,
            "fill": round(core.fill, 4),
            "blocks": core.blocks,
            "left": core.left,
            "syncs": core.syncs,
            "failure": None if self.failure is None else str(self.failure),
        }

    # ── threads ──────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._stored or self._over):
                    self._changed.wait()
                waiting, self._waiting = self._waiting, deque()
                stored, self._stored = self._stored, deque()
                if not (waiting or stored):
                    return
            try:
                if waiting:
                    self._sync(waiting)
                if stored:
                    self._finish(stored)
            except Exception as defect:
                log.exception("the journal's thread met a defect and goes on")
                error = StoreError(f"flushing failed: {defect!r}", hint=DEFECT)
                for done in (*(done for done, _ in waiting), *stored):
                    answer(done, error)

    def _sync(self, waiting: deque[tuple[Done, Callable[[Done], object]]]) -> None:
        try:
            reach("before-sync")
            self.journal.core.sync()
            reach("synced")
        except JournalError as error:
            self._note_failure(error)
            for done, in_bucket in waiting:
                self._go_to_bucket(done, in_bucket)
        else:
            for done, _ in waiting:
                answer(done, None)

    def _go_to_bucket(self, done: Done, in_bucket: Callable[[Done], object]) -> None:
        def stored(error: S3backerError | None) -> None:
            if error is not None or self._retired:
                answer(done, error)
                return
            with self._changed:
                self._stored.append(done)
                self._changed.notify_all()

        try:
            in_bucket(stored)
        except Exception as defect:
            log.exception("a flush met a defect")
            answer(done, StoreError(f"flushing failed: {defect!r}", hint=DEFECT))

    def _finish(self, stored: deque[Done]) -> None:
        error: S3backerError | None = None
        try:
            if not self._retired:
                self._retire()
        except S3backerError as failure:
            error = failure
        for done in stored:
            answer(done, error)

    def _retire(self) -> None:
        """See to it that nobody replays the journal: all that it holds is in the bucket."""
        try:
            with self._files:
                self.journal.end(settled=False)
        except JournalError as error:
            self._put_note()
            self._disown()
            if not isinstance(error, JournalGone):
                self._leave(error)
        else:
            self._remove_note()
        self._retired = True

    def _remove_or_leave(self) -> None:
        """Remove the files at the end; what cannot be removed is nobody's."""
        reach("before-journal-end")
        try:
            self.journal.end(settled=True)
        except JournalGone:
            # All of it is in the bucket, and there is nothing left to be removed.
            return
        except JournalError as error:
            if self.left is None:
                try:
                    self._note_patiently()
                except StoreError:
                    # The token stays, and says it alone.
                    self._disown()
                    raise
                self._leave(error)
            return
        reach("journal-ended")
        self.left = None
        self._remove_note()

    def _put_note(self) -> None:
        self._noted = True
        self._note.put()

    def _remove_note(self) -> None:
        """Remove the note, if it may be there. One that stays says nothing wrong."""
        if self._noted:
            with contextlib.suppress(S3backerError):
                self._note.remove()

    def _note_patiently(self) -> None:
        waiting = False
        while True:
            try:
                self._put_note()
                return
            except (AccessDenied, BucketNotFound):
                raise
            except StoreError as error:
                if not waiting:
                    log.warning("all data is stored, waiting to note that of %s: %s", self.journal.path, error)
                waiting = True
                time.sleep(_RETRY)

    def _leave(self, error: JournalError) -> None:
        self.left = f"{error.message}. {_LEFT}"
        log.error("%s", self.left)

    def _note_failure(self, error: JournalError) -> None:
        if self.failure is None:
            self.failure = error
            log.error(
                "%s: writes go on without a journal, and fsync waits until they are in the bucket. %s",
                error.message,
                error.hint,
            )

    def _prepare(self) -> None:
        journal, complained, synced_at = self.journal, False, time.monotonic()
        while not self._ending and self.failure is None:
            try:
                if journal.core.behind:
                    # First: nothing is stored before, also where no file can be made ready.
                    self._ask_to_tell()
                if time.monotonic() - synced_at >= _SYNC:
                    journal.core.sync()
                    journal.check()
                    synced_at = time.monotonic()
                with contextlib.suppress(MemoryError):
                    journal.carry()
                if journal.wait(_LOOK):
                    with self._files:
                        journal.prepare()
                    reach("prepared")
                    self._on_room()
                    complained = False
                if (failure := journal.core.failure) is not None:
                    self._note_failure(failure)
            except S3backerError as error:
                if (failure := journal.core.failure) is not None and isinstance(error, JournalError):
                    self._note_failure(failure)
                    break
                if not complained:
                    log.warning("%s. %s", error.message, error.hint)
                    complained = True
                self._pause()
            except Exception:
                log.exception("the journal's thread met a defect and goes on")
                self._pause()
        self._ask_to_tell()
        with self._changed:
            self._changed.wait_for(lambda: self._told or self._ending or self._lost)
        while not (self._ending or self._retired or self._lost):
            ended = threading.Event()
            self._go_to_bucket(lambda error, ended=ended: ended.set(), self._in_bucket)  # type: ignore[misc]
            while not (ended.wait(_LOOK) or self._ending):
                pass
            if not self._retired:
                self._pause()

    def _ask_to_tell(self) -> None:
        if not self._lacking:
            with self._changed:
                self._lacking = True
                self._changed.notify_all()

    def _tell(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._lacking or self._ending)
        complained = False
        while not (self._told or self._ending or self._lost):
            try:
                self._admit()
                with self._changed:
                    self._told = True
                    self._changed.notify_all()
                return
            except S3backerError as error:
                if not complained:
                    log.warning(
                        "nothing is stored before others can be told that the journal does not have everything: %s",
                        error,
                    )
                complained = True
            except Exception:
                log.exception("the journal's thread met a defect and goes on")
            self._pause()

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ending, _RETRY)
