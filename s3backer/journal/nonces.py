"""Which mount tokens were put by who has a journal's directory: their nonces, each noted before its token is put.

    file ``nonces``     32 places of 64 bytes: the nonce's 32 hex digits, a space, its number in order, a line's end; or
                        zeros. Written in place, so that it needs no room, and a place is on the disk as a whole or as
                        it was

A copy of the directory, or of the whole machine while it runs, has all that the mount had, and not what it notes later.
So where a token of the same mount has a nonce that is not among these, the mount went on elsewhere: what stands here is
older. It cannot be told apart before the next token is put, which is a third of the lease at most.
"""

from __future__ import annotations

import contextlib
import os
import re

from s3backer.journal.system import SAFE, System, read_beginning

_NAME = "nonces"
_PLACES, _PLACE = 32, 64
_NONCE = re.compile(rb"([0-9a-f]{32}) ([0-9]{20}) *\n")


def is_noted(path: str, nonce: str) -> bool:
    """Return whether a nonce stands in a journal's directory, without locking it; False if that cannot be read."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return nonce in (Nonces(System(), directory).noted() or ())
    except OSError:
        return False
    finally:
        os.close(directory)


class Nonces:
    """Those that are noted in one directory. Raises OSError."""

    def __init__(self, system: System, directory: int) -> None:
        self._system, self._directory = system, directory
        #: The number of the next one, and each with its own; None: not read yet.
        self._next = 0
        self._known: dict[int, str] | None = None

    def noted(self) -> frozenset[str] | None:
        """Return those that were noted last, None where none ever were."""
        if self._known is None:
            try:
                text = read_beginning(_NAME, self._directory, _PLACES * _PLACE)
            except FileNotFoundError:
                return None
            places = (_NONCE.fullmatch(text, start, start + _PLACE) for start in range(0, len(text), _PLACE))
            self._known = {int(place[2]): place[1].decode() for place in places if place}
            self._next = max(self._known, default=-1) + 1
        return frozenset(self._known.values()) or None

    def note(self, nonce: str) -> None:
        """Note one, in place of the oldest."""
        if not self.noted():
            self._make()
        fd = os.open(_NAME, os.O_WRONLY | SAFE, dir_fd=self._directory)
        try:
            place = f"{nonce} {self._next:020d}".ljust(_PLACE - 1) + "\n"
            self._system.write(fd, place.encode(), self._next % _PLACES * _PLACE)
            self._system.sync(fd)
        finally:
            os.close(fd)
        assert self._known is not None
        self._known.pop(self._next - _PLACES, None)
        self._known[self._next] = nonce
        self._next += 1

    def forget(self) -> None:
        """Remove them, if there are any."""
        self._known = None
        with contextlib.suppress(FileNotFoundError):
            self._system.remove(_NAME, self._directory)

    def _make(self) -> None:
        """Make the file as it is without any."""
        self.forget()
        fd = self._system.create(_NAME, self._directory)
        try:
            self._system.write(fd, bytes(_PLACES * _PLACE), 0)
            self._system.sync(fd)
        finally:
            os.close(fd)
        self._system.sync(self._directory)
        self._known, self._next = {}, 0
