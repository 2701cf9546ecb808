"""Changing a volume's size, while it is used.

What the size is stands in the bucket with block 0, which is stored anew for that. A crash at any point leaves the one
size or the other: after shrinking the tail is empty before the new size can be in the bucket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from s3backer import _fast
from s3backer.driver import Driver
from s3backer.errors import JournalError, S3backerError, UsageError
from s3backer.journal.service import WriteJournal
from s3backer.layouts.classic import ClassicLayout
from s3backer.opening import first_object
from s3backer.stores.base import ObjectStore
from s3backer.units import exact_size


class Resizer:
    """``set_end`` changes what callers may reach, while no write is under way."""

    def __init__(
        self,
        store: ObjectStore,
        layout: ClassicLayout,
        slab: _fast.Slab,
        driver: Driver,
        journal: WriteJournal | None,
        set_end: Callable[[int], None],
    ) -> None:
        self._store, self._layout, self._slab = store, layout, slab
        self._driver, self._journal = driver, journal
        self._set_end = set_end

    def resize(self, size: int, *, discard: bool) -> None:
        """Change the size in bytes, one at a time; see ``Volume.resize``."""
        old = self._layout.size
        # Where block 0 cannot be read nothing may have begun: what has is not over before it was stored.
        self._driver.read(0, self._layout.block_size)
        if size < old:
            self._clear_tail(size, old, discard=discard)

        begun = False

        def begin() -> None:
            nonlocal begun
            self._note()
            self._layout.size, begun = size, True

        try:
            self._driver.touch(0, begin)
            self._driver.flush()
        except BaseException:
            if not begun:
                if size < old:
                    self._set_end(old)
                raise
            # Whether the bucket has the new size is not known. After shrinking the new one holds, because it
            # is right for either answer: the tail is empty. After growing the old one does, for the same reason;
            # block 0 is stored again with the size that holds.
            if size > old:
                self._layout.size = old
            with contextlib.suppress(S3backerError):
                self._driver.touch(0)
            raise
        self._set_end(size)

    def _note(self) -> None:
        """Let the journal say that a PUT of block 0 begins that changes more than what was written there."""
        if self._journal is None or self._journal.core.failed:
            return
        if not (self._journal.note_resize(self._slab.sequence) or self._journal.core.failed):
            raise JournalError("the journal has no room for a note", hint="Try again when some more is stored.")

    def _clear_tail(self, size: int, old: int, *, discard: bool) -> None:
        """See to it that nothing is stored in [size, old), and that nobody writes there any more."""
        # While the store is away, writers wait inside the gate: it is seen here before it is shut.
        self._driver.flush()
        self._set_end(size)
        try:
            self._driver.flush()
            if discard:
                self._driver.zero(size, old - size)
                self._driver.flush()
            else:
                occupied = first_object(self._store, self._layout, size // self._layout.block_size)
                if occupied is not None:
                    raise UsageError(
                        f"data lies beyond the new end of {exact_size(size)} (block {occupied} and perhaps more)",
                        hint="Shrink the filesystem first, then use --discard to give up what lies beyond.",
                    )
            self._slab.drop_from(size // self._layout.block_size)
        except BaseException:
            self._set_end(old)
            raise
