"""A gate that counts who is inside, so that somebody can wait for a moment without anybody, or for the last one."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator


class Gate:
    """Counts the calls inside, so that somebody can wait for a moment without any, or for the last of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._waited_for = False
        self._shut = False
        self._ended = False

    def __enter__(self) -> None:
        with self._changed:
            while self._shut:
                self._changed.wait()
            if self._ended:
                raise OSError(errno.EBADF, "the volume is closed")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        self.leave()

    def try_enter(self) -> bool:
        """Enter where nobody has to be waited for; return whether that was so."""
        with self._changed:
            if self._shut:
                return False
            if self._ended:
                raise OSError(errno.EBADF, "the volume is closed")
            self._inside += 1
            return True

    def leave(self) -> None:
        """Be outside again; any thread may say so."""
        with self._changed:
            self._inside -= 1
            if self._waited_for:
                self._changed.notify_all()

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """Keep new calls waiting; the body runs when those that were inside have ended."""
        with self._changed:
            self._shut = self._waited_for = True
            try:
                while self._inside:
                    self._changed.wait()
                yield
            finally:
                self._shut = self._waited_for = False
                self._changed.notify_all()

    def end(self, seconds: float) -> bool:
        """Let nobody in any more; return whether everybody is out, having waited so long for it."""
        with self._changed:
            self._ended = self._waited_for = True
            return self._changed.wait_for(lambda: not self._inside, seconds)
