"""What the last write-back of a volume shows to the person who waits for it.

Guarantee
  * That closing waits for requests that may still arrive is shown for as long as it does.
  * A store that takes nothing is spoken of once, and once more when it goes on: never silence, never a flood.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import ParamSpec

from s3backer.logs import RateLimited

_P = ParamSpec("_P")

log = logging.getLogger(__name__)

#: Seconds without a stored block before closing says that it is waiting.
_STALL_SECONDS = 10.0
#: Seconds between two lines of progress where there is no terminal.
_LINE_SECONDS = 5.0


class ClosingProgress:
    """Shows how write-back at the end goes: a bar on a terminal, else a line now and then.

    Called with (blocks left, blocks at the start) several times a second. A store that takes nothing is
    mentioned once, and once more when it goes on; the line comes again when it says something new.
    """

    def __init__(self, *, terminal: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._clock = clock
        self._limited = RateLimited(log)
        self._left: int | None = None
        #: What the last line said.
        self._told: int | None = None
        self._moved = self._said = clock()
        self._bar: Callable[[int, int, str], None] | None = None
        self._stack = contextlib.ExitStack()
        self._longest = 0.0

    def __enter__(self) -> None:
        self._moved = self._said = self._clock()

    def __exit__(self, *_: object) -> None:
        # The terminal may have gone.
        with contextlib.suppress(OSError):
            self._stack.close()

    def __call__(self, left: int, total: int) -> None:
        """Show the state."""
        now = self._clock()
        if left != self._left:
            if self._left is not None:
                self._limited.changed("store", True, logging.INFO, f"storing {left} blocks that are left")
            self._left, self._moved = left, now
        elif left and now - self._moved >= _STALL_SECONDS:
            self._limited.changed(
                "store",
                False,
                logging.WARNING,
                f"waiting for the store: {left} blocks are not stored yet, and nothing is given up",
            )
        if self._terminal and total:
            self._show_bar(total - left, total, "storing blocks")
        elif left and left != self._told and now - self._said >= _LINE_SECONDS:
            self._said, self._told = now, left
            log.info("%d of %d blocks are left to store", left, total)

    def waits(self, seconds: float) -> None:
        """Show for how long it waits for requests that may still arrive; the log has a line about it already."""
        if self._terminal:
            self._longest = max(self._longest, seconds)
            done = self._longest - seconds
            self._show_bar(
                round(done), round(self._longest), f"waiting {seconds:.0f} s for requests that may still arrive"
            )

    def _show_bar(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress as Bar

            bar = self._stack.enter_context(Bar(console=Console(stderr=True)))
            task = bar.add_task(text, total=total)
            self._bar = lambda done, whole, text: bar.update(task, completed=done, total=whole, description=text)
        self._bar(done, total, text)


def harmless(progress: Callable[_P, None] | None) -> Callable[_P, None] | None:
    """Return progress that raises nothing: a terminal that has gone must not keep data from being stored."""
    if progress is None:
        return None
    broken = False

    def report(*args: _P.args, **kwargs: _P.kwargs) -> None:
        nonlocal broken
        if broken:
            return
        try:
            progress(*args, **kwargs)
        except Exception as error:
            broken = True
            log.warning("progress can no longer be shown: %s", error)

    return report
