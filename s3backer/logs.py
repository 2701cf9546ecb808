"""Logging: where lines go, what they look like, and what must never be in them.

    foreground   stderr                ``YYYY-MM-DD HH:MM:SS LEVEL: text``
    background   syslog or journald    whichever socket answers
                 else a rotating file  STATE/IDENT.log, 0600, five files of 1 MiB

Guarantees
  * No handler set up here writes a registered secret, an Authorization header, a signature or a password:
    every record passes ``Redacting`` first, tracebacks included.
  * No line is lost because a name in it is not UTF-8: what is not is shown escaped.
  * ``RateLimited`` turns a storm of equal events into one line and a count.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from urllib.parse import quote

from s3backer.errors import UsageError

FORMAT = "%(asctime)s %(levelname)s: %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
#: Sockets of the system's log, in the order in which they are tried; journald listens on both.
SYSLOG_SOCKETS = (Path("/dev/log"), Path("/run/systemd/journal/dev-log"))
_FILE_BYTES = 1 << 20
_OLD_FILES = 4
_HIDDEN = "[hidden]"
#: A shorter text would hide half of every message without being a secret worth the name.
_SHORTEST_SECRET = 4

_PATTERNS = (
    # A header's value reaches to the end of the line or of the quoted string.
    re.compile(r"(?i)(?P<keep>\b(?:proxy-)?authorization['\"]?\s*[:=]\s*b?['\"]?)(?P<hide>[^'\"\r\n}]+)"),
    re.compile(r"(?i)(?P<keep>\b(?:AWS4-HMAC-SHA256|Bearer|Basic)\s+)(?P<hide>[^'\"\r\n}]+)"),
    re.compile(
        r"(?i)(?P<keep>\b(?:x-amz-(?:security-token|signature|credential)|aws_?secret_?access_?key|"
        r"aws_?session_?token|secret_?(?:access_?)?key|session_?token|access_?secret|pass(?:word|phrase|wd)|"
        r"signature)['\"]?\s*[:=]\s*b?['\"]?)(?P<hide>[^\s'\"&,;}]+)"
    ),
    re.compile(r"(?P<keep>://[^/\s:@]*:)(?P<hide>[^/\s@]+)(?=@)"),
)


class Redacting(logging.Filter):
    """A handler's filter that takes secrets out of every record. Thread-safe."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._formatter = logging.Formatter()

    def register(self, secret: str | None) -> None:
        """Hide this text, as it is and percent-encoded, wherever it appears from now on."""
        if not secret or len(secret) < _SHORTEST_SECRET:
            return
        with self._lock:
            # A password file may hold any bytes.
            known = {*self._secrets, secret, quote(secret, safe="", errors="surrogateescape")}
            # The longest first: one secret may begin with another.
            self._secrets = tuple(sorted(known, key=len, reverse=True))

    def redact(self, text: str) -> str:
        """Return the text without its secrets."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        for pattern in _PATTERNS:
            text = pattern.sub(lambda match: match["keep"] + _HIDDEN, text)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place; it is always kept."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = f"{record.msg} {record.args!r}"
        record.msg, record.args = self.redact(text), None
        if record.exc_info and not record.exc_text:
            record.exc_text = self._formatter.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self.redact(record.exc_text)
        if record.stack_info:
            record.stack_info = self.redact(record.stack_info)
        return True


class RateLimited:
    """Keeps a storm of equal events from filling the log. Thread-safe.

    ``limited`` says a thing at most once per ``interval`` seconds and subject, and then how often it was left out.
    ``changed`` says a thing only when the subject's state is another than the last one said.
    """

    #: Subjects remembered; beyond it all are forgotten, which costs a repeated line and no memory.
    MAX_SUBJECTS = 1024

    def __init__(
        self, logger: logging.Logger, *, interval: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[Hashable, tuple[float, int]] = {}
        self._states: dict[Hashable, Hashable] = {}

    def limited(self, subject: Hashable, level: int, text: str) -> bool:
        """Log the text unless the subject was logged within the interval; return whether it was logged."""
        now = self._clock()
        with self._lock:
            last = self._said.get(subject)
            if last is not None and now - last[0] < self._interval:
                self._said[subject] = (last[0], last[1] + 1)
                return False
            if len(self._said) >= self.MAX_SUBJECTS:
                self._said.clear()
            self._said[subject] = (now, 0)
        left_out = last[1] if last else 0
        self._logger.log(level, "%s%s", text, f" ({left_out} more like this before)" if left_out else "")
        return True

    def changed(self, subject: Hashable, state: Hashable, level: int, text: str) -> bool:
        """Log the text if the subject's state is a new one; return whether it was logged."""
        with self._lock:
            if subject in self._states and self._states[subject] == state:
                return False
            if len(self._states) >= self.MAX_SUBJECTS:
                self._states.clear()
            self._states[subject] = state
        self._logger.log(level, "%s", text)
        return True


