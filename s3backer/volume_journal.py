"""The journal of one volume: made or taken over, put to work, and what the mount token says of it."""

from __future__ import annotations

import contextlib
import logging
import os
import time

from s3backer import _fast
from s3backer.backlog import Backlog
from s3backer.driver import Driver
from s3backer.errors import S3backerError
from s3backer.holder import Holder
from s3backer.journal.files import JournalDirectory
from s3backer.journal.keeper import Keeper
from s3backer.journal.service import Mount, WriteJournal
from s3backer.layouts.classic import ClassicLayout
from s3backer.layouts.stored_note import StoredNote
from s3backer.recovery import Inheritance
from s3backer.stores.base import ObjectStore
from s3backer.units import format_size

log = logging.getLogger(__name__)


class VolumeJournal:
    """``budget`` in bytes, ``entries`` of its map; ``inherited``: the journal to go on with."""

    def __init__(
        self,
        store: ObjectStore,
        name: str,
        identity: bytes,
        directory: JournalDirectory,
        slab: _fast.Slab,
        layout: ClassicLayout,
        holder: Holder,
        inherited: Inheritance | None,
        *,
        budget: int,
        entries: int,
    ) -> None:
        self._name, self._slab, self._layout = name, slab, layout
        self._holder, self._inherited = holder, inherited
        self._taken_over = inherited is not None
        session = os.urandom(16)
        self._note = StoredNote(store, layout.prefix, session, directory.path)
        self.journal = WriteJournal(
            directory,
            slab,
            Mount(identity, session, holder.token.value, name),
            budget=budget,
            capacity=entries,
            key=layout.codec.secret,
            recovered=None if inherited is None else inherited.found,
        )
        if (limit := self.journal.limit) <= budget - self.journal.file_bytes:
            log.warning(
                "--journal: the disk of %s has room for only %s of %s: when that is full, writers wait",
                self.journal.path,
                format_size(limit),
                format_size(budget),
            )

    def backlog(self) -> Backlog:
        """Return what is left to be stored of the mount before, if there was one, without what is beyond the end.

        To be called once.
        """
        core = self.journal.core
        self._layout.left = core
        if self._inherited is None:
            return Backlog((), core.is_left)
        found, quiet_at, self._inherited = self._inherited.found, self._inherited.quiet_at, None
        beyond = [block for block in found.pending if block >= self._layout.block_count]
        for block in beyond:
            self.journal.done(block, self._slab.sequence, "")
        waits = quiet_at - time.monotonic()
        if waits > 0:
            self._layout.doubted = found.pending
        if core.left:
            log.warning(
                "%s: %d blocks of the mount that began at %s are in its journal; they are read from there and stored%s",
                self._name,
                core.left,
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.files[0].header.created)),
                f" in {waits:.0f} s, when requests of that mount have expired" if waits > 0 else "",
            )
        if beyond:
            log.warning("%s: %d blocks of that mount lay beyond the volume's end and are gone", self._name, len(beyond))
        return Backlog(found.pending, core.is_left)

    def start(self, driver: Driver) -> Keeper:
        """Put it to work."""

        def admit() -> None:
            if self._holder.lease.lost is None:
                driver.admit(self._holder.uncover)

        return Keeper(
            self.journal,
            in_bucket=driver.begin_flush,
            on_room=driver.go_on,
            admit=admit,
            note=self._note,
            disown=self._holder.disown_journal,
        )

    def undo(self) -> None:
        """Close it; where it was not taken over nothing was written yet, and it goes."""
        self.journal.close()
        if not self._taken_over:
            with contextlib.suppress(S3backerError):
                self.journal.end(settled=True)
