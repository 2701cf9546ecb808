"""Going into the background: a daemon that belongs to nobody, and a parent that knows how it went.

    parent ── fork ──► child ── setsid, fork ──► daemon
      │                                            │  {"pid": N}
      │ ◄──────────────── a pipe ──────────────────┤  {"ready": true}   or   {"error": …, "hint": …, "exit_code": N}
      ▼                                            ▼
    verifies, returns                            serves

Guarantees
  * The parent returns only when the daemon is ready and the parent has verified it; else it raises what the daemon
    met, or that it died without a word, and the daemon is gone.
  * The daemon holds no descriptor, terminal or directory of its parent once it is ready.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from s3backer.errors import MountError, S3backerError

log = logging.getLogger(__name__)


def launch(serve: Callable[[Callable[[], None]], None], verify: Callable[[], None]) -> int:
    """Run ``serve(ready)`` in a daemon; return 0 once it has called ``ready`` and ``verify`` has passed here.

    ``verify`` raises S3backerError, which ends the daemon. The calling process must have no other threads.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_daemon(serve, writer)
    os.close(writer)
    os.waitpid(child, 0)
    pid = 0
    with os.fdopen(reader, encoding="utf-8") as messages:
        try:
            for line in messages:
                message = json.loads(line)
                pid = message.get("pid", pid)
                if "error" in message:
                    raise _told_error(message)
                if message.get("ready"):
                    verify()
                    return 0
        except (KeyboardInterrupt, S3backerError):
            _end_process(pid)
            raise
    raise MountError(
        "the daemon ended without a word before the mount was ready",
        hint="Run it with --foreground to see why; the kernel's log tells if it was killed.",
    )


def _become_daemon(serve: Callable[[Callable[[], None]], None], writer: int) -> NoReturn:
    """Cut all ties with the process that asked, and serve. Never returns."""
    code = 1
    try:
        os.setsid()
        # Not being a session's leader it can never get a terminal again.
        if os.fork():
            os._exit(0)
        os.chdir("/")
        os.umask(0o077)
        _close_inherited({0, 1, 2, writer})
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        code = _serve(serve, writer, null)
    except BaseException as error:
        _tell(writer, {"error": f"the daemon failed with {error!r}", "hint": "This is a defect; please report it."})
    finally:
        logging.shutdown()
        os._exit(code)


def _serve(serve: Callable[[Callable[[], None]], None], writer: int, null: int) -> int:
    told = False

    def ready() -> None:
        nonlocal told
        os.dup2(null, 2)
        os.close(null)
        told = True
        _tell(writer, {"ready": True})
        os.close(writer)

    _tell(writer, {"pid": os.getpid()})
    try:
        serve(ready)
        if not told:
            raise MountError("it was unmounted before it was ready", hint="Mount it again.")
    except S3backerError as error:
        if told:
            log.error("%s", error)
        else:
            _tell(writer, {"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
        return error.exit_code
    return 0


def _tell(writer: int, message: Mapping[str, object]) -> None:
    # The process that asked may be gone.
    with contextlib.suppress(OSError):
        os.write(writer, json.dumps(message).encode() + b"\n")


def _told_error(message: Mapping[str, object]) -> S3backerError:
    error = S3backerError(str(message["error"]), hint=str(message.get("hint", "")))
    code = message.get("exit_code")
    if isinstance(code, int) and code > 0:
        error.exit_code = code
    return error


def _close_inherited(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            # The descriptor of the listing itself is closed already.
            with contextlib.suppress(OSError):
                os.close(int(name))


def _end_process(pid: int) -> None:
    """Ask the daemon to end and wait until it has, which is when its volume is closed."""
    if not pid:
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        select.select([handle], [], [])
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
