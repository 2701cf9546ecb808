"""A copy of the statistics in a file, for those who do not want to touch the mount to read them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class StatsMirror:
    """Writes ``text()`` to ``path`` every ``interval`` seconds and once at the end, while it is entered.

    A reader sees the old or the new text, never a part: it is written to PATH.new and renamed. ``path`` None does
    nothing. Whoever removes the file resets the statistics. What cannot be written is logged once; the disk goes on.
    """

    def __init__(self, path: str | None, interval: float, text: Callable[[], str], reset: Callable[[], None]) -> None:
        self._path = path
        self._interval = max(interval, 0.01)
        self._text = text
        self._reset = reset
        self._written = False
        self._over = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="s3backer-mirror", daemon=True)

    def __enter__(self) -> None:
        if self._path is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._over.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            self._write()
        self._write()

    def _write(self) -> None:
        new = f"{self._path}.new"
        try:
            if self._written and not os.path.lexists(str(self._path)):
                self._reset()
            with open(new, "w") as file:
                file.write(self._text())
            os.replace(new, str(self._path))
            self._failed, self._written = False, True
        except Exception as error:
            with contextlib.suppress(OSError):
                os.unlink(new)
            if not self._failed:
                log.warning("the statistics cannot be written to %s: %s", self._path, error)
            self._failed = True
