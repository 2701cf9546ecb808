"""The signals of a process that serves a disk: some end it cleanly, the others do not end it at all."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

#: Signals that end a mount cleanly. SIGQUIT too: a core is worth less than the data in memory. SIGPWR: the power is
#: failing. SIGXCPU: the next thing that would come is SIGKILL.
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPWR, signal.SIGXCPU})
#: Signals that would kill the process and mean nothing here: no timer, terminal or rotation of logs asks for the end of
#: a disk. The real-time ones too, except the two that belong to the C library.
IGNORED_SIGNALS = frozenset(
    {
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGVTALRM,
        signal.SIGPROF,
        signal.SIGPIPE,
        signal.SIGIO,
        signal.SIGSTKFLT,
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    }
)
#: Seconds between two attempts to do what a signal asks for.
_RETRY = 1.0


class Signals:
    """Takes the stop signals in a thread of its own, so that none is lost wherever the main thread is.

    They are blocked in the thread that enters, and so in all threads started afterwards.
    """

    def __init__(self, handler: Callable[[int], None]) -> None:
        self._handler = handler
        self._over = False
        self._thread = threading.Thread(target=self._run, name="s3backer-signals", daemon=True)

    def __enter__(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._handlers = {n: signal.getsignal(n) for n in STOP_SIGNALS | IGNORED_SIGNALS}
        for number in IGNORED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for number in STOP_SIGNALS:
            # A disposition of "ignore", which nohup leaves behind, would keep sigwait from ever seeing it.
            signal.signal(number, signal.SIG_DFL)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over = True
        ident = self._thread.ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGTERM)
        self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _run(self) -> None:
        while True:
            number = signal.sigwait(STOP_SIGNALS)
            if self._over:
                return
            while not (self._handled(number) or self._over):
                time.sleep(_RETRY)

    def _handled(self, number: int) -> bool:
        try:
            self._handler(number)
        except (RuntimeError, MemoryError):
            # No thread just now. Without this one nobody would hear of any signal.
            return False
        return True
