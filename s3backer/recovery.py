"""What a mount that died has left in its journal: taken over by the next mount, or brought into the bucket.

    journal ─► locked ─► read ─► is it the newest? ─► token ours ┬► adopted: the next mount goes on with it
                                        │                        │
                                        │                        └► replayed: stored ─► journal away ─► token away
                                        └── no: an error that says why; the journal is kept

A mount with a journal adopts: it reads from the journal what is not in the bucket, and stores that meanwhile.
One without, and ``recover``, replays. A crash anywhere in between leaves the journal and a token that is its own: the
next attempt begins anew, and what was written twice is the same.

Only where the token in the bucket has the value that the journal's mount gave it has nobody else had the volume since.
Otherwise a mount refuses, and so does ``recover`` unless it is forced: what the journal knows of its own blocks says
nothing of the others, and a filesystem would be mixed from two times.

Where a note in the bucket says that all of the journal is there (layouts/stored_note.py: it had failed, and its files
could not be removed) nothing of it is put there: a mount and ``recover`` remove it, whatever token there is and
whatever stands in its files, and a forced replay is refused. A crash in between leaves the journal and the note, or the
note alone. The same goes where the note is gone and the token is this journal's and says of none: it has said of one
since it was first put, until all was stored.

Who has the directory's lock, and finds this directory and this start of the host in the token, knows that its mount has
died. Else, as after a loss of power or in a copy of the directory, it is watched for a term whether that mount lives.

Requests of the process that died may still arrive. So nothing is stored until they have expired, counted from the last
write to the journal, or the last note that requests were under way, whichever is later; that is noted, too. Reading
need not wait for it where the journal is known to have all that these requests are about (``covered``, token.py): not
after a loss of power, with which writes may be lost that were stored and not synced.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from s3backer.clocks import boot_time
from s3backer.errors import (
    JournalDamaged,
    JournalError,
    ObjectNotFound,
    S3backerError,
    VolumeInUse,
)
from s3backer.failpoints import reach
from s3backer.holder import Holder, quiet_in, wait_until_quiet
from s3backer.journal.files import JournalDirectory
from s3backer.journal.identity import NeedsETags, Ours, Refuse, decide
from s3backer.journal.replay import Known, Recovered
from s3backer.journal.salvage import Salvaged
from s3backer.journal.service import file_bytes_for
from s3backer.layouts.classic import ClassicLayout
from s3backer.layouts.token import (
    MountToken,
    in_use,
    new_token,
    read_token,
    remove_ours,
    settle,
    watch_token,
    write_token,
)
from s3backer.left_journal import LeftJournal
from s3backer.opening import VolumeOptions, find_layout
from s3backer.replaying import Progress, Replayer
from s3backer.stores.base import ObjectStore
from s3backer.units import blocks_text, exact_size, format_size

log = logging.getLogger(__name__)

#: Files of the next journal that have to fit on the disk, so that it goes on with those of the last one, and how many
#: times as large as it was to be the journal may become by that.
_FILES, _MOST = 2, 2
#: Seconds by which the last note may be older than the last request.
_NOTE_AGE = 2.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was recovered. ``blocks`` were not in the bucket; ``began``: when that mount did, seconds since 1970.

    Without blocks ``began`` means nothing. ``beyond``: bytes that lay beyond the volume's end, which are gone.
    """

    blocks: int
    began: float
    beyond: int

    def __str__(self) -> str:
        if not self.blocks:
            return "there was nothing to recover"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.began))
        gone = f"; {format_size(self.beyond)} lay beyond its end" if self.beyond else ""
        return f"{self.blocks} blocks of the mount that began at {when} were recovered{gone}"


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a mount takes over: the journal as it was ``found``, and the token.

    Nothing may be stored before ``quiet_at`` (of time.monotonic).
    """

    found: Recovered
    holder: Holder
    quiet_at: float


def expires_in(
    store: ObjectStore, directory: JournalDirectory, files: Iterable[int], token: MountToken | None
) -> float:
    """Return for how many seconds requests of the process that had the directory may still take effect.

    ``files``: the numbers of those with records; ``token``: that process's, if it is there.
    """
    lasting, changed = store.lasting, directory.changed_at(files)
    if token is not None and token.lease:
        # It may have been more patient, or have waited itself for a mount that it had taken the volume from.
        lasting = max(lasting + max(0.0, token.arriving - store.arriving), token.owed)
    if changed is None or not lasting:
        return lasting
    # Where the power failed the disk may have an older time; it went on until this computer started at the latest.
    age = min(time.time() - changed - _NOTE_AGE, boot_time())
    # A clock that was set says nothing.
    return max(0.0, lasting - age if age >= -_NOTE_AGE else lasting) if changed else 0.0


class Recoverer:
    """One journal and the volume that it belongs to. The directory stays its owner's."""

    def __init__(self, store: ObjectStore, prefix: str, options: VolumeOptions, directory: JournalDirectory) -> None:
        self._store, self._prefix, self._directory = store, prefix, directory
        self._journal_bytes = options.journal
        # Nothing of what is replayed is journalled, cached or listed.
        self._options = replace(
            options, read_only=False, list_blocks=False, disk_cache=None, journal=0, max_dirty=0, write_delay=0.0
        )
        #: What is in it, and whether all of that is in the bucket.
        self.left = LeftJournal(store, prefix, directory)
        self._url = self.left.url

    def replay(self, progress: Progress = lambda done, total: None, *, force: bool = False) -> Recovery:
        """Bring what is not in the bucket there, then remove the journal and the token.

        ``force``: also where somebody else may have written to the volume since, but not what the bucket has already.
        """
        if self.left.stored:
            if force:
                raise self._nothing_newer()
            return self._remove_stored(progress)
        token = None if self.left.empty else self._find_token(progress, force=force)
        if not self.left.found.pending:
            self._expire_and_end(token, progress, forget=not self.left.empty)
            return Recovery(0, 0.0, 0)
        return self._replay(token, self._layout(token, force=force), progress)

    def adopt(self, progress: Progress = lambda done, total: None) -> Inheritance | Recovery:
        """Take the volume over, with the journal as it is; where that cannot be, replay what there is of it.

        It cannot be where the disk has no room for more files, or there are too many of them, because it was killed
        again and again: those that there are have to go first.
        """
        if self.left.stored:
            return self._remove_stored(progress)
        found = self.left.found
        token = None if self.left.empty else self._find_token(progress)
        ours = token is not None and isinstance(self._decide(token), Ours)
        if not found.files or not (found.pending or ours):
            self._expire_and_end(token, progress, forget=not self.left.empty)
            return Recovery(0, 0.0, 0)
        layout = self._layout(token, force=False)
        size = file_bytes_for(layout.block_size, self._journal_bytes)
        if self._directory.room() < _FILES * size or len(found.files) > _MOST * self._journal_bytes // size:
            return self._replay(token, layout, progress)
        # Of what was done to block 0 for a change of the size the journal has only that.
        covered = token is not None and token.covered and self._died_here(token)
        covered = covered and (0 not in found.known or found.known[0].intent is None)
        quiet = self._quiet_in(token)
        quiet_at = time.monotonic() + quiet
        holder = self._hold(token, quiet, covered=covered)
        try:
            reach("adopting")
            if not covered:
                self._wait_until(quiet_at, progress)
                holder.settled()
        except BaseException:
            holder.stop()
            raise
        return Inheritance(found, holder, quiet_at)

    def _remove_stored(self, progress: Progress) -> Recovery:
        """Remove a journal that could not be removed when all of it was in the bucket."""
        log.warning(
            "%s: all that the journal in %s holds is in the bucket, as %s says; it is removed now",
            self._url,
            self._directory.path,
            self.left.witness,
        )
        self._expire_and_end(self._find_token(progress), progress)
        return Recovery(0, 0.0, 0)

    def _nothing_newer(self) -> JournalError:
        return JournalError(
            f"all that the journal in {self._directory.path} holds is in the bucket of {self._url}, or something "
            f"newer, as {self.left.witness} says: nothing is replayed",
            hint=f"Give it up: {self.left.way('--discard')}",
        )

    def _layout(self, token: MountToken | None, *, force: bool) -> ClassicLayout:
        """Return the volume that the journal's writes belong to; raise why they may not be written there."""
        verdict = self._decide(token)
        if token is not None and token.copy is not None:
            raise in_use(self._url, token)
        if not isinstance(verdict, Ours):
            if not force:
                raise self._refusal(verdict, token)
            log.warning(
                "%s: %s. By force all %d blocks are put over what is there now, also where that is newer",
                self._url,
                self._doubts(verdict, token),
                len(self.left.found.pending),
            )
        layout, metadata = find_layout(self._store, self._prefix, self._options)
        self._check_geometry(layout)
        beyond = sum(block >= layout.block_count for block in self.left.found.pending)
        said = metadata is not None and metadata.size == layout.size
        if beyond and not (said and isinstance(verdict, Ours)):
            raise JournalError(
                f"what the journal in {self._directory.path} holds of {blocks_text(beyond)} lies beyond the end of "
                f"{self._url}, if its size is {exact_size(layout.size)}",
                hint=("Make it as large as it was (s3backer resize)" if said else "Give the size that it had")
                + f". This writes them to a file: {self.left.way('--to', 'FILE')}",
            )
        return layout

    def _replay(self, token: MountToken | None, layout: ClassicLayout, progress: Progress) -> Recovery:
        # As of now: what is noted next is that this replay has begun.
        quiet = self._quiet_in(token)
        until = time.monotonic() + quiet
        unasked = isinstance(self._decide(token), Ours)
        # By force it is a token of its own value, of which the directory says nothing before the first write: whatever
        # ends this before, also a lost answer or a kill, the next mount does not go on with it unasked.
        holder = self._hold(token, quiet, covered=False, own=not unasked)
        replayer = Replayer(self.left.found, progress, begins=lambda: self._note_begun(holder))
        try:
            reach("replay-begins")
            layout.confirm = holder.confirm
            self._wait_until(until, progress)
            holder.settled()
            beyond = replayer.store(self._store, layout, self._options)
            settle(self._store, self._url)
            reach("replayed")
        except BaseException:
            if not (unasked or replayer.began):
                # Nothing of it is there yet.
                with contextlib.suppress(S3backerError):
                    self._give_back(holder, token)
            raise
        finally:
            holder.stop()
        self._end(holder.token, holder)
        return Recovery(len(self.left.found.pending), self.left.found.files[0].header.created, beyond)

    def _give_back(self, holder: Holder, former: MountToken | None) -> None:
        """Leave the volume as it was found: without a token, or with that of a mount that has died."""
        if former is None:
            holder.give_back(patient=False)
        else:
            holder.put_back(former)

    def _find_token(self, progress: Progress, *, force: bool = False) -> MountToken | None:
        """Return the token, if there is one, when its mount is dead, or not known to be one of this directory's.

        Raises VolumeInUse if it is one of this directory's and lives, as where that is a copy of another host's; with
        ``force`` also if it is another's and is not known to be dead.
        """
        token = read_token(self._store, self._prefix)
        if token is None or self._died_here(token):
            return token
        if not self._is_mine(token):
            if not force:
                return token
            if not token.lease:
                raise in_use(self._url, token)
        elif not token.lease:
            return token
        return watch_token(self._store, self._prefix, self._url, token, lambda left: progress(0, 0))

    def _note_begun(self, holder: Holder) -> None:
        """Note that a forced replay has begun: the next mount goes on. Without the note it has to be forced again."""
        with contextlib.suppress(JournalError):
            self._directory.note_token(holder.token.value, self.left.found.header.session)

    def _hold(self, token: MountToken | None, quiet: float, *, covered: bool, own: bool = False) -> Holder:
        """Carry on with the mount that wrote the journal; ``quiet``: the seconds for which nothing may be written.

        ``own``: with a token of another value than that mount's.
        """
        store, source = self._store, random.SystemRandom()
        # Who goes on with a forced replay keeps its value: that of the journal others may have, too, in a copy.
        value = token.value if token is not None and self._begun(token) else self.left.found.header.token
        mine = new_token(
            source,
            value=0 if own else value,
            journal=self._directory.place,
            lease=self._options.lease,
            arriving=store.arriving,
            owed=quiet,
            covered=covered,
            home=self._directory.home,
        )
        try:
            if token is not None and token.home and self._is_mine(token):
                # It stays ours, however often it could not be replaced; a version that noted none may have put it.
                self._directory.note_nonce(token.nonce)
            self._directory.note_nonce(mine.nonce)
        except JournalError:
            mine = replace(mine, home="")
        if mine.owed:
            # Whoever comes next, should this process die, counts from here.
            with contextlib.suppress(JournalError):
                self._directory.note_busy()
        while True:
            sent_at = store.fence.clock()
            try:
                mine = write_token(store, self._prefix, self._url, mine, former=token)
                break
            except VolumeInUse:
                # Perhaps the last renewal of the process that died, which has arrived meanwhile.
                former, token = token, read_token(store, self._prefix)
                if token is None or not self._died_here(token) or (former and token.is_put_of(former)):
                    raise
        return Holder(store, self._prefix, self._url, mine, sent_at, directory=self._directory)

    def discard(self, progress: Progress = lambda done, total: None) -> int | None:
        """Give the journal up, and the token if it is its own; return how many blocks were not in the bucket.

        None where that cannot be seen, because it is damaged. The token of a forced replay that wrote nothing stays: it
        stands in place of another's, which may have said where flushed data is. Raises VolumeInUse where the mount is
        alive, and JournalError where it is another volume's or a newer version's, or cannot be opened.
        """
        blocks = None
        with contextlib.suppress(JournalDamaged):
            blocks = 0 if self.left.stored else len(self.left.found.pending)
        token = self._find_token(progress)
        if token is not None and self.left.is_of_replay(token):
            # Before: by the note alone, without a journal, the next mount here would remove the token.
            self._directory.forget_token(nonces=False)
            self._end(None, forget=False)
        else:
            self._expire_and_end(token, progress)
        return blocks

    def save(self, path: str, progress: Progress = lambda done, total: None) -> tuple[Recovered, JournalDamaged | None]:
        """Write what is not in the bucket to a new file, each byte at its place on the volume; nothing else changes.

        Returns what was written. Of a journal that is damaged that is what is right of it, and what is wrong with it is
        returned, too. Raises JournalError where there is nothing of a journal.
        """
        found, damage = self.left.right_of_it()
        if not (found.files or found.unused):
            if damage is not None:
                raise JournalDamaged(
                    f"{damage.message}. Nothing of it can be read: nothing was written to {path}",
                    hint="Keep the directory and copy it elsewhere, and see whether its disk gives more of it "
                    f"(ddrescue). This gives it up: {self.left.way('--discard')}",
                )
            raise JournalError(
                f"the journal of {self._url} in {self._directory.path} has no files: nothing was written to {path}",
                hint="A mount without a journal has left a note there, no data.",
            )
        key = None
        if found.files and found.header.encrypted:
            key = find_layout(self._store, self._prefix, self._options)[0].codec.secret
        Replayer(found, progress).save(path, key)
        if damage is not None and isinstance(found, Salvaged):
            damage = JournalDamaged(
                f"{damage.message}. What is right of the journal is in {path}; {'; '.join(found.losses)}",
                hint="The journal is kept. Copy it elsewhere, and look at what is in that file. After that this gives "
                f"it up: {self.left.way('--discard')}",
            )
        return found, damage

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────

    def _expire_and_end(self, token: MountToken | None, progress: Progress, *, forget: bool = True) -> None:
        """End it where nothing has to be replayed; whoever mounts next reads what the last requests have made.

        ``forget``: not where there is no journal: what is noted is of a mount that was killed while it took the volume
        by force.
        """
        if token is not None and self._is_mine(token):
            self._wait_until(time.monotonic() + self._quiet_in(token), progress)
        self._end(token, forget=forget)

    def _is_mine(self, token: MountToken) -> bool:
        """Whether a token is that of a mount that had this directory, or a copy of it."""
        if self._is_older(token):
            return False
        return self._has_value(token) or self._died_here(token)

    def _has_value(self, token: MountToken) -> bool:
        """Whether a token has the value that a mount of this journal gave its own."""
        return token.value == self._directory.token or token.value in self._session_values

    @cached_property
    def _session_values(self) -> frozenset[int]:
        """The values of the tokens of the journal's mounts. Looked for once: one that is damaged is read each time."""
        with contextlib.suppress(JournalError):
            return frozenset(session.token for session in self.left.found.sessions)
        return frozenset()

    def _died_here(self, token: MountToken) -> bool:
        """Whether the token's mount is known to be dead: it had this directory, which is locked now."""
        return self._directory.is_home_of(token.home, token.nonce)

    def _is_older(self, token: MountToken | None) -> bool:
        """Whether the token's mount went on after this directory was copied: what stands in it is older."""
        return token is not None and self._has_value(token) and self._directory.is_older(token.home, token.nonce)

    def _decide(self, token: MountToken | None) -> Ours | NeedsETags | Refuse:
        if token is None or self._is_older(token):
            return decide(None, self.left.found)
        # That of a forced replay that had begun is as good as the journal's own.
        return decide(self.left.found.header.token if self._begun(token) else token.value, self.left.found)

    def _begun(self, token: MountToken) -> bool:
        """Whether a token is that of a forced replay of this journal that had begun."""
        found = self.left.found
        return bool(found.files) and self._directory.has_begun(token.value, found.header.session)

    def _quiet_in(self, token: MountToken | None) -> float:
        """Return for how many seconds nothing may be written. ``token``: see ``_find_token``; it is dead, or taken."""
        files: list[int] = []
        with contextlib.suppress(JournalError):
            files = [file.number for file in self.left.found.files]
        seconds = expires_in(self._store, self._directory, files, token)
        if token is None or self._died_here(token):
            return seconds
        # Its directory says nothing of it, or no more than it did when it was copied.
        return max(seconds, quiet_in(self._store, token, ended=self._is_mine(token)))

    def _end(self, token: MountToken | None, holder: Holder | None = None, *, forget: bool = True) -> None:
        """Remove the journal, and then the token if it is this host's, or held; and ``forget`` what is noted of it."""
        mine = token if token is not None and (holder is not None or self._is_mine(token)) else None
        if mine is not None:
            # Whoever finds no files any more, and the token, removes that.
            self._directory.note_token(mine.value)
        self._directory.remove_all(settled=True)
        reach("replay-removed")
        if mine is not None:
            # The answer of what comes now may be lost.
            self._directory.note_busy()
            other = holder.give_back(patient=False) if holder else mine
            if other is not None and (holder is None or self._died_here(other)):
                # Also the last renewal of the process that died, if that has arrived meanwhile.
                other = remove_ours(self._store, self._prefix, self._url, other, self._died_here)
            if other is not None:
                log.error("%s was mounted %s while its journal was replayed", self._url, other.describe())
        reach("replay-unlocked")
        self.left.remove_notes()
        if forget:
            self._directory.forget_token()

    def _refusal(self, verdict: NeedsETags | Refuse, token: MountToken | None) -> JournalError | VolumeInUse:
        """Return why it is not replayed where somebody else may have had the volume."""
        to_file = self.left.way("--to", "FILE")
        ways = (
            f"Write its blocks to a file and compare: {to_file}. With --force in place of --to FILE it is replayed: "
            "where the volume was used since, that puts older data over newer. With --discard it is given up. It is "
            "kept until then."
        )
        if token is not None and self._is_older(token):
            return JournalError(self._doubts(verdict, token), hint=f"Use that one, if it is there. {ways}")
        if token is not None and self._died_here(token) and self.left.is_of_replay(token):
            return JournalError(self.left.replay_ended(), hint=ways)
        if isinstance(verdict, NeedsETags) and token is not None:
            return VolumeInUse(
                f"{self._url} is mounted {token.describe()}, and the journal in {self._directory.path} has "
                f"{len(self.left.found.pending)} blocks of an earlier mount (token {self.left.found.header.token:08x})",
                hint=f"Unmount it there first. {ways}",
            )
        return JournalError(self._doubts(verdict, token), hint=ways)

    def _doubts(self, verdict: NeedsETags | Refuse, token: MountToken | None) -> str:
        """Return what speaks against replaying it."""
        if token is not None and self._is_older(token):
            return (
                f"the journal in {self._directory.path} is older than what {self._url} has: it is a copy, whose mount "
                f"has gone on elsewhere since, {token.describe()}"
            )
        if isinstance(verdict, Refuse):
            return verdict.reason
        layout, _ = find_layout(self._store, self._prefix, self._options)
        changed = [block for block, known in verdict.blocks.items() if not self._is_as_known(layout, block, known)]
        what = (
            f"{len(changed)} of the {len(verdict.blocks)} blocks in it were changed since, first block {changed[0]}"
            if changed
            else f"its {len(verdict.blocks)} blocks are as it knew them, but others may have been changed"
        )
        mount = f"the mount with token {self.left.found.header.token:08x}"
        gone = f"which the bucket of {self._url} does not have any more"
        return f"the journal in {self._directory.path} belongs to {mount}, {gone}: {what}"

    def _is_as_known(self, layout: ClassicLayout, block: int, known: Known) -> bool:
        try:
            etag = self._store.head(layout.key(block)).etag
        except ObjectNotFound:
            etag = ""
        return etag == known.etag

    def _check_geometry(self, layout: ClassicLayout) -> None:
        block_size = self.left.found.header.block_size
        if block_size != layout.block_size:
            raise JournalError(
                f"the journal in {self._directory.path} was written with blocks of {exact_size(block_size)}, the "
                f"volume has blocks of {exact_size(layout.block_size)}",
                hint=f"Give --block-size {exact_size(block_size)}, if the volume's own metadata is lost.",
            )

    def _wait_until(self, until: float, progress: Progress) -> None:
        wait_until_quiet(self._store, self._url, until - time.monotonic(), lambda left: progress(0, 0))