@contextlib.contextmanager
def warned_when_late(logger: logging.Logger, seconds: float, text: str) -> Iterator[None]:
    """Log a warning, once, if what is done in it takes longer than that."""
    timer = threading.Timer(seconds, logger.warning, ("%s", text))
    timer.daemon = True
    # Without a thread for it nothing is said.
    with contextlib.suppress(RuntimeError, MemoryError):
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def state_directory() -> Path:
    """Return the directory of local state; it may not exist yet. UsageError for a user without a home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):
        return Path(base, "s3backer")
    if os.geteuid() == 0:
        return Path("/var/lib/s3backer")
    return home("XDG_STATE_HOME") / ".local" / "state" / "s3backer"


def home(instead: str) -> Path:
    """Return the user's home; UsageError, naming the variable that can be set instead, where there is none."""
    try:
        return Path.home()
    except RuntimeError:
        raise UsageError(
            f"user {os.geteuid()} has no home directory", hint=f"Set HOME, or {instead}, to a directory of that user."
        ) from None


def configure_logging(
    foreground: bool, debug: bool, quiet: bool, *, ident: str = "s3backer", redacting: Redacting | None = None
) -> Redacting:
    """Send all log lines of this process to one place and return the filter that guards it.

    ``debug`` shows everything this package says, ``quiet`` only warnings and errors; other libraries
    are heard from warnings upwards. A second call replaces the first, keeping the filter passed on.
    """
    guard = redacting or Redacting()
    handler = logging.StreamHandler(sys.stderr) if foreground else _background_handler(ident)
    if not isinstance(handler, logging.handlers.SysLogHandler):
        handler.setFormatter(_Formatter(FORMAT, DATE_FORMAT))
    handler.addFilter(guard)
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "_s3backer", False):
            root.removeHandler(old)
            old.close()
    handler._s3backer = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.getLogger("s3backer").setLevel(level)
    logging.getLogger("llfuse").setLevel(logging.WARNING)
    # What it fails at is an exception, which we tell; its own lines are tracebacks.
    logging.getLogger("botocore").setLevel(logging.CRITICAL)
    return guard


def _background_handler(ident: str) -> logging.Handler:
    for path in SYSLOG_SOCKETS:
        try:
            if not path.is_socket():
                continue
            syslog = logging.handlers.SysLogHandler(
                str(path), facility=logging.handlers.SysLogHandler.LOG_DAEMON, socktype=socket.SOCK_DGRAM
            )
        except OSError:
            continue
        syslog.append_nul = False
        syslog.setFormatter(_Formatter(f"{ident}[{os.getpid()}]: %(message)s"))
        return syslog
    try:
        return _PrivateFileHandler(state_directory(), f"{ident}.log")
    except (OSError, UsageError):
        # A log that cannot be opened is no reason to leave a disk unmounted.
        return logging.NullHandler()


class _Formatter(logging.Formatter):
    """Makes lines that can be written everywhere: what is not UTF-8 in names is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).encode(errors="backslashreplace").decode()


class _PrivateFileHandler(logging.handlers.RotatingFileHandler):
    """A rotating log that only its owner can read, also in its older parts."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(directory / name, maxBytes=_FILE_BYTES, backupCount=_OLD_FILES, encoding="utf-8")

    def _open(self):  # type: ignore[no-untyped-def]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.baseFilename, flags, 0o600)
        os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "a", encoding=self.encoding)
